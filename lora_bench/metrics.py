"""GLUE's metrics, by scikit-learn and scipy, and the same as an `evaluate.Metric` that needs no network.

There is one definition of each metric, in this file; `score` is what the trainer calls, `glue_metric` wraps it.
A value that is undefined (correlation of a constant, no rows, a NaN among the predictions) is NaN, never a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_bench.tasks import Task

if TYPE_CHECKING:
    import evaluate  # type: ignore[import-untyped, unused-ignore]

Values = NDArray[Any]


def _matthews(predictions: Values, references: Values) -> float:
    from sklearn.metrics import matthews_corrcoef  # type: ignore[import-untyped, unused-ignore]

    return float(matthews_corrcoef(references, predictions))


def _accuracy(predictions: Values, references: Values) -> float:
    from sklearn.metrics import accuracy_score  # type: ignore[import-untyped, unused-ignore]

    return float(accuracy_score(references, predictions))


def _f1(predictions: Values, references: Values) -> float:
    from sklearn.metrics import f1_score  # type: ignore[import-untyped, unused-ignore]

    return float(f1_score(references, predictions, zero_division=0.0))


def _pearson(predictions: Values, references: Values) -> float:
    from scipy.stats import pearsonr  # type: ignore[import-untyped, unused-ignore]

    return float(pearsonr(predictions, references)[0]) if len(references) > 1 else float("nan")


def _spearman(predictions: Values, references: Values) -> float:
    from scipy.stats import spearmanr  # type: ignore[import-untyped, unused-ignore]

    return float(spearmanr(predictions, references)[0]) if len(references) > 1 else float("nan")


METRICS: Mapping[str, Callable[[Values, Values], float]] = {
    "matthews": _matthews,
    "accuracy": _accuracy,
    "f1": _f1,
    "pearson": _pearson,
    "spearman": _spearman,
}


def score(
    task: Task, predictions: ArrayLike, references: ArrayLike, splits: Mapping[str, slice] | None = None
) -> dict[str, float]:
    """The task's metrics over N rows: `predictions` [N] class ids or scores, `references` [N] labels.

    `splits` says which rows are of which official split; metrics of one split alone (MNLI's `accuracy_matched`) are
    left out without it, as on a slice of train. Values lie in [-1, 1], or are NaN where undefined.
    Raises ValueError when the shapes differ.
    """
    found, true = np.asarray(predictions), np.asarray(references)
    if found.shape != true.shape or found.ndim != 1:
        raise ValueError(f"predictions {found.shape} and references {true.shape} must be of one length")
    result: dict[str, float] = {}
    for name in task.metrics:
        kind, _, part = name.partition("_")
        if not part:
            result[name] = _value(kind, found, true)
        elif splits is not None:
            rows = splits[f"validation_{part}"]
            result[name] = _value(kind, found[rows], true[rows])
    return result


def _value(kind: str, predictions: Values, references: Values) -> float:
    if not len(references) or not np.isfinite(predictions).all():
        return float("nan")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # both libraries warn of what NaN says already
        return METRICS[kind](predictions, references)


def glue_metric(task: Task) -> evaluate.Metric:
    """The task's metrics as an `evaluate.Metric`: `glue_metric(task).compute(predictions=..., references=...)`."""
    metric: evaluate.Metric = metric_class()(task)
    return metric


@cache
def metric_class() -> Any:
    """`GlueMetric`, a subclass of `evaluate.Metric`; made on the first call, as `evaluate` is slow to import."""
    import datasets  # type: ignore[import-untyped, unused-ignore]
    import evaluate  # type: ignore[import-untyped, unused-ignore]

    class GlueMetric(evaluate.Metric):  # type: ignore[misc, unused-ignore]
        """`score` behind the interface of `evaluate`; `compute` also takes `splits`, as `score` does."""

        def __init__(self, task: Task) -> None:
            self.task = task
            super().__init__(config_name=task.name, keep_in_memory=True)

        def _info(self) -> evaluate.MetricInfo:
            value = datasets.Value("float64" if self.task.is_regression else "int64")
            return evaluate.MetricInfo(
                description=f"GLUE's metrics for {self.task.title}: {', '.join(self.task.metrics)}.",
                citation="",
                inputs_description="",
                features=datasets.Features({"predictions": value, "references": value}),
            )

        def _compute(
            self, predictions: ArrayLike, references: ArrayLike, splits: Mapping[str, slice] | None = None
        ) -> dict[str, float]:
            return score(self.task, predictions, references, splits)

    return GlueMetric
