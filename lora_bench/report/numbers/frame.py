"""The records of a report as one pandas frame with a row per cell, and the definitions of its columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.tasks import TASKS

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Row = Mapping[str, Any]


class Named(Protocol):
    """A method, as far as a report knows it."""

    name: ClassVar[str]


MethodGroups = Collection[tuple[str, Iterable[Named]]]  # groups in their order, each with its name and its methods

# Cells that differ in one of these must not be compared, so they never share a table.
SCOPE = ("model", "data", "split", "select", "start")
# What identifies an arm: a method at one size on one set of targets.
ARM = ("targets", "method", "init", "rank", "a", "b")
# The hyperparameters: every other field of a cell except the task, the seed, and the head, which is part of the
# model's name; and those of the cell that it starts from.
_NO_SETTINGS = frozenset({*SCOPE, *ARM, "task", "task_origin", "seed", "head"})
SETTINGS = (*sorted(set(Cell.model_fields) - _NO_SETTINGS), "start_settings")
# A regression's values are one answer if their deviation is below this share of their mean (chosen). On STS-B a
# collapsed cell has up to 0.004, nearly all others have more than 0.3.
SAME_ANSWER = 0.01
STATUS_COLUMNS = ("failed", "diverged", "undefined")  # the seeds of a setting without a score
COUNTS = ("adapter_params", "head_params", "adapter_bytes", "adapter_bytes_fp16")


@dataclass(frozen=True)
class CellColumn:
    """The definition of a column of the frame, used in every table and format.

    Attributes:
        name: Its name in the frame, in CSV and in JSON.
        value: Returns its value for a record; None where there is none.
        head: Its heading in printed tables; a line break separates two lines.
        form: The format specification of its numbers in printed tables.
        dtype: The pandas type of the column.
    """

    name: str
    value: Callable[[Record], object]
    head: str = ""
    form: str = ""
    dtype: str = "object"

    def text(self, value: object) -> str:
        """Format a value; a missing one is empty."""
        return "" if is_missing(value) else format(value, self.form or ("g" if isinstance(value, float) else ""))


def is_missing(value: object) -> bool:
    """Whether a value of a frame is None, NaN or pandas' NA."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType"


def _count(name: str, head: str) -> CellColumn:
    return CellColumn(name, lambda record: getattr(record.counts, name, None), head, ",", dtype="Int64")


def _score(name: str, value: Callable[[Record], float | None]) -> CellColumn:
    """Define a column of scores, in the metric's own units; None for a cell that has no finite score."""
    return CellColumn(name, lambda record: None if final_score(record) is None else value(record), dtype="float64")


def final_score(record: Record) -> float | None:
    """Return the score of a cell that is done and has a finite one; else None."""
    has_score = record.status == "done" and record.score is not None and math.isfinite(record.score)
    return record.score if has_score else None


def gives_one_answer(record: Record) -> bool | None:
    """Whether a finished cell gives one answer to all rows, so that it has learnt nothing: it has collapsed.

    Classes have to be equal, and values of a regression nearly so (`SAME_ANSWER`). None if the cell has not finished or
    its record holds no predictions: nothing is known.
    """
    if record.status != "done" or len(record.predictions) < 2:
        return None
    if len(set(record.predictions)) == 1:
        return True
    if all(value.is_integer() for value in record.predictions):
        return False
    import numpy as np

    values = np.asarray(record.predictions)
    return bool(values.std() < SAME_ANSWER * abs(values.mean()))


def _held_out_score(record: Record) -> float | None:
    """Return the reported metric at the epoch of `Record.best_held_out`; None without a held-out slice."""
    best = record.best_held_out
    return None if best is None else best[1].metrics.get(record.metric)


def _held_out_metric(record: Record) -> float | None:
    """Return the held-out value of the main metric, by which settings are chosen; None if nothing is held out."""
    best = record.best_held_out
    return None if best is None else best[0]


def _split_name(record: Record) -> str:
    """Return `validation` for the task's official validation splits (MNLI has two), else the recorded split."""
    task = TASKS.get(record.cell.task)
    official = "+".join(task.eval_splits) if task else ""
    return "validation" if record.protocol.split == official else record.protocol.split


_CELL_TYPES = {"rank": "Int64", "a": "Int64", "b": "Int64", "seed": "int64"}
CELL_COLUMNS: Mapping[str, CellColumn] = {
    column.name: column
    for column in (
        *(
            CellColumn(name, attrgetter(f"cell.{name}"), name, dtype=_CELL_TYPES.get(name, "object"))
            for name in Cell.model_fields
            if name != "init"
        ),
        # The default start is no start at all.
        CellColumn("init", lambda record: None if record.cell.init == "default" else record.cell.init, "start"),
        CellColumn("id", attrgetter("id"), "id"),
        CellColumn("record", lambda record: record),
        CellColumn("status", attrgetter("status"), "status"),
        CellColumn("reason", attrgetter("reason"), "reason"),
        CellColumn("metric", attrgetter("metric")),
        CellColumn("split", _split_name),
        CellColumn("start", attrgetter("protocol.start")),
        CellColumn("own_start", attrgetter("protocol.start")),
        CellColumn("start_settings", attrgetter("protocol.start_settings"), "start of"),
        CellColumn("notes", lambda record: "; ".join(record.protocol.notes) or None),
        _score("score", final_score),
        _score("best", attrgetter("best")),
        _score("last", attrgetter("last")),
        _score("held_out", _held_out_score),
        _score("held_out_metric", _held_out_metric),
        CellColumn("one_answer", gives_one_answer, dtype="boolean"),
        CellColumn(
            "seconds",
            lambda record: getattr(record.timing, "seconds", None),
            "seconds\na cell",
            ",.1f",
            dtype="float64",
        ),
        _count("adapter_params", "adapter\nparams"),
        _count("head_params", "head\nparams"),
        _count("adapter_bytes", "adapter\nbytes"),
        _count("adapter_bytes_fp16", "bytes\nas fp16"),
    )
}


def cell_frame(records: Iterable[Record], kinds: MethodGroups = ()) -> DataFrame:
    """Return the records as a frame with the columns of `CELL_COLUMNS` and `kind`, sorted by cell id.

    Args:
        records: Finished cells with any status.
        kinds: The methods of each group. `kind` is sorted in the order of the groups, and missing for other methods.
    """
    import pandas as pd

    ordered = sorted(records, key=lambda record: record.id)
    columns = {
        name: pd.Series([column.value(record) for record in ordered], dtype=column.dtype)
        for name, column in CELL_COLUMNS.items()
    }
    groups = {method.name: kind for kind, methods in kinds for method in methods}
    kind_of = columns["method"].map(groups)
    columns["kind"] = pd.Series(pd.Categorical(kind_of, categories=[kind for kind, _ in kinds], ordered=True))
    frame = _tell_heads_apart(_tell_definitions_apart(_shorten_data_names(pd.DataFrame(columns))))
    return _join_starts(frame)


def rows_of(frame: DataFrame) -> list[Row]:
    """Return the rows of a frame as mappings in which every missing value is None."""
    columns = [[None if is_missing(value) else value for value in frame[name].tolist()] for name in frame.columns]
    return [dict(zip(frame.columns, values, strict=True)) for values in zip(*columns, strict=True)]


def group_ids(frame: DataFrame, names: Sequence[str]) -> Series:
    """Number the groups of rows with the same values of some columns, sorted by them; missing ones come first."""
    groups = frame.drop_duplicates(list(names)).sort_values(list(names), na_position="first", kind="stable")
    numbered = groups[list(names)].assign(group=range(len(groups)))
    return frame[list(names)].merge(numbered, how="left", on=list(names))["group"].set_axis(frame.index)


def device_prefix(cells: DataFrame) -> str:
    """Return the prefix of "seconds" in headings: `GPU-` or `CPU-`, or nothing if the timed cells used both kinds."""
    return device_kind(cells["record"][cells["seconds"].notna()])


def device_kind(records: Iterable[Record]) -> str:
    """Return `GPU-` or `CPU-`, where these records are of, or nothing if they are of both kinds."""
    devices = {record.environment.get("device", "") for record in records}
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


def _join_starts(frame: DataFrame) -> DataFrame:
    """Give the tasks of a protocol one value of `start` wherever each of them has a single start.

    So tasks that start from MNLI share a table, and an average, with those that start from the pretrained model. Where
    a task has several starts, these are protocols of their own. `own_start` stays the start of the cell.
    """
    groups = group_ids(frame, SCOPE[:-1])
    several = (frame.groupby([groups, "task"])["start"].transform("nunique") > 1).groupby(groups).transform("any")
    names = {
        number: _starts_text(dict(zip(members["task"], members["start"], strict=True)))
        for number, members in frame[~several].groupby(groups)
    }
    return frame.assign(start=frame["start"].where(several, groups.map(names)))


def _starts_text(starts: Mapping[str, str]) -> str:
    """Name the start of each task: `pretrained`, or `pretrained, mnli for mrpc and rte`."""
    if len(set(starts.values())) == 1:
        return next(iter(starts.values()))
    tasks: dict[str, list[str]] = {}
    for task, start in sorted(starts.items(), key=lambda item: (item[1] != "pretrained", item[1], item[0])):
        tasks.setdefault(start, []).append(task)
    texts = [f"{start} for {' and '.join(names)}" for start, names in tasks.items() if start != "pretrained"]
    return ", ".join([*(["pretrained"] if "pretrained" in tasks else []), *texts])


def _shorten_data_names(frame: DataFrame) -> DataFrame:
    """Shorten `files:<hash>` to `files` wherever a task has only one such source.

    The hash covers the files of a single task, so with the full name no two tasks of a data folder would share a table.
    """
    kinds = frame["data"].map(lambda name: name.partition(":")[0])
    only = frame["data"][frame.groupby(["task", kinds.rename("kind")])["data"].transform("nunique") == 1]
    return frame.assign(data=frame["data"].mask(frame["data"].isin(only), kinds))
