"""The nine GLUE tasks, one record each: columns, labels, metrics, row counts, and how GLUE's own files spell them.

Sources: Wang et al. 2019 (arXiv 1804.07461) for the tasks and metrics, the Hub's `nyu-mll/glue` for the column names,
the order of the labels and the rows of each split; the rows of the test splits as published submissions count them,
their file names and label names as several public exporters write them. Adding a task is adding a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from lora_bench.errors import unknown

HUB_ID = "nyu-mll/glue"
HUB_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


@dataclass(frozen=True, slots=True)
class Tsv:
    """How a task lies in GLUE's own download: tab-separated, never quoted.

    `columns` are GLUE's names of the task's text columns, in the task's order; `label` that of the label column.
    `names` gives the columns of a split with labels that has no header (CoLA). `from_quoted`: GLUE cut the files, line
    by line, from one whose fields are quoted (QQP): the few rows that a line break has cut are left out, and the quotes
    of the others stay, as the Hub has it.
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


@dataclass(frozen=True, slots=True)
class Task:
    """One GLUE task. Labels are in the Hub's order (label 0 first); no labels means regression on [0, 5].

    `metrics`: the first is the main one. `accuracy_matched` is `accuracy` over the split `validation_matched` alone.
    `eval_splits`: (official split, rows) pairs; there is more than one for MNLI only. `mean_tokens`: tokens of
    RoBERTa's tokenizer a training sequence cut at 128, where they were counted; `token_spread`: their
    standard deviation over their mean (costs are predicted from both). `submits_names`: the leaderboard takes names of
    labels, not numbers.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train_rows: int
    eval_splits: tuple[tuple[str, int], ...]
    tsv: Tsv
    submissions: tuple[Submission, ...] = ()
    mean_tokens: float | None = None
    token_spread: float = 0.5
    submits_names: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number (STS-B) and not a class."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Outputs of the head: one a class, or 1 for regression."""
        return len(self.labels) or 1

    @property
    def main_metric(self) -> str:
        """The metric that tables show and epochs are chosen by; higher is better."""
        return self.metrics[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, then the evaluation splits."""
        return ("train", *(name for name, _ in self.eval_splits))

    @property
    def official_rows(self) -> frozenset[int]:
        """How many rows GLUE's own files have, one number a split."""
        return frozenset((self.train_rows, *dict(self.eval_splits).values(), *(test.rows for test in self.submissions)))

    @property
    def eval_rows(self) -> int:
        """Official rows of all evaluation splits together."""
        return sum(rows for _, rows in self.eval_splits)


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")


def _validation(rows: int) -> tuple[tuple[str, int], ...]:
    return (("validation", rows),)


_RECORDS = (
    Task(
        name="cola",
        title="CoLA",
        columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        train_rows=8551,
        eval_splits=_validation(1043),
        tsv=Tsv(folder="CoLA", columns=("sentence",), names=("source", "label", "mark", "sentence")),
        submissions=(Submission("test", "CoLA", 1063),),
        mean_tokens=11.4,
        token_spread=0.35,
    ),
    Task(
        name="sst2",
        title="SST-2",
        columns=("sentence",),
        labels=("negative", "positive"),
        metrics=("accuracy",),
        train_rows=67349,
        eval_splits=_validation(872),
        tsv=Tsv(folder="SST-2", columns=("sentence",)),
        submissions=(Submission("test", "SST-2", 1821),),
        mean_tokens=14.4,
        token_spread=0.65,
    ),
    Task(
        name="mrpc",
        title="MRPC",
        columns=_PAIR,
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        train_rows=3668,
        eval_splits=_validation(408),
        tsv=Tsv(folder="MRPC", columns=("#1 String", "#2 String"), label="Quality"),
        submissions=(Submission("test", "MRPC", 1725),),
        mean_tokens=54.1,
        token_spread=0.24,
    ),
    Task(
        name="stsb",
        title="STS-B",
        columns=_PAIR,
        labels=(),
        metrics=("pearson", "spearman"),
        train_rows=5749,
        eval_splits=_validation(1500),
        tsv=Tsv(folder="STS-B", columns=_PAIR, label="score"),
        submissions=(Submission("test", "STS-B", 1379),),
        mean_tokens=29.1,
        token_spread=0.49,
    ),
    Task(
        name="qqp",
        title="QQP",
        columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        train_rows=363846,
        eval_splits=_validation(40430),
        tsv=Tsv(folder="QQP", columns=("question1", "question2"), label="is_duplicate", from_quoted=True),
        submissions=(Submission("test", "QQP", 390965),),
    ),
    Task(
        name="mnli",
        title="MNLI",
        columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy", "accuracy_matched", "accuracy_mismatched"),
        train_rows=392702,
        eval_splits=(("validation_matched", 9815), ("validation_mismatched", 9832)),
        tsv=Tsv(folder="MNLI", columns=_PAIR, label="gold_label"),
        submissions=(Submission("test_matched", "MNLI-m", 9796), Submission("test_mismatched", "MNLI-mm", 9847)),
        submits_names=True,
    ),
    Task(
        name="qnli",
        title="QNLI",
        columns=("question", "sentence"),
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        train_rows=104743,
        eval_splits=_validation(5463),
        tsv=Tsv(folder="QNLI", columns=("question", "sentence")),
        submissions=(Submission("test", "QNLI", 5463),),
        submits_names=True,
    ),
    Task(
        name="rte",
        title="RTE",
        columns=_PAIR,
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        train_rows=2490,
        eval_splits=_validation(277),
        tsv=Tsv(folder="RTE", columns=_PAIR),
        submissions=(Submission("test", "RTE", 3000),),
        mean_tokens=67.5,
        token_spread=0.48,
        submits_names=True,
    ),
    Task(
        name="wnli",
        title="WNLI",
        columns=_PAIR,
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        train_rows=635,
        eval_splits=_validation(71),
        tsv=Tsv(folder="WNLI", columns=_PAIR),
        submissions=(Submission("test", "WNLI", 146),),
        mean_tokens=37.7,
        token_spread=0.41,
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _RECORDS})


def get(name: str) -> Task:
    """The task called `name`. Raises BenchError (usage), naming the nearest task, when there is none."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


# GLUE's diagnostic set: it has a test split alone, which a model of MNLI answers.
DIAGNOSTIC = replace(
    TASKS["mnli"],
    name="ax",
    title="AX",
    submissions=(Submission("test", "AX", 1104),),
    tsv=Tsv(folder="diagnostic", columns=_PAIR),
)


def tsv_file(split: str) -> str:
    """GLUE's file name of an official split: `validation_matched` is `dev_matched.tsv`."""
    return split.replace("validation", "dev") + ".tsv"
