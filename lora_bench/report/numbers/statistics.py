"""The statistics of the report: intervals over seeds and examples, paired tests, Holm's correction.

scipy and statsmodels compute them. Seeds and examples are both samples: a mean over few seeds on one small split is
uncertain in two ways, and the intervals account for both.

**Labels are not needed.** Records store predictions, not labels. With two classes, the correctness of cell s on example
i is (1 + v_i u_si) / 2, where u is the prediction and v the label, both coded as ±1. For a pair of cells with
predictions p and q, the difference of their correctness is v_i (p_si - q_si) / 2. The sign v_i is unknown, but it
disappears when squared. So second moments over examples follow exactly from the predictions, and first moments are the
recorded accuracies. With more than two classes, the disagreement of two cells bounds the square from above, which makes
the tests conservative.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

LEVEL = 0.95
MIN_SEEDS = 3  # with fewer there is no interval and no test


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval, in the units of its values."""

    low: float
    high: float


def interval_data(interval: Interval | None) -> dict[str, float | None]:
    """Return the columns of an interval in the unrounded data."""
    return {"low": interval.low, "high": interval.high} if interval else {"low": None, "high": None}


@dataclass(frozen=True)
class ExampleVariance:
    """Variance over examples of a mean over seeds.

    Attributes:
        total: the variance for these very cells.
        beyond_seeds: the same without the part that the variation between seeds explains. An interval over seeds
            already contains that part, so this is what examples add to it.
    """

    total: float
    beyond_seeds: float


def seed_interval(values: Sequence[float]) -> Interval | None:
    """Return a 95% interval of the mean over all possible seeds; None with fewer than three values.

    The standard error is that of the bootstrap over seeds with all resamples, which for a mean is s / sqrt(n) once
    corrected by n / (n - 1). Student's quantile stands for its shape. The percentile and BCa bootstraps of five values
    cover only 80 to 88%; the studentised bootstrap covers 95%, but its limits are erratic and contradict the paired
    test.
    """
    if len(values) < MIN_SEEDS:
        return None
    mean, half = statistics.fmean(values), half_width(statistics.stdev(values), len(values))
    return Interval(mean - half, mean + half)


def add_example_variance(
    interval: Interval | None, centre: float, variance: float | None, examples: int
) -> Interval | None:
    """Widen an interval over seeds by the uncertainty from the examples.

    Args:
        interval: the interval over seeds.
        centre: the mean that it surrounds.
        variance: the variance over examples that seeds do not explain; None if it is unknown.
        examples: the number of examples.

    Returns:
        The widened interval, or the given one if the variance is unknown.
    """
    if interval is None or variance is None or examples < 2:
        return interval
    from scipy import stats

    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(variance / (examples - 1))
    return widen(interval, centre, half)


def half_width(std: float, n: int) -> float:
    """Return half the width of Student's 95% interval of a mean, from the sample standard deviation of n values."""
    return _student_quantile(n - 1) * std / math.sqrt(n)


@cache
def _student_quantile(degrees: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))


def widen(interval: Interval, centre: float, half: float) -> Interval:
    """Add an independent half-width to both sides of an interval around `centre`, in quadrature (MOVER)."""
    low = centre - math.hypot(centre - interval.low, half)
    high = centre + math.hypot(interval.high - centre, half)
    return Interval(low, high)


def sign_free_variance(values: FloatArray, mean: float) -> ExampleVariance:
    """Return the variances over examples of mean_s(v_i values[s, i]), where the signs v_i = ±1 are unknown.

    Args:
        values: `[seeds, examples]`.
        mean: the mean of the signed values over seeds and examples.
    """
    seeds = len(values)
    total = max(0.0, float((values.mean(0) ** 2).mean()) - mean**2)
    between_seeds = float(values.var(0, ddof=1).mean()) / seeds if seeds > 1 else 0.0
    return ExampleVariance(total, max(0.0, total - between_seeds))


def accuracy_variance(predictions: FloatArray, accuracy: float, two_classes: bool) -> ExampleVariance:
    """Return the variances over examples of the mean accuracy of several seeds.

    Args:
        predictions: class ids, `[seeds, examples]`.
        accuracy: the mean accuracy.
        two_classes: with two classes the result is exact. With more it is an upper bound, the variance of one cell.
    """
    if not two_classes:
        return ExampleVariance(accuracy * (1 - accuracy), accuracy * (1 - accuracy))
    return sign_free_variance(predictions - 0.5, accuracy - 0.5)


def difference_variance(first: FloatArray, second: FloatArray, difference: float, two_classes: bool) -> ExampleVariance:
    """Return the variances over examples of the mean difference in accuracy.

    Args:
        first: class ids, `[seeds, examples]`.
        second: class ids of the same seeds and examples.
        difference: the mean difference in accuracy.
        two_classes: with two classes the result is exact, with more it is an upper bound.
    """
    if two_classes:
        return sign_free_variance(first - second, difference)
    bound = sign_free_variance((first != second).astype(float), difference).total
    return ExampleVariance(bound, bound)


def paired_seed_test(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Student's paired t test over seeds.

    None with fewer than three seeds, or if all differences are equal.
    """
    from scipy import stats

    differences = [one - other for one, other in zip(first, second, strict=True)]
    if len(differences) < MIN_SEEDS or max(differences) - min(differences) < 1e-12:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def paired_example_test(difference: float, variance: float, examples: int) -> float | None:
    """Return the two-sided p-value of the paired t test over examples.

    With one seed it is McNemar's test in its t form.

    Args:
        difference: the mean difference.
        variance: its variance over examples.
        examples: the number of examples.

    Returns:
        The p-value; None if the cells never disagree or there are fewer than two examples.
    """
    from scipy import stats

    if examples < 2:
        return None
    if variance <= 1e-15:
        return None if abs(difference) < 1e-12 else 0.0
    return float(2 * stats.t.sf(abs(difference) / math.sqrt(variance / (examples - 1)), examples - 1))


def holm_correction(p_values: Sequence[float | None]) -> list[float | None]:
    """Apply Holm's correction to the p-values that are not None."""
    known = [value for value in p_values if value is not None]
    if not known:
        return list(p_values)
    from statsmodels.stats.multitest import multipletests

    corrected = iter(multipletests(known, method="holm")[1].tolist())
    return [None if value is None else next(corrected) for value in p_values]
