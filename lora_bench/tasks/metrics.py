"""The metrics of the tasks, computed with scikit-learn and scipy, and offered as a metric of `evaluate`.

`score` computes the metrics of a task. `TaskMetric` gives `score` the interface of `evaluate` without loading anything
from the network; the trainer uses it. Where a metric is undefined (correlation of a constant, no rows, NaN among the
predictions), its value is NaN, without a warning.
"""

from __future__ import annotations

import math
import numbers
import reprlib
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_bench.errors import BenchError
from lora_bench.tasks.task import MetricFunction, Task, metric_of_split

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


def _macro_f1(predictions: Values, references: Values) -> float:
    """The mean F1 of the classes that occur in the labels or the predictions."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=0.0))


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
    "macro_f1": _macro_f1,
    "pearson": _pearson,
    "spearman": _spearman,
}


def score(
    task: Task, predictions: ArrayLike, references: ArrayLike, splits: Mapping[str, slice] | None = None
) -> dict[str, float]:
    """Compute the task's metrics.

    Args:
        task: The task.
        predictions: Class numbers, or values for a regression, `[N]`.
        references: The labels, `[N]`.
        splits: The rows of each evaluation split. Without it, as for rows held out from the train split, metrics of a
            single split (MNLI's `accuracy_matched`) are left out.

    Returns:
        The values by name, from -1 to 1, or NaN where undefined.

    Raises:
        ValueError: If the shapes differ.
        BenchError: If a user's metric returns anything else.
    """
    predicted, true = np.asarray(predictions), np.asarray(references)
    if predicted.shape != true.shape or predicted.ndim != 1:
        raise ValueError(
            f"predictions {predicted.shape} and references {true.shape} must have the same length, in one dimension"
        )
    result: dict[str, float] = {}
    for name, metric in zip(task.metric_names, task.metrics, strict=True):
        if not isinstance(metric, str):
            result[name] = _value(_checked(metric), predicted, true)
        elif metric in METRICS:
            result[name] = _value(METRICS[metric], predicted, true)
        elif splits is not None:
            kind, split = metric_of_split(metric)
            rows = splits[split]
            result[name] = _value(METRICS[kind], predicted[rows], true[rows])
    return result


def _value(metric: MetricFunction, predictions: Values, references: Values) -> float:
    if not len(references) or not np.isfinite(predictions).all():
        return float("nan")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # both libraries warn where the value is NaN
        return metric(predictions, references)


def _checked(function: MetricFunction) -> MetricFunction:
    """Wrap a user's metric: check its return value, and give it copies so that it cannot change other metrics."""

    def checked(predictions: Values, references: Values) -> float:
        value: Any = function(predictions.copy(), references.copy())
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if is_number and (math.isnan(value) or -1 <= value <= 1):
            return float(value)
        code = function.__code__
        where = f"'{code.co_filename}', line {code.co_firstlineno}"
        shown = " ".join(reprlib.repr(value).split())
        raise BenchError(
            f"{where}: {function.__name__} returned {shown}, not a number from -1 to 1.",
            "Correct the file; `lora-bench check FILE` tries each part of it.",
        )

    return checked


def task_metric(task: Task) -> evaluate.Metric:
    """Return the task's metrics as an `evaluate.Metric`; see `metric_class`."""
    metric: evaluate.Metric = metric_class()(task)
    return metric


@cache
def metric_class() -> Any:
    """Define and return `TaskMetric`, a subclass of `evaluate.Metric`, when called, as `evaluate` is slow to import."""
    import datasets  # type: ignore[import-untyped, unused-ignore]
    import evaluate  # type: ignore[import-untyped, unused-ignore]

    class TaskMetric(evaluate.Metric):  # type: ignore[misc, unused-ignore]
        """The metrics of a task, for one cell or for K cells at once.

        `compute(predictions=..., references=...)` returns the value of each metric for arguments `[N]`, and a list of K
        values of each metric for arguments `[K, N]`. The trainer makes one call for all cells of a pack, since each
        call has an overhead of milliseconds. `compute` also takes `splits`, as `score` does.
        """

        def __init__(self, task: Task) -> None:
            self.task = task
            super().__init__(config_name=task.name, keep_in_memory=True)

        def _build_data_dir(self) -> str:
            """Use no folder: `evaluate` would create one in the user's cache, which may not be writable."""
            return ""

        def _info(self) -> evaluate.MetricInfo:
            # 64 bits round no value. Predictions are float because those of classes may be NaN; labels are float32.
            prediction = datasets.Value("float64")
            reference = datasets.Value("float64" if self.task.is_regression else "int64")
            return evaluate.MetricInfo(
                description=f"The metrics of {self.task.title}: {', '.join(self.task.metric_names)}.",
                citation="",
                inputs_description="",
                features=[
                    datasets.Features({"predictions": prediction, "references": reference}),
                    datasets.Features(
                        {"predictions": datasets.Sequence(prediction), "references": datasets.Sequence(reference)}
                    ),
                ],
            )

        def _compute(
            self, predictions: ArrayLike, references: ArrayLike, splits: Mapping[str, slice] | None = None
        ) -> dict[str, Any]:
            predicted = np.asarray(predictions, dtype=np.float64)
            true = np.asarray(references, dtype=np.float64 if self.task.is_regression else np.int64)
            if predicted.ndim == 1:
                return score(self.task, predicted, true, splits)
            scores = [score(self.task, *rows, splits) for rows in zip(predicted, true, strict=True)]
            return {name: [values[name] for values in scores] for name in scores[0]}

    return TaskMetric
