"""Records as plain rows: one dictionary a cell, however it ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from lora_bench.cell import Cell
from lora_bench.store import Record
from lora_bench.tasks import TASKS

Row = Mapping[str, Any]
Key = tuple[Any, ...]

SCOPE = ("model", "data", "split", "select", "start")
SLOT = ("method", "init", "rank", "a", "b")
SHOWN_SLOT = ("method", "start_shown", "rank", "a", "b")  # the default start is shown as none
SETTINGS = tuple(sorted(set(Cell.model_fields) - {*SCOPE, *SLOT, "task", "targets", "seed"}))
COUNTS = ("adapter_params", "head_params", "adapter_bytes", "adapter_bytes_fp16")


def rows(records: Iterable[Record]) -> tuple[Row, ...]:
    """One row a record, by id: the cell's settings, how it ended, counts, `seconds`, the record itself.

    `score`, `best`, `last` and `held_out` are in the metric's own units, and None for a cell that failed, diverged or
    has no finite score; `held_out` is the reported metric at the epoch that is best on the held-out slice of train.
    """
    found = [_row(record) for record in sorted(records, key=lambda record: record.id)]
    _name_data(found)
    return tuple(found)


def order(key: Iterable[Any]) -> tuple[tuple[bool, Any], ...]:
    """A sort key for values of which some are None: None comes first."""
    return tuple((value is not None, 0 if value is None else value) for value in key)


def split_by(rows: Iterable[Row], names: Sequence[str]) -> list[tuple[Key, list[Row]]]:
    """The rows by these values (two at least), in the order of the values."""
    parts: dict[Key, list[Row]] = {}
    key = itemgetter(*names)
    for row in rows:
        parts.setdefault(key(row), []).append(row)
    return sorted(parts.items(), key=lambda item: order(item[0]))


def device_kind(rows: Iterable[Row]) -> str:
    """`GPU-` or `CPU-` when every timed cell ran on one, else nothing: what stands before `seconds`."""
    devices = {row["record"].environment.get("device", "") for row in rows if row["seconds"] is not None}
    on_cpu = {device.lower().startswith("cpu") for device in devices if device}
    return {frozenset({True}): "CPU-", frozenset({False}): "GPU-"}.get(frozenset(on_cpu), "")


def _row(record: Record) -> dict[str, Any]:
    counts, protocol, timing = record.counts, record.protocol, record.timing
    scored = record.status == "done" and record.score is not None and math.isfinite(record.score)
    return vars(record.cell) | {
        "id": record.id, "record": record, "start_shown": None if record.cell.init == "default" else record.cell.init,
        "status": record.status, "reason": record.reason, "metric": record.metric,
        "split": _split(record), "start": protocol.start, "notes": "; ".join(protocol.notes) or None,
        "score": record.score if scored else None, "best": record.best if scored else None,
        "last": record.last if scored else None, "held_out": _held_out(record) if scored else None,
        "seconds": timing.seconds if timing else None,
        **{name: getattr(counts, name) if counts else None for name in COUNTS},
    }  # fmt: skip


def _held_out(record: Record) -> float | None:
    """The reported metric at the first epoch that is best on what was held out of train."""
    kept = [
        (value, epoch) for epoch in record.epochs if (value := (epoch.held_out or {}).get(record.metric)) is not None
    ]
    return max(kept, key=lambda each: each[0])[1].metrics.get(record.metric) if kept else None


def _split(record: Record) -> str:
    """`validation` for all of the task's official validation splits (MNLI has two)."""
    task = TASKS.get(record.cell.task)
    official = "+".join(name for name, _ in task.eval_splits) if task else ""
    return "validation" if record.protocol.split == official else record.protocol.split


def _name_data(rows: Sequence[dict[str, Any]]) -> None:
    """Shorten `files:<hash>` to `files` where a task has one such source: the hash is of one task's files alone.

    Otherwise no two tasks of a folder would stand in one table.
    """
    kinds = {data: data.partition(":")[0] for data in {row["data"] for row in rows}}
    found: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        found.setdefault((row["task"], kinds[row["data"]]), set()).add(row["data"])
    single = {data for sources in found.values() if len(sources) == 1 for data in sources}
    for row in rows:
        row["data"] = kinds[row["data"]] if row["data"] in single else row["data"]
