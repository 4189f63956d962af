"""The contracts of a task: its data are complete, its metrics are scores, and a cell of it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lora_bench import data, tasks
from lora_bench.contracts.kit import Workbench, cell_of, require, train
from lora_bench.data import DataSource, TaskData
from lora_bench.tasks import Task
from lora_bench.tasks.metrics import Values, score

ORDERS = 8  # chosen: with two classes, a metric that reads the first row only passes with probability 2**-8 or so


class TaskBench:
    """A task with its rows, which are read only once, and a tiny encoder."""

    def __init__(self, name: str, bench: Workbench) -> None:
        self.task: Task = tasks.get(name)
        self.bench = bench
        self._rows: TaskData | None = None

    @property
    def rows(self) -> TaskData:
        """The rows of all splits, from the task's own source."""
        if self._rows is None:
            self._rows = data.load(self.task, DataSource.parse())
        return self._rows

    def labels(self) -> tuple[Values, dict[str, slice]]:
        """Return the labels of all evaluation splits, one after another, and the rows of each split."""
        evals = self.rows.evals
        ends = np.cumsum([len(rows) for rows in evals.values()]).tolist()
        splits = {name: slice(end - len(rows), end) for (name, rows), end in zip(evals.items(), ends, strict=True)}
        return np.concatenate([rows.labels for rows in evals.values()]), splits

    def scores(
        self, predictions: Values, labels: Values, splits: Mapping[str, slice] | None = None
    ) -> dict[str, float]:
        """Return the metrics of predictions, which are float64 as in the trainer."""
        return score(self.task, predictions.astype(np.float64), labels, splits)


def its_source_has_every_split(bench: TaskBench) -> None:
    """every split is there, with its columns, and each label is one of the task's"""
    require(set(bench.rows.evals) == set(bench.task.eval_splits), "an evaluation split is missing")


def its_labels_occur(bench: TaskBench) -> None:
    """every label occurs in the train split, and the evaluation splits have at least two"""
    train_labels = set(bench.rows.train.labels.tolist())
    missing = [name for label, name in enumerate(bench.task.labels) if label not in train_labels]
    require(not missing, f"no row of the train split has the label {', '.join(missing)}")
    require(len(train_labels) > 1, "all rows of the train split have one label")
    for split, rows in bench.rows.evals.items():
        require(len(set(rows.labels.tolist())) > 1, f"all rows of '{split}' have one label")


def its_metrics_prefer_what_is_right(bench: TaskBench) -> None:
    """each metric is a number where every prediction is right, and higher than where every one is wrong"""
    labels, splits = bench.labels()
    wrong = -labels if bench.task.is_regression else (labels + 1) % bench.task.num_outputs
    best, worst = bench.scores(labels, labels, splits), bench.scores(wrong, labels, splits)
    for name, value in best.items():
        require(not math.isnan(value), f"{name} is not defined where every prediction is right")
        require(
            not value <= worst[name], f"{name} is {value:g} for right predictions and {worst[name]:g} for wrong ones"
        )


def its_metrics_do_not_depend_on_the_order(bench: TaskBench) -> None:
    """each metric is the same for the same rows in another order"""
    labels, _ = bench.labels()
    random = np.random.default_rng(0)
    predictions = random.permutation(labels)
    before = bench.scores(predictions, labels)
    for _ in range(ORDERS):
        order = random.permutation(len(labels))
        after = bench.scores(predictions[order], labels[order])
        for name, value in before.items():
            equal = math.isclose(value, after[name], abs_tol=1e-6) or (math.isnan(value) and math.isnan(after[name]))
            require(equal, f"{name} is {value:g}, and {after[name]:g} in another order")


def a_cell_of_it_trains(bench: TaskBench) -> None:
    """a cell of it trains on a tiny encoder and has a score"""
    run = train([cell_of("lora", bench.task.name)], bench.bench.load("float32"), bench.task)
    (progress,) = run.progress
    require(progress.diverged is None, f"it diverged: {progress.diverged}")
    require(progress.selected is not None, "no epoch was selected")
