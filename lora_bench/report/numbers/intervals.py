"""Intervals and paired tests of entries: which predictions belong together, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.report.numbers.entries import Column, Entry
from lora_bench.report.numbers.frame import CellRow
from lora_bench.report.numbers.statistics import (
    ExampleVariance,
    Interval,
    accuracy_variance,
    add_example_variance,
    difference_variance,
    paired_example_test,
    seed_interval,
)
from lora_bench.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ExampleTest:
    """The comparison of two entries example by example.

    Attributes:
        p: the p-value of the paired test of accuracy over examples.
        difference: the mean difference in accuracy.
        agreement: the fraction of equal predictions.
        rows: the number of examples.
        variance: the variance of the difference over examples.
        bound: whether `p` is only an upper bound, as with more than two classes.
    """

    p: float | None
    difference: float
    agreement: float
    rows: int
    variance: ExampleVariance
    bound: bool


def score_interval(column: Column, entry: Entry) -> Interval | None:
    """Return the 95% interval of an entry's score, within the metric's range.

    It covers the uncertainty over seeds and, for an accuracy, over examples. None with fewer than three seeds.
    """
    scores = list(entry.scores.values())
    interval = seed_interval(scores)
    cells = [cell for cell in entry.cells if cell["score"] is not None]
    predictions = _predictions(cells) if column.metric == "accuracy" and _class_count(column.task) else None
    if interval is not None and predictions is not None:
        mean = sum(scores) / len(scores)
        variance = accuracy_variance(predictions, mean, _class_count(column.task) == 2)
        interval = add_example_variance(interval, mean, variance.beyond_seeds, predictions.shape[1])
    lowest = 0.0 if column.metric.startswith(("accuracy", "f1", "macro_f1")) else -1.0
    return None if interval is None else Interval(max(lowest, interval.low), min(1.0, interval.high))


def compare_examples(column: Column, first: Sequence[CellRow], second: Sequence[CellRow]) -> ExampleTest | None:
    """Compare two lists of cells example by example.

    Args:
        column: the task and metric.
        first: the cells of one entry.
        second: the cells of the other, with the same seeds in the same order.

    Returns:
        The comparison; None if the cells were not evaluated on the same rows, or lack predictions or an accuracy.
    """
    evaluated_rows = {_evaluation_fingerprint(cell) for cell in (*first, *second)}
    first_predictions, second_predictions = _predictions(first), _predictions(second)
    accuracies = [_accuracy(cell) for cell in (*first, *second)]
    if len(evaluated_rows) != 1 or None in evaluated_rows or None in accuracies:
        return None
    if first_predictions is None or second_predictions is None:
        return None
    if first_predictions.shape != second_predictions.shape or not _class_count(column.task):
        return None
    known = [value for value in accuracies if value is not None]
    difference = (sum(known[: len(first)]) - sum(known[len(first) :])) / len(first)
    two_classes = _class_count(column.task) == 2
    variance = difference_variance(first_predictions, second_predictions, difference, two_classes)
    examples = first_predictions.shape[1]
    p = paired_example_test(difference, variance.total, examples)
    agreement = float((first_predictions == second_predictions).mean())
    return ExampleTest(p, difference, agreement, examples, variance, not two_classes)


def _class_count(task: str) -> int:
    """Return the number of classes of a task; 0 for a regression or an unknown task."""
    return len(TASKS[task].labels) if task in TASKS else 0


def _evaluation_fingerprint(cell: CellRow) -> str | None:
    """Return the fingerprint of the evaluated rows, which follows that of the training rows."""
    data = cell["record"].data
    return None if data is None else str(data.fingerprint).rpartition("+")[2]


def _accuracy(cell: CellRow) -> float | None:
    """Return the accuracy of the stored predictions, which are those of the selected epoch."""
    record = cell["record"]
    selected = next((epoch for epoch in record.epochs if epoch.epoch == record.score_epoch), None)
    return None if selected is None else selected.metrics.get("accuracy")


def _predictions(cells: Sequence[CellRow]) -> NDArray[np.float64] | None:
    """Return the predictions `[cells, examples]`; None if some are missing or their lengths differ."""
    import numpy as np

    predictions: list[Any] = [cell["record"].predictions for cell in cells]
    lengths = {len(values) for values in predictions}
    return np.asarray(predictions, dtype=float) if len(lengths) == 1 and 0 not in lengths else None
