"""What the examples add to the uncertainty of a score, from the predictions in the records; no labels are needed.

A mean score over seeds is, to first order, a mean over examples i of a value f_i. Its variance over examples, and its
covariance with that of another entry, need second moments of f alone, in the form of a kernel K(e, e') that is bilinear
in two vectors of each entry: W (with weights that depend on the task) and Q.

**Accuracy, two classes.** The correctness of prediction p_i and label v_i, both coded ±1, is (1 + v_i p_i) / 2. The
label is unknown, but its square is 1, so that W_i = mean over seeds of p_i / 2 gives second moments exactly.

**Accuracy, more classes.** W holds the frequency of each class among the seeds, less 1/C. The true class's entry is
bounded by (C - 1)/C times the sum of squares (the entries of an example sum to zero), which makes intervals too wide.

**Matthews correlation** is Pearson's correlation of two binary variables. With the standardised label y and prediction
p and the correlation r of a seed, the value of an example is f = y p - r (y² + p²) / 2. For a binary label y² = k y + 1
with k = (1 - 2π) / sqrt(π (1 - π)), π the share of ones, so that f is linear in y: f = y W - Q with W = mean(p) - k r/2
and Q = mean(r (1 + p²) / 2). The square needs y itself, in a term that is small where the classes are balanced.

**Labels.** Each recorded accuracy is one linear equation on the labels. With more cells than examples they have one
solution; with fewer, the shortest one estimates them.

For any other metric, or without predictions, nothing is added.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_bench.report.numbers.entries import AVERAGE, Column, Scope
from lora_bench.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame

    from lora_bench.records.schema import Record

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

_CELLS_PER_EXAMPLE = 3  # cells that the estimate of the labels uses at most, per example; chosen
_RIDGE = 1e-6  # relative, so that the equations can be solved when cells repeat each other; chosen
_LABEL_DECIMALS = 3  # of an estimate, so that the rounding of the solution does not show; chosen


@dataclass(frozen=True)
class ExampleTerms:
    """The vectors of a column's entries, in the order of the entries.

    Attributes:
        weights: Of the products of W, per example.
        labels: The standardised labels or their estimates; zeros where they are not needed.
        w: `[entries, examples]`.
        q: `[entries, examples]`, or None if all are zero.
        centre: The mean of f for each entry.
        seed_part: The part of an entry's variance that the variation between its seeds explains.
        known: Whether an entry has predictions.
        rows: The number of examples.
    """

    weights: FloatArray
    labels: FloatArray
    w: FloatArray
    q: FloatArray | None
    centre: FloatArray
    seed_part: FloatArray
    known: NDArray[np.bool_]
    rows: int

    def covariance(self, first: IntArray, second: IntArray) -> FloatArray:
        """Return the covariance over examples of pairs of entries, beyond what their seeds explain."""
        import numpy as np

        if np.array_equal(first, second):
            moments = _kernel(self.w[first], self._q(first), self.weights, self.labels, self.rows)
        else:
            used, index = np.unique(np.concatenate([first, second]), return_inverse=True)
            moments = self._gram(used)[index[: len(first)], index[len(first) :]]
        result = moments - self.centre[first] * self.centre[second]
        result = result - np.where(first == second, self.seed_part[first], 0.0)
        return np.where(self.known[first] & self.known[second], result / max(self.rows - 1, 1), 0.0)

    def _gram(self, used: IntArray) -> FloatArray:
        """Return the second moments of all pairs of some entries."""
        w, q = self.w[used], self._q(used)
        gram: FloatArray = (w * self.weights) @ w.T
        if q is not None:
            mixed = (w * self.labels) @ q.T
            gram = gram + q @ q.T - mixed - mixed.T
        return gram / self.rows

    def _q(self, used: IntArray) -> FloatArray | None:
        return None if self.q is None else self.q[used]

    def examples(self) -> float:
        """Return the number of examples."""
        return float(self.rows)


@dataclass(frozen=True)
class AverageTerms:
    """The terms of an average over tasks: each part has a task's terms, and the position of each entry in them."""

    parts: tuple[tuple[ExampleTerms, IntArray], ...]
    tasks: int

    def covariance(self, first: IntArray, second: IntArray) -> FloatArray:
        """Return the covariance of pairs of averages: examples of different tasks are independent."""
        import numpy as np

        total = np.zeros(len(first))
        for terms, positions in self.parts:
            total += terms.covariance(positions[first], positions[second])
        return total / self.tasks**2

    def examples(self) -> float:
        """Return the smallest number of examples of a task."""
        return min((terms.examples() for terms, _ in self.parts), default=math.inf)


def example_terms(scope: Scope) -> Mapping[str, ExampleTerms | AverageTerms]:
    """Return the terms of each task with predictions, and those of the average."""
    import numpy as np

    by_task: dict[str, ExampleTerms | AverageTerms] = {}
    parts = []
    for column in scope.tasks:
        terms = _task_terms(scope, column)
        if terms is not None:
            by_task[column.task] = terms
            if column.task in scope.averaged:
                parts.append((terms, column))
    if scope.main.task == AVERAGE and parts:
        arms = scope.at(scope.main)["arm"]
        positions = []
        for terms, column in parts:
            task_arms = scope.at(column)["arm"]
            position_of = dict(zip(task_arms, range(len(task_arms)), strict=True))
            positions.append((terms, np.array([position_of[arm] for arm in arms], dtype=np.int64)))
        by_task[AVERAGE] = AverageTerms(tuple(positions), len(scope.averaged))
    return by_task


def counts_examples(task: str, metric: str) -> bool:
    """Whether a task's examples can add to the uncertainty of its scores: what they add is known for few metrics."""
    classes = len(TASKS[task].labels) if task in TASKS else 0
    return (metric == "accuracy" and classes >= 2) or (metric == "matthews" and classes == 2)


def _task_terms(scope: Scope, column: Column) -> ExampleTerms | None:
    """Return the terms of a task; None where the metric or the predictions do not allow them."""
    if not counts_examples(column.task, column.metric):
        return None
    classes = len(TASKS[column.task].labels)
    cells = scope.cells[(scope.cells["task"] == column.task) & scope.cells["score"].notna()]
    cells = _comparable_cells(cells)
    if cells.empty:
        return None
    import numpy as np

    entries = scope.at(column)
    predictions, members = _predictions(cells), _members(entries, cells)
    if column.metric == "accuracy":
        return accuracy_terms(predictions, entries["mean"].to_numpy(dtype=float), members, classes)
    accuracies = np.array([_accuracy(record) for record in cells["record"]], dtype=float)
    return matthews_terms(predictions, accuracies, cells["score"].to_numpy(dtype=float), members)


def _comparable_cells(cells: DataFrame) -> DataFrame:
    """Return the cells with predictions on the rows that most of them were evaluated on."""
    rows = [_evaluated_rows(record) for record in cells["record"]]
    counts = Counter(name for name in rows if name is not None)
    if not counts:
        return cells.iloc[:0]
    most = min(counts, key=lambda name: (-counts[name], name))
    return cells[[name == most for name in rows]]


def _evaluated_rows(record: Record) -> str | None:
    """Identify the rows that predictions belong to; the fingerprint of the evaluated rows follows that of train."""
    if not record.predictions or record.data is None or _accuracy(record) is None:
        return None
    return f"{record.data.fingerprint.rpartition('+')[2]} {len(record.predictions)}"


def _accuracy(record: Record) -> float | None:
    """Return the accuracy of the stored predictions, which are those of the selected epoch."""
    return None if record.selected_epoch is None else record.selected_epoch.metrics.get("accuracy")


def _predictions(cells: DataFrame) -> FloatArray:
    import numpy as np

    return np.array([record.predictions for record in cells["record"]], dtype=float)


def _members(entries: DataFrame, cells: DataFrame) -> list[IntArray]:
    """Return for each entry the positions of its cells; none unless all of its scored seeds are there."""
    import numpy as np

    by_entry = cells.groupby("entry").indices
    nothing = np.zeros(0, dtype=np.int64)
    positions = (np.asarray(by_entry.get(entry, nothing), dtype=np.int64) for entry in entries.index)
    return [cells_at if len(cells_at) == n else nothing for cells_at, n in zip(positions, entries["n"], strict=True)]


def accuracy_terms(
    predictions: FloatArray, means: FloatArray, members: Sequence[IntArray], classes: int
) -> ExampleTerms:
    """Return the terms of an accuracy.

    Args:
        predictions: Class ids, `[cells, examples]`.
        means: The mean accuracy of each entry.
        members: The positions of each entry's cells; none if its predictions are not known.
        classes: The number of classes.
    """
    import numpy as np

    rows = predictions.shape[1]
    if classes == 2:
        vectors = predictions - 0.5
    else:
        one_hot = (predictions[:, :, None] == np.arange(classes)).astype(float) - 1 / classes
        vectors = math.sqrt((classes - 1) / classes) * one_hot.reshape(len(predictions), -1)
    known = np.array([len(positions) > 0 for positions in members])
    seed_part = np.zeros(len(members))
    if classes == 2:  # with more classes the bound would take too much away
        for index, positions in enumerate(members):
            if len(positions) > 1:
                seed_part[index] = float(vectors[positions].var(axis=0, ddof=1).mean()) / len(positions)
    centre = np.where(known, means - 1 / classes, 0.0)
    w = np.array([_mean_row(vectors, positions) for positions in members])
    width = vectors.shape[1]
    return ExampleTerms(np.ones(width), np.zeros(width), w, None, centre, seed_part, known, rows)


def _mean_row(vectors: FloatArray, positions: IntArray) -> FloatArray:
    import numpy as np

    return vectors[positions].mean(axis=0) if len(positions) else np.zeros(vectors.shape[1])


def matthews_terms(
    predictions: FloatArray, accuracies: FloatArray, scores: FloatArray, members: Sequence[IntArray]
) -> ExampleTerms | None:
    """Return the terms of a Matthews correlation; None if no cell predicts both classes.

    Args:
        predictions: 0 or 1, `[cells, examples]`.
        accuracies: Of the cells.
        scores: The Matthews correlations of the cells.
        members: The positions of each entry's cells; none if its predictions are not known.
    """
    import numpy as np

    share = share_of_ones(predictions, accuracies, scores)
    if share is None:
        return None
    deviation = math.sqrt(share * (1 - share))
    labels = ((estimate_labels(predictions, accuracies, share) + 1) / 2 - share) / deviation
    slope = (1 - 2 * share) / deviation
    positive = predictions.mean(axis=1, keepdims=True)
    spread = np.sqrt(positive * (1 - positive))
    # A cell that predicts one class alone has no correlation and no variance to first order.
    standard = np.divide(predictions - positive, spread, out=np.zeros_like(predictions), where=spread > 0)
    w_of_cell = standard - slope * scores[:, None] / 2
    q_of_cell = scores[:, None] * (1 + standard**2) / 2
    w = np.array([_mean_row(w_of_cell, positions) for positions in members])
    q = np.array([_mean_row(q_of_cell, positions) for positions in members])
    weights = 1 + slope * labels
    rows = predictions.shape[1]
    seed_part = np.zeros(len(members))
    whole = _kernel(w, q, weights, labels, rows)
    single = _kernel(w_of_cell, q_of_cell, weights, labels, rows)
    for index, positions in enumerate(members):
        if len(positions) > 1:
            seed_part[index] = max(0.0, float(single[positions].mean() - whole[index])) / (len(positions) - 1)
    known = np.array([len(positions) > 0 for positions in members])
    return ExampleTerms(weights, labels, w, q, np.zeros(len(members)), seed_part, known, rows)


def _kernel(w: FloatArray, q: FloatArray | None, weights: FloatArray, labels: FloatArray, rows: int) -> FloatArray:
    """Return the second moment of f over examples, for each row."""
    moments: FloatArray = (w**2 * weights).sum(axis=1)
    if q is not None:
        moments = moments + (q**2 - 2 * w * q * labels).sum(axis=1)
    return moments / rows


def share_of_ones(predictions: FloatArray, accuracies: FloatArray, scores: FloatArray) -> float | None:
    """Return the share of examples with label 1, from the accuracy and the Matthews correlation of each cell.

    With the share q of predicted ones and the accuracy α, the share of true positives is (α + π + q - 1) / 2, from
    which the correlation follows. Of all possible counts of ones the one is taken that fits the recorded values best.

    Returns:
        The share; None if no cell predicts both classes.
    """
    import numpy as np

    rows = predictions.shape[1]
    predicted = predictions.mean(axis=1)
    useful = (predicted > 0) & (predicted < 1)
    if not useful.any() or rows < 2:
        return None
    predicted, accuracies, scores = (values[useful][:, None] for values in (predicted, accuracies, scores))
    shares = np.arange(1, rows) / rows
    hits = (accuracies + shares + predicted - 1) / 2
    implied = (hits - shares * predicted) / np.sqrt(shares * (1 - shares) * predicted * (1 - predicted))
    return float(shares[np.argmin(((implied - scores) ** 2).sum(axis=0))])


def estimate_labels(predictions: FloatArray, accuracies: FloatArray, share: float) -> FloatArray:
    """Return the labels as ±1, or the shortest vector in [-1, 1] that agrees with the recorded accuracies.

    Args:
        predictions: 0 or 1, `[cells, examples]`.
        accuracies: Of the cells.
        share: The share of ones.
    """
    import numpy as np

    rows = predictions.shape[1]
    used = slice(0, _CELLS_PER_EXAMPLE * rows)
    coded = np.vstack([2 * predictions[used] - 1, np.ones((1, rows))])
    targets = rows * np.append(2 * accuracies[used] - 1, 2 * share - 1)
    if len(coded) < rows:
        gram = coded @ coded.T
        solution = coded.T @ np.linalg.solve(gram + _RIDGE * rows * np.eye(len(gram)), targets)
    else:
        gram = coded.T @ coded
        solution = np.linalg.solve(gram + _RIDGE * len(coded) * np.eye(rows), coded.T @ targets)
    signs = np.where(solution >= 0, 1.0, -1.0)
    # If whole labels agree with every accuracy, they are the labels.
    exact = bool(np.abs(coded @ signs - targets).max() < 0.5)
    return signs if exact else np.round(np.clip(solution, -1.0, 1.0), _LABEL_DECIMALS)
