"""The records of a report as one pandas frame with a row per cell, and the definitions of its columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.tasks import TASKS

if TYPE_CHECKING:
    from pandas import DataFrame

CellRow = Mapping[str, Any]

# Cells that differ in one of these must not be compared, so they never share a table.
SCOPE = ("model", "data", "split", "select", "start")
# What identifies an entry of a table. The shown variant prints the default start as no start at all.
ENTRY_FIELDS = ("method", "init", "rank", "a", "b")
SHOWN_ENTRY_FIELDS = ("method", "start_shown", "rank", "a", "b")
# The hyperparameters: every other field of a cell except the task, the targets, the seed, and the head, which is told
# apart by the model's name.
_NO_SETTINGS = frozenset({*SCOPE, *ENTRY_FIELDS, "task", "task_origin", "targets", "seed", "head"})
SETTINGS = tuple(sorted(set(Cell.model_fields) - _NO_SETTINGS))
COUNTS = ("adapter_params", "head_params", "adapter_bytes", "adapter_bytes_fp16")


@dataclass(frozen=True)
class CellColumn:
    """The definition of a column of the frame, used in every table and format.

    Attributes:
        name: its name in the frame, in CSV and in JSON.
        value: returns its value for a record; None where there is none.
        head: its heading in printed tables; a line break separates two lines.
        form: the format specification of its numbers in printed tables.
        words: whether its values are text even where they are missing.
    """

    name: str
    value: Callable[[Record], object]
    head: str = ""
    form: str = ""
    words: bool = False

    def text(self, value: object) -> str:
        """Format a value; a missing one is empty."""
        return "" if value is None else format(value, self.form or ("g" if isinstance(value, float) else ""))


def _count(name: str, head: str) -> CellColumn:
    return CellColumn(name, lambda record: getattr(record.counts, name, None), head, ",")


def _score(name: str, value: Callable[[Record], float | None]) -> CellColumn:
    """Define a column of scores, in the metric's own units; None for a cell that has no finite score."""
    return CellColumn(name, lambda record: value(record) if _has_score(record) else None)


def _has_score(record: Record) -> bool:
    return record.status == "done" and record.score is not None and math.isfinite(record.score)


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


CELL_COLUMNS: Mapping[str, CellColumn] = {
    column.name: column
    for column in (
        *(CellColumn(name, attrgetter(f"cell.{name}"), name) for name in Cell.model_fields),
        CellColumn("id", attrgetter("id"), "id"),
        CellColumn("record", lambda record: record),
        CellColumn("start_shown", lambda record: None if record.cell.init == "default" else record.cell.init),
        CellColumn("status", attrgetter("status"), "status"),
        CellColumn("reason", attrgetter("reason"), "reason", words=True),
        CellColumn("metric", attrgetter("metric")),
        CellColumn("split", _split_name),
        CellColumn("start", attrgetter("protocol.start")),
        CellColumn("notes", lambda record: "; ".join(record.protocol.notes) or None),
        _score("score", attrgetter("score")),
        _score("best", attrgetter("best")),
        _score("last", attrgetter("last")),
        _score("held_out", _held_out_score),
        CellColumn("seconds", lambda record: getattr(record.timing, "seconds", None), "seconds\na cell", ",.1f"),
        _count("adapter_params", "adapter\nparams"),
        _count("head_params", "head\nparams"),
        _count("adapter_bytes", "adapter\nbytes"),
        _count("adapter_bytes_fp16", "bytes\nas fp16"),
    )
}


def cell_frame(records: Iterable[Record]) -> DataFrame:
    """Return the records as a frame with the columns of `CELL_COLUMNS`, sorted by cell id.

    Every column holds Python objects, so that integers stay integers where values are missing.

    Args:
        records: finished cells with any status.
    """
    import pandas as pd

    ordered = sorted(records, key=lambda record: record.id)
    values = [column.value for column in CELL_COLUMNS.values()]
    frame = pd.DataFrame(
        [[value(record) for value in values] for record in ordered], columns=list(CELL_COLUMNS), dtype=object
    )
    return _tell_heads_apart(_tell_definitions_apart(_shorten_data_names(frame)))


def cells_of(frame: DataFrame) -> list[CellRow]:
    """Return the rows of a frame as mappings."""
    names = frame.columns.tolist()
    return [dict(zip(names, values, strict=True)) for values in frame.to_numpy()]


def group_by(frame: DataFrame, names: Sequence[str]) -> list[DataFrame]:
    """Divide a frame by the values of some columns, sorted by those values; a missing value comes first."""
    ordered = frame.sort_values(list(names), na_position="first", kind="stable")
    return [group for _, group in ordered.groupby(list(names), sort=False, dropna=False)]


def sort_key(values: Iterable[Any]) -> tuple[tuple[bool, Any], ...]:
    """Return a sort key for a sequence that may contain None; None sorts first."""
    return tuple((value is not None, 0 if value is None else value) for value in values)


def device_prefix(cells: Iterable[CellRow]) -> str:
    """Return the prefix of "seconds" in headings: `GPU-` or `CPU-`, or nothing if the timed cells used both kinds."""
    devices = {cell["record"].environment.get("device", "") for cell in cells if cell["seconds"] is not None}
    on_cpu = {device.lower().startswith("cpu") for device in devices if device}
    return {frozenset({True}): "CPU-", frozenset({False}): "GPU-"}.get(frozenset(on_cpu), "")


def _tell_definitions_apart(frame: DataFrame) -> DataFrame:
    """Add the file and its hash to a task's name wherever there are cells of several definitions of it.

    They are different tasks under one name, whose scores must not be compared.
    """
    several = frame.groupby("task")["task_origin"].transform("nunique", dropna=False) > 1
    named = several & frame["task_origin"].notna()
    return frame.assign(task=frame["task"].mask(named, frame["task"] + " (" + frame["task_origin"] + ")"))


def _tell_heads_apart(frame: DataFrame) -> DataFrame:
    """Add to the model's name that its own head was trained: another head is another setup, not a setting to choose."""
    own = frame["head"] == "model"
    return frame.assign(model=frame["model"].mask(own, frame["model"] + " (own head)"))


def _shorten_data_names(frame: DataFrame) -> DataFrame:
    """Shorten `files:<hash>` to `files` wherever a task has only one such source.

    The hash covers the files of a single task, so with the full name no two tasks of a data folder would share a table.
    """
    kinds = frame["data"].map(lambda name: name.partition(":")[0])
    only = frame["data"][frame.groupby(["task", kinds.rename("kind")])["data"].transform("nunique") == 1]
    return frame.assign(data=frame["data"].mask(frame["data"].isin(only), kinds))
