"""Intervals and paired tests of slots: which predictions belong together, and what of them is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.report.numbers.rows import Row
from lora_bench.report.numbers.slots import Column, Slot
from lora_bench.report.numbers.statistics import (
    Interval,
    Spread,
    accuracy_spread,
    difference_spread,
    over_seeds,
    paired_over_examples,
    with_examples,
)
from lora_bench.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """What the examples say of two slots: p of the paired test on accuracy, its size, agreement, the spread.

    `bound`: the test is a bound (more than two classes), its p is at most too large.
    """

    p: float | None
    difference: float
    agreement: float
    rows: int
    spread: Spread
    bound: bool


def slot_interval(column: Column, slot: Slot) -> Interval | None:
    """95% interval of the slot's score within the metric's range: over seeds, and over examples for an accuracy."""
    scores = list(slot.scores.values())
    seeds = over_seeds(scores)
    cells = [cell for cell in slot.cells if cell["score"] is not None]
    known = _predictions(cells) if column.metric == "accuracy" and _classes(column.task) else None
    if seeds is not None and known is not None:
        mean = sum(scores) / len(scores)
        spread = accuracy_spread(known, mean, _classes(column.task) == 2)
        seeds = with_examples(seeds, mean, spread.added, known.shape[1])
    lowest = 0.0 if column.metric.startswith(("accuracy", "f1")) else -1.0
    return None if seeds is None else Interval(max(lowest, seeds.low), min(1.0, seeds.high))


def compare_examples(column: Column, first: Sequence[Row], second: Sequence[Row]) -> Examples | None:
    """Cells of the same seeds, in the same order, example by example; None where their rows are not the same."""
    same = {_evaluation(cell) for cell in (*first, *second)}
    one, other = _predictions(first), _predictions(second)
    accuracies = [_accuracy(cell) for cell in (*first, *second)]
    if len(same) != 1 or None in same or one is None or other is None or None in accuracies:
        return None
    if one.shape != other.shape or not _classes(column.task):
        return None
    known = [value for value in accuracies if value is not None]
    difference = (sum(known[: len(first)]) - sum(known[len(first) :])) / len(first)
    two = _classes(column.task) == 2
    spread = difference_spread(one, other, difference, two)
    p = paired_over_examples(difference, spread.cells, one.shape[1])
    return Examples(p, difference, float((one == other).mean()), one.shape[1], spread, not two)


def _classes(task: str) -> int:
    """How many classes the task has; 0 where it has none, or is unknown."""
    return len(TASKS[task].labels) if task in TASKS else 0


def _evaluation(cell: Row) -> str | None:
    """The fingerprint of the rows that were predicted: the part after train's."""
    data = cell["record"].data
    return None if data is None else str(data.fingerprint).rpartition("+")[2]


def _accuracy(cell: Row) -> float | None:
    """The accuracy of the stored predictions, those of the selected epoch."""
    record = cell["record"]
    epoch = next((each for each in record.epochs if each.epoch == record.score_epoch), None)
    return None if epoch is None else epoch.metrics.get("accuracy")


def _predictions(cells: Sequence[Row]) -> NDArray[np.float64] | None:
    """[cells, rows], None where they are missing or differ in length."""
    import numpy as np

    stored: list[Any] = [cell["record"].predictions for cell in cells]
    lengths = {len(each) for each in stored}
    return np.asarray(stored, dtype=float) if len(lengths) == 1 and 0 not in lengths else None
