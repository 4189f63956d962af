"""Records as one tidy table: one row a cell, however it ended."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lora_bench.cell import Cell
from lora_bench.store import COLUMNS, Record, row
from lora_bench.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd

SCOPE = ("model", "data", "split", "select", "start")
SLOT = ("method", "init", "rank", "a", "b")
SETTINGS = tuple(sorted(set(Cell.model_fields) - {*SCOPE, *SLOT, "task", "targets", "seed"}))

_INTEGERS = frozenset({
    "rank", "a", "b", "seed", "epochs", "batch_size", "max_length", "adapter_params", "head_params", "adapter_bytes",
    "best_epoch", "score_epoch", "modules", "pack_size", "train_rows", "eval_rows",
})  # fmt: skip
_TEXTS = frozenset({
    "id", "model", "task", "method", "targets", "status", "metric", "select", "init", "precision", "data", "reason",
    "lora_bench", "python", "torch", "transformers", "device", "split", "start", "notes",
})  # fmt: skip


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """The columns of metrics.csv, the cell's other settings, and `split`, `start`, `notes`; one row a record by id.

    `score` is in the metric's own units, and NaN for a cell that failed, diverged or has no finite score. Integer
    columns are Int64, text is `string`, the others float64; what a cell does not have is missing.
    """
    import pandas as pd

    rows = [_row(record) for record in sorted(records, key=lambda record: record.id)]
    _name_data(rows)
    columns = dict.fromkeys((*COLUMNS, *SETTINGS, *SCOPE, "notes"))
    return pd.DataFrame({name: pd.array([row[name] for row in rows], dtype=_dtype(name)) for name in columns})


def plain_rows(frame: pd.DataFrame, columns: Iterable[str]) -> list[dict[str, Any]]:
    """These columns of the frame's rows, as dictionaries of Python values, what is missing as None."""
    names = list(columns)
    values = [frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _name_data(rows: Iterable[dict[str, object]]) -> None:
    """Shorten `files:<hash>` to `files` where a task has one such source: the hash is of one task's files alone.

    Otherwise no two tasks of a folder would stand in one table.
    """
    known = list(rows)
    kinds = {each["data"]: str(each["data"]).partition(":")[0] for each in known}
    found: dict[tuple[object, str], set[object]] = {}
    for each in known:
        found.setdefault((each["task"], kinds[each["data"]]), set()).add(each["data"])
    single = {data for sources in found.values() if len(sources) == 1 for data in sources}
    for each in known:
        each["data"] = kinds[each["data"]] if each["data"] in single else each["data"]


def _split(record: Record) -> str:
    """`validation` for all of the task's official validation splits (MNLI has two)."""
    task = TASKS.get(record.cell.task)
    official = "+".join(name for name, _ in task.eval_splits) if task else ""
    return "validation" if record.protocol.split == official else record.protocol.split


def _row(record: Record) -> dict[str, object]:
    protocol = record.protocol
    values = record.cell.model_dump() | row(record)
    values |= {"split": _split(record), "start": protocol.start, "notes": "; ".join(protocol.notes) or None}
    return values | {"score": _score(record)}


def _score(record: Record) -> float | None:
    scored = record.status == "done" and record.score is not None and math.isfinite(record.score)
    return record.score if scored else None


def _dtype(column: str) -> Any:
    return "Int64" if column in _INTEGERS else "string" if column in _TEXTS else "float64"
