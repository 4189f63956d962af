"""A task: its texts, labels and metrics, and where its rows come from. And the registry of all tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lora_bench.cell import Cell
from lora_bench.errors import MISSING, BenchError, unknown

# A metric of a user: arrays of predictions [N] (class numbers, or values for regression) and of labels [N] to a number
# from -1 to 1.
MetricFunction = Callable[[Any, Any], float]

# The names of the metrics that `tasks.metrics` defines.
CLASS_METRICS = frozenset({"accuracy", "f1", "macro_f1", "matthews"})
VALUE_METRICS = frozenset({"pearson", "spearman"})


@dataclass(frozen=True, slots=True)
class Hub:
    """A dataset on the Hugging Face Hub, at one revision.

    Attributes:
        id: `owner/name`.
        revision: the whole commit, 40 hexadecimal digits.
        config: the dataset's configuration, if it has several.
        splits: the dataset's name of each split whose name differs from the task's.
        columns: the dataset's name of each text column whose name differs from the task's.
        label: the dataset's name of the label column.
    """

    id: str
    revision: str
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict, hash=False)
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    label: str = "label"

    def __str__(self) -> str:
        return self.id if self.config is None else f"{self.id}/{self.config}"


@dataclass(frozen=True, slots=True)
class Files:
    """Files by split: csv, tsv, jsonl or parquet, by their suffix.

    Attributes:
        splits: for each split a path or a pattern with `*` (taken in the order of the names), or a list of several.
            Paths are relative to the folder of the task's file.
        columns: the files' name of each text column whose name differs from the task's.
        label: the files' name of the label column.
        root: the folder of the task's file; set when the task is added.
    """

    splits: Mapping[str, str | tuple[str, ...]] = field(hash=False)
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    label: str = "label"
    root: Path | None = None


@dataclass(frozen=True, slots=True)
class Tsv:
    """How a task is stored in GLUE's own download: tab-separated, never quoted.

    Attributes:
        folder: the folder's name.
        columns: GLUE's names of the task's text columns, in the task's order.
        label: GLUE's name of the label column.
        names: the columns of a split with labels that has no header (CoLA).
        from_quoted: GLUE cut the files, line by line, from one whose fields are quoted (QQP): the few rows that a line
            break has cut are left out, and the quotes of the others stay, as on the Hub.
    """

    folder: str
    columns: tuple[str, ...]
    label: str = "label"
    names: tuple[str, ...] = ()
    from_quoted: bool = False


class Submission(NamedTuple):
    """A test split as the leaderboard takes its predictions: `file`.tsv of `rows` lines."""

    split: str
    file: str
    rows: int


class ColumnNames(NamedTuple):
    """The names that a file has for the task's columns."""

    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True, slots=True)
class Task:
    """A classification of texts or of pairs of texts, or a regression on them.

    Attributes:
        name: the word that `--task` takes.
        title: the name in tables.
        columns: the names of one text column, or of two.
        labels: the names of the classes, label 0 first; none for a regression.
        metrics: the first is the main one: tables show it and epochs are chosen by it. A name (see `tasks.metrics`),
            the name of an accuracy over one evaluation split (`accuracy_matched` is `accuracy` over
            `validation_matched`), or a function of a user.
        source: where the rows come from unless a folder is given; None: there must be a folder.
        eval_splits: the splits that are scored together.
        bounds: the lowest and the highest label of a regression.
        rows: the rows of each split (`train` first) of the official data; empty if they are not known.
        mean_tokens: tokens of RoBERTa's tokenizer a training sequence cut at 128, where they were counted.
        token_spread: their standard deviation over their mean; costs are predicted from both.
        tsv: how GLUE's own download stores the task.
        submissions: the test splits that GLUE's leaderboard scores.
        submits_names: the leaderboard takes names of labels, not numbers.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str | MetricFunction, ...]
    source: Hub | Files | None = None
    eval_splits: tuple[str, ...] = ("validation",)
    bounds: tuple[float, float] = (-math.inf, math.inf)
    rows: tuple[int, ...] = ()
    mean_tokens: float | None = None
    token_spread: float = 0.5
    tsv: Tsv | None = None
    submissions: tuple[Submission, ...] = ()
    submits_names: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number and not a class."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Outputs of the head: one for each class, or 1 for regression."""
        return len(self.labels) or 1

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the metrics in records; that of a function is its `__name__`."""
        return tuple(metric if isinstance(metric, str) else metric.__name__ for metric in self.metrics)

    @property
    def main_metric(self) -> str:
        """The name of the metric that tables show and epochs are chosen by; higher is better."""
        return self.metric_names[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, then the evaluation splits."""
        return ("train", *self.eval_splits)

    @property
    def train_rows(self) -> int | None:
        """The official rows of the train split, if known."""
        return self.rows[0] if self.rows else None

    @property
    def eval_rows(self) -> int | None:
        """The official rows of all evaluation splits together, if known."""
        return sum(self.rows[1:]) if self.rows else None

    @property
    def official_rows(self) -> frozenset[int]:
        """How many rows the official files have, one number for each split."""
        return frozenset((*self.rows, *(test.rows for test in self.submissions)))

    @property
    def column_names(self) -> tuple[ColumnNames, ...]:
        """The names that a file may have for the columns: those of the source, then those of GLUE's own download."""
        columns = {} if self.source is None else self.source.columns
        label = "label" if self.source is None else self.source.label
        usual = ColumnNames(tuple(columns.get(name, name) for name in self.columns), label)
        return (usual,) if self.tsv is None else (usual, ColumnNames(self.tsv.columns, self.tsv.label))


def metric_of_split(name: str) -> tuple[str, str]:
    """The metric and the evaluation split that a name such as `accuracy_matched` means."""
    kind, _, part = name.partition("_")
    return kind, f"validation_{part}"


_tasks: dict[str, Task] = {}
_origins: dict[str, str] = {}
_broken: dict[str, str] = {}

TASKS: Mapping[str, Task] = MappingProxyType(_tasks)
BROKEN: Mapping[str, str] = MappingProxyType(_broken)  # tasks of packages that could not be loaded, and why


def add(task: Task, origin: str | None = None) -> None:
    """Add a task to the registry.

    Args:
        task: The task.
        origin: The file that defines it and a hash of that, `<file>@<12 hex>`; None for GLUE's.
    """
    _tasks[task.name] = task
    if origin is not None:
        _origins[task.name] = origin


def get(name: str) -> Task:
    """The task called `name`. Raises BenchError (usage), naming the nearest task, when there is none."""
    if name in _tasks:
        return _tasks[name]
    if name in _broken:
        hint = "Correct its package, or uninstall it."
        raise BenchError(f"The task '{name}' cannot be loaded: {_broken[name]}.", hint, MISSING)
    error = unknown("task", name, _tasks)
    raise BenchError(error.what, f"{error.hint} A task of your own: --include FILE.")


def of(cell: Cell) -> Task:
    """The task of a cell."""
    return get(cell.task)


def origin(name: str) -> str | None:
    """Where a task is defined, `<file>@<12 hex of its SHA-256>`; None for GLUE's."""
    return _origins.get(name)
