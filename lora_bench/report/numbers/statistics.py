"""The statistics of the report: one model of the uncertainty of a mean, and what follows from it.

Seeds and examples are both samples: a mean over few seeds on one small split is uncertain in two ways. Each entry has
the variance between its own seeds (Welch's test), since settings differ in it: most vary by a point, one that collapses
with a seed by ten. A variance pooled over all entries would be narrower with five seeds, but wrong in both directions.
Simulated without a difference, the pooled test rejects in 0.4 to 10% (0.7% where one of 20 entries varies ten times as
much, 7% where one of two varies three times as much), this one in 2.3 to 6.1%. The examples' variance comes from the
predictions (`examples`). Both are added, with Satterthwaite's degrees of freedom: intervals, tests and equivalence are
read from the same standard error.

**Lost seeds** (failed or diverged) may have been the worst ones or any. Without them a mean may be too high; without as
many of the best ones as well (the trimmed mean) it may be too low. Intervals and tests cover both.

**Several looks**: where a config declares at which numbers of seeds one looks at the results, intervals and tests hold
for all looks together (`looks`).

scipy computes quantiles and tails.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lora_bench.report.numbers.looks import ONE_LOOK, TAIL, Levels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

SIGNIFICANCE = 0.05
MIN_SEEDS = 3  # with fewer there is no interval and no test


class Interval(NamedTuple):
    """A 95% confidence interval, in the units of its values."""

    low: float
    high: float


class Contrast(NamedTuple):
    """A weighted sum of means, such as a mean difference, with its 95% interval."""

    difference: float
    low: float
    high: float


def seed_interval(values: Sequence[float], tail: float = TAIL) -> Interval | None:
    """Return Student's 95% interval of the mean over all possible seeds; None with fewer than three values.

    Args:
        values: A value for each seed.
        tail: The probability beyond each end, where it is not that of a single look.
    """
    if len(values) < MIN_SEEDS:
        return None
    mean, half = statistics.fmean(values), half_width(statistics.stdev(values), len(values), tail)
    return Interval(mean - half, mean + half)


def half_width(std: float, n: int, tail: float = TAIL) -> float:
    """Return half the width of Student's 95% interval of a mean, from the sample standard deviation of n values."""
    from scipy import stats

    return float(stats.t.isf(tail, n - 1)) * std / math.sqrt(n)


class ExampleCovariance(Protocol):
    """What the examples add to the uncertainty of means over seeds."""

    def covariance(self, first: IntArray, second: IntArray) -> FloatArray:
        """Return the covariance over examples of pairs of entries, given by position; 0 where it is unknown."""
        ...

    def examples(self) -> float:
        """Return the number of examples; infinite if unknown."""
        ...


@dataclass(frozen=True)
class Means:
    """The means of the entries of a column, and their uncertainty.

    Attributes:
        mean: Over the seeds that have a score.
        shift: How far the trimmed mean is below it; 0 without lost seeds, NaN if nothing is left.
        n: The number of those seeds.
        variance: Of one seed; NaN of fewer than two.
        example_terms: What the examples add; None if it is unknown for all, or not asked for.
        levels: The levels of intervals and tests, which are others if one looks more than once.
    """

    mean: FloatArray
    shift: FloatArray
    n: FloatArray
    variance: FloatArray
    example_terms: ExampleCovariance | None = None
    levels: Levels = ONE_LOOK

    @property
    def over_seeds(self) -> Means:
        """The same means with the uncertainty over seeds alone, and without the shifts of lost seeds."""
        return replace(self, shift=self.shift * 0, example_terms=None)

    @property
    def typical_deviation(self) -> float:
        """The median of the entries' standard deviations, as a description; NaN if no entry has two seeds."""
        import numpy as np

        known = self.variance[~np.isnan(self.variance)]
        return float(np.median(np.sqrt(known))) if len(known) else math.nan

    def intervals(self) -> tuple[FloatArray, FloatArray]:
        """Return the 95% interval of each mean; NaN with fewer than three seeds."""
        import numpy as np

        everyone = np.arange(len(self.mean))
        error, degrees = self._error(everyone, None)
        half = self._quantile(degrees) * error
        unknown = self.n < MIN_SEEDS
        low, high = self.mean - self.shift - half, self.mean + half
        return np.where(unknown, np.nan, low), np.where(unknown, np.nan, high)

    def compare(self, first: IntArray, second: IntArray, margin: float) -> DataFrame:
        """Compare pairs of entries, given by their positions.

        Returns:
            A row per pair: `difference` of the means, its standard `error` and `degrees` of freedom, the interval `low`
            to `high`, the two-sided `p` of no difference, and `p_equivalent`, that of two one-sided tests of a
            difference of at least the margin. NaN where an entry has fewer than three seeds.
        """
        import numpy as np
        import pandas as pd
        from scipy import stats

        error, degrees = self._error(first, second)
        difference = self.mean[first] - self.mean[second]
        least, most = difference - self.shift[first], difference + self.shift[second]
        half = self._quantile(degrees) * error
        nearest = np.where((least <= 0) & (most >= 0), 0.0, np.minimum(np.abs(least), np.abs(most)))
        with np.errstate(divide="ignore", invalid="ignore"):
            # Without any variance, equal means have p = 1 and different ones p = 0.
            p = stats.t.sf(np.where(nearest == 0, 0.0, nearest / error), degrees)
            above = stats.t.sf((least + margin) / error, degrees)
            below = stats.t.cdf((most - margin) / error, degrees)
        table = pd.DataFrame(
            {
                "difference": difference,
                "error": error,
                "degrees": degrees,
                "low": least - half,
                "high": most + half,
                "p": np.minimum(2 * self.levels.corrected(p), 1.0),
                "p_equivalent": self.levels.corrected(np.maximum(above, below)),
            }
        )
        tested = (self.n[first] >= MIN_SEEDS) & (self.n[second] >= MIN_SEEDS)
        untested = ["error", "degrees", "low", "high", "p", "p_equivalent"]
        table.loc[~tested, untested] = np.nan
        return table

    def contrast(self, positions: IntArray, weights: FloatArray) -> Contrast:
        """Return a weighted sum of means with its interval; the weights of an entry that comes up again are added.

        The interval is NaN if an entry has fewer than two seeds.
        """
        import numpy as np

        unique, index = np.unique(positions, return_inverse=True)
        used = unique.astype(np.int64)
        summed: FloatArray = np.bincount(index, weights).astype(np.float64)
        parts = summed**2 * self.variance[used] / self.n[used]
        squared = float((parts**2 / (self.n[used] - 1)).sum())
        added = self._contrast_examples(used, summed)
        examples = self.example_terms.examples() if self.example_terms else math.inf
        squared += added**2 / max(examples - 1, 1)
        total = float(parts.sum()) + added
        degrees_of_sum = np.array([total**2 / squared if squared else 1e9])
        half = float(self._quantile(degrees_of_sum)[0]) * math.sqrt(total)
        shifts = summed * self.shift[used]
        difference = float((summed * self.mean[used]).sum())
        low, high = difference - float(shifts[summed > 0].sum()), difference - float(shifts[summed < 0].sum())
        return Contrast(difference, low - half, high + half)

    def _contrast_examples(self, used: IntArray, weights: FloatArray) -> float:
        """Return what the examples add to the variance of a weighted sum."""
        import numpy as np

        if self.example_terms is None:
            return 0.0
        one, other = (index.reshape(-1) for index in np.meshgrid(np.arange(len(used)), np.arange(len(used))))
        covariance = self.example_terms.covariance(used[one], used[other])
        return max(0.0, float((weights[one] * weights[other] * covariance).sum()))

    def _quantile(self, degrees: FloatArray) -> FloatArray:
        """Return Student's quantiles at the upper end of an interval."""
        from scipy import stats

        quantiles: FloatArray = stats.t.isf(self.levels.tail, degrees)
        return quantiles

    def _error(self, first: IntArray, second: IntArray | None) -> tuple[FloatArray, FloatArray]:
        """Return standard errors and Satterthwaite's degrees of freedom of means, or of their differences."""
        import numpy as np

        sides = [first] if second is None else [first, second]
        total, squared_over_degrees = np.zeros(len(first)), np.zeros(len(first))
        with np.errstate(divide="ignore", invalid="ignore"):
            for side in sides:
                part = self.variance[side] / self.n[side]
                total += part
                squared_over_degrees += part**2 / (self.n[side] - 1)
            added = self._example_variance(sides)
            examples = self.example_terms.examples() if self.example_terms else np.inf
            squared_over_degrees += added**2 / max(examples - 1, 1)
            total += added
            degrees = np.where(squared_over_degrees > 0, total**2 / squared_over_degrees, 1e9)
        return np.sqrt(total), np.minimum(degrees, 1e9)

    def _example_variance(self, sides: list[IntArray]) -> FloatArray:
        import numpy as np

        if self.example_terms is None:
            return np.zeros(len(sides[0]))
        covariance = self.example_terms.covariance
        if len(sides) == 1:
            return np.maximum(covariance(sides[0], sides[0]), 0.0)
        first, second = sides
        whole = covariance(first, first) + covariance(second, second) - 2 * covariance(first, second)
        return np.maximum(whole, 0.0)


def means_of(entries: DataFrame, example_terms: ExampleCovariance | None = None, levels: Levels = ONE_LOOK) -> Means:
    """Return the means of a column's entries (`entries.Scope.at`).

    Args:
        entries: The entries.
        example_terms: What the examples add to the uncertainty.
        levels: The levels of intervals and tests.
    """
    import numpy as np

    n = entries["n"].to_numpy(dtype=float)
    degrees = np.where(n > 1, n - 1, np.nan)
    variance = entries["squares"].to_numpy(dtype=float) / degrees
    mean = entries["mean"].to_numpy(dtype=float)
    return Means(mean, mean - entries["trimmed"].to_numpy(dtype=float), n, variance, example_terms, levels)


def holm_correction(p_values: FloatArray) -> FloatArray:
    """Apply Holm's correction to the p-values that are not NaN.

    Not by statsmodels, which collects garbage at every call: that was 4 of the 11 seconds of a report's numbers. A test
    compares with it.
    """
    import numpy as np

    corrected = np.full(len(p_values), np.nan)
    order = np.argsort(p_values, kind="stable")[: np.count_nonzero(~np.isnan(p_values))]  # NaN sorts last
    multiplied = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(multiplied), 1.0)
    return corrected


@dataclass(frozen=True)
class Ranking:
    """The ranks that some entries may have, each from the comparisons of that entry with all others.

    Which of k entries may be the best is a question on the k - 1 comparisons of each with the others, not on all pairs,
    over which an entry that is certainly behind another one would often be called a possible best. So each entry's
    p-values are multiplied by k - 1 (Bonferroni; Holm's steps would differ between the two entries of a pair, and let
    one be the first of all while the other may be it). Each entry's ranks hold with 95% on their own, like the interval
    of its mean (Mogstad, Romano, Shaikh and Wilhelm, Review of Economic Studies 2024), and so the truly best entry is
    among those that may be the best with 95%, however many there are (Gupta, Technometrics 1965). To compare all others
    with the one of the best mean alone would not do: the data have chosen that one.

    Attributes:
        first: The best rank that each may have: one more than the number of entries that are certainly better.
        last: The worst rank that it may have.
        best: Whether it may be the best: no entry is certainly better. False without a test.
    """

    first: IntArray
    last: IntArray
    best: NDArray[np.bool_]


def rank_entries(means: Means, positions: IntArray) -> Ranking:
    """Rank some entries of a column among each other; those without a test may have any rank."""
    import numpy as np

    count = len(positions)
    one, other = np.triu_indices(count, 1)
    table = means.compare(positions[one], positions[other], margin=1.0)
    tested = means.n[positions] >= MIN_SEEDS
    certain = table["p"].to_numpy() * max(int(tested.sum()) - 1, 1) < SIGNIFICANCE  # NaN is not
    ahead = table["difference"].to_numpy() > 0
    better = np.zeros((count, count), dtype=bool)
    better[one, other], better[other, one] = certain & ahead, certain & ~ahead
    first = 1 + better.sum(axis=0)
    return Ranking(first, count - better.sum(axis=1), (first == 1) & tested)
