"""The definition of a task (texts, labels, metrics, source of the rows), and the registry of all tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lora_bench.cell import Cell
from lora_bench.plugins import Registry

# A user's metric. Its arguments are arrays of predictions [N] (class numbers, or values for a regression) and of labels
# [N]; it returns a number from -1 to 1.
MetricFunction = Callable[[Any, Any], float]

# The names of the metrics that `tasks.metrics` defines.
CLASS_METRICS = frozenset({"accuracy", "f1", "macro_f1", "matthews"})
VALUE_METRICS = frozenset({"pearson", "spearman"})


@dataclass(frozen=True, slots=True)
class Hub:
    """A dataset on the Hugging Face Hub at one revision.

    Attributes:
        id: `owner/name`.
        revision: The full commit hash, 40 hexadecimal digits.
        config: The dataset's configuration, if it has several.
        splits: The dataset's name of each split whose name differs from the task's.
        columns: The dataset's name of each text column whose name differs from the task's.
        label: The dataset's name of the label column.
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
    """Files of each split: csv, tsv, jsonl or parquet, as their suffix says.

    Attributes:
        splits: For each split a path, a pattern with `*` (its files are read in the order of their names), or a list
            of paths and patterns. Paths are relative to the folder of the task's file.
        columns: The files' name of each text column whose name differs from the task's.
        label: The files' name of the label column.
        root: The folder of the task's file; set when the task is added.
    """

    splits: Mapping[str, str | tuple[str, ...]] = field(hash=False)
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    label: str = "label"
    root: Path | None = None


@dataclass(frozen=True, slots=True)
class Tsv:
    """The format of a task in GLUE's own download: tab-separated, never quoted.

    Attributes:
        folder: The name of the folder.
        columns: GLUE's names of the text columns, in the task's order.
        label: GLUE's name of the label column.
        names: The columns of a split with labels whose file has no header (CoLA).
        from_quoted: Whether GLUE made the files by splitting a file with quoted fields into lines (QQP). The few rows
            that contain a line break are incomplete and are skipped, and the quotes of the others are kept, as in the
            Hub's dataset.
    """

    folder: str
    columns: tuple[str, ...]
    label: str = "label"
    names: tuple[str, ...] = ()
    from_quoted: bool = False


class Submission(NamedTuple):
    """The file in which the leaderboard expects the predictions of a test split: `file`.tsv with `rows` rows."""

    split: str
    file: str
    rows: int


class ColumnNames(NamedTuple):
    """The names of the task's columns in a file."""

    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True, slots=True)
class Task:
    """A classification of texts or of pairs of texts, or a regression on them.

    Attributes:
        name: The name for `--task`.
        title: The name in tables.
        columns: The names of one or two text columns.
        labels: The names of the classes, in the order of their numbers; empty for a regression.
        metrics: The metrics, the main one first: tables show it and epochs are selected by it. A metric is a name (see
            `tasks.metrics`), a name with an evaluation split (`accuracy_matched` is the `accuracy` on
            `validation_matched`), or a user's function.
        source: Where the rows come from if the user gives no folder; None if the user must give one.
        eval_splits: The evaluation splits, which are scored together.
        bounds: The smallest and the largest label of a regression.
        rows: The official number of rows of each split, `train` first; empty if unknown.
        mean_tokens: The mean number of RoBERTa tokens of a training sequence truncated to 128; None if not counted.
        token_spread: The standard deviation of these numbers divided by their mean. Costs are predicted from both.
        eval_mean_tokens: As `mean_tokens` of an evaluated sequence; None where it is about the same.
        tsv: The format in GLUE's own download.
        submissions: The test splits that GLUE's leaderboard scores.
        submits_names: Whether the leaderboard expects names of labels instead of numbers.
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
    eval_mean_tokens: float | None = None
    tsv: Tsv | None = None
    submissions: tuple[Submission, ...] = ()
    submits_names: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number and not a class."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """The number of outputs of the head: one for each class, or 1 for a regression."""
        return len(self.labels) or 1

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the metrics in records; for a function its `__name__`."""
        return tuple(metric if isinstance(metric, str) else metric.__name__ for metric in self.metrics)

    @property
    def main_metric(self) -> str:
        """The name of the metric that tables show and epochs are selected by; higher is better."""
        return self.metric_names[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, then the evaluation splits."""
        return ("train", *self.eval_splits)

    @property
    def train_rows(self) -> int | None:
        """The official number of rows of the train split, if known."""
        return self.rows[0] if self.rows else None

    @property
    def eval_rows(self) -> int | None:
        """The official number of rows of all evaluation splits together, if known."""
        return sum(self.rows[1:]) if self.rows else None

    @property
    def eval_length(self) -> float:
        """The mean length of evaluated sequences over that of training sequences."""
        return self.eval_mean_tokens / self.mean_tokens if self.eval_mean_tokens and self.mean_tokens else 1.0

    @property
    def official_rows(self) -> frozenset[int]:
        """The numbers of rows of the official files."""
        return frozenset((*self.rows, *(test.rows for test in self.submissions)))

    @property
    def column_names(self) -> tuple[ColumnNames, ...]:
        """The names that the columns may have in a file: those of the source, then those of GLUE's own download."""
        columns = {} if self.source is None else self.source.columns
        label = "label" if self.source is None else self.source.label
        in_source = ColumnNames(tuple(columns.get(name, name) for name in self.columns), label)
        return (in_source,) if self.tsv is None else (in_source, ColumnNames(self.tsv.columns, self.tsv.label))


def metric_of_split(name: str) -> tuple[str, str]:
    """Return the metric and the evaluation split of a name such as `accuracy_matched`."""
    metric, _, suffix = name.partition("_")
    return metric, f"validation_{suffix}"


registry = Registry[Task]("task")

TASKS: Mapping[str, Task] = registry.entries
BROKEN: Mapping[str, str] = registry.broken


def get(name: str) -> Task:
    """Return the task of a name.

    Raises:
        BenchError: Exit code 2 if there is none, with the most similar name; 3 if its package cannot be loaded.
    """
    return registry.get(name)


def of(cell: Cell) -> Task:
    """Return the task of a cell."""
    return get(cell.task)


def origin(name: str) -> str | None:
    """Return the origin of a task, `<file>@<12 hex of its SHA-256>`; None for GLUE's."""
    return registry.origin(name)
