"""Records as plain rows: one dictionary per cell, whatever its status."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.tasks import TASKS

CellRow = Mapping[str, Any]
GroupKey = tuple[Any, ...]

# Cells that differ in one of these must not be compared, so they never share a table.
SCOPE = ("model", "data", "split", "select", "start")
# What identifies an entry of a table. The shown variant prints the default start as no start at all.
ENTRY_FIELDS = ("method", "init", "rank", "a", "b")
SHOWN_ENTRY_FIELDS = ("method", "start_shown", "rank", "a", "b")
# The hyperparameters: every other field of a cell except the task, the targets and the seed.
SETTINGS = tuple(sorted(set(Cell.model_fields) - {*SCOPE, *ENTRY_FIELDS, "task", "task_origin", "targets", "seed"}))
COUNTS = ("adapter_params", "head_params", "adapter_bytes", "adapter_bytes_fp16")


def cell_rows(records: Iterable[Record]) -> tuple[CellRow, ...]:
    """Convert records to rows, sorted by cell id.

    Args:
        records: finished cells with any status.

    Returns:
        One row per record with the cell's settings, `status`, `reason`, the counts, `seconds` and the record itself.
        `score`, `best`, `last` and `held_out` are in the metric's own units, and None for a cell that failed, diverged
        or has no finite score. `held_out` is the reported metric at the epoch that is best on the held-out slice of
        the training rows.
    """
    rows = [_cell_row(record) for record in sorted(records, key=lambda record: record.id)]
    _shorten_data_names(rows)
    _tell_definitions_apart(rows)
    return tuple(rows)


def sort_key(values: Iterable[Any]) -> tuple[tuple[bool, Any], ...]:
    """Return a sort key for a sequence that may contain None; None sorts first."""
    return tuple((value is not None, 0 if value is None else value) for value in values)


def group_by(rows: Iterable[CellRow], names: Sequence[str]) -> list[tuple[GroupKey, list[CellRow]]]:
    """Group rows by the values of at least two columns, sorted by those values."""
    groups: dict[GroupKey, list[CellRow]] = {}
    key = itemgetter(*names)
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return sorted(groups.items(), key=lambda item: sort_key(item[0]))


def device_prefix(rows: Iterable[CellRow]) -> str:
    """Return the prefix of "seconds" in headings: `GPU-` or `CPU-`, or nothing if the timed cells used both kinds."""
    devices = {row["record"].environment.get("device", "") for row in rows if row["seconds"] is not None}
    on_cpu = {device.lower().startswith("cpu") for device in devices if device}
    return {frozenset({True}): "CPU-", frozenset({False}): "GPU-"}.get(frozenset(on_cpu), "")


def _cell_row(record: Record) -> dict[str, Any]:
    counts, protocol, timing = record.counts, record.protocol, record.timing
    has_score = record.status == "done" and record.score is not None and math.isfinite(record.score)
    return vars(record.cell) | {
        "id": record.id,
        "record": record,
        "start_shown": None if record.cell.init == "default" else record.cell.init,
        "status": record.status,
        "reason": record.reason,
        "metric": record.metric,
        "split": _split_name(record),
        "start": protocol.start,
        "notes": "; ".join(protocol.notes) or None,
        "score": record.score if has_score else None,
        "best": record.best if has_score else None,
        "last": record.last if has_score else None,
        "held_out": _held_out_score(record) if has_score else None,
        "seconds": timing.seconds if timing else None,
        **{name: getattr(counts, name) if counts else None for name in COUNTS},
    }


def _held_out_score(record: Record) -> float | None:
    """Return the reported metric at the first epoch with the best held-out value; None without a held-out slice."""
    candidates = [
        (value, epoch) for epoch in record.epochs if (value := (epoch.held_out or {}).get(record.metric)) is not None
    ]
    return max(candidates, key=itemgetter(0))[1].metrics.get(record.metric) if candidates else None


def _split_name(record: Record) -> str:
    """Return `validation` for the task's official validation splits (MNLI has two), else the recorded split."""
    task = TASKS.get(record.cell.task)
    official = "+".join(task.eval_splits) if task else ""
    return "validation" if record.protocol.split == official else record.protocol.split


def _tell_definitions_apart(rows: Sequence[dict[str, Any]]) -> None:
    """Add the file and its hash to a task's name in place wherever there are cells of several definitions of it.

    They are different tasks under one name, whose scores must not be compared.
    """
    origins: dict[str, set[str | None]] = {}
    for row in rows:
        origins.setdefault(row["task"], set()).add(row["task_origin"])
    for row in rows:
        if row["task_origin"] is not None and len(origins[row["task"]]) > 1:
            row["task"] = f"{row['task']} ({row['task_origin']})"


def _shorten_data_names(rows: Sequence[dict[str, Any]]) -> None:
    """Shorten `files:<hash>` to `files` in place wherever a task has only one such source.

    The hash covers the files of a single task, so with the full name no two tasks of a data folder would share a table.
    """
    kinds = {data: data.partition(":")[0] for data in {row["data"] for row in rows}}
    sources: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        sources.setdefault((row["task"], kinds[row["data"]]), set()).add(row["data"])
    unambiguous = {data for names in sources.values() if len(names) == 1 for data in names}
    for row in rows:
        row["data"] = kinds[row["data"]] if row["data"] in unambiguous else row["data"]
