"""The statistics of the report: intervals over seeds and examples, paired tests, Holm's correction.

scipy and statsmodels do the work. Seeds and examples are both samples: a mean over few seeds on one small split is
uncertain in two ways, and the interval holds both.

**No labels are needed.** Records keep predictions, not labels. Of two classes, the correctness of cell s on example i
is (1 + v_i u_si) / 2 with u the prediction and v the label as ±1, and for a pair of cells the difference of their
correctness is v_i (p_si - q_si). The sign v_i is unknown but squares away: second moments over examples follow exactly
from the predictions, first moments are the recorded accuracies. Where classes are more than two, the disagreement of
two cells bounds the square from above, so that tests err to the careful side.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

LEVEL = 0.95
FEWEST = 3


@dataclass(frozen=True)
class Interval:
    """A 95% interval, in the units of what was given."""

    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """Variance over examples of a mean over seeds: of these very cells, and without the part that seeds explain.

    The second is what examples add to an interval over seeds, which holds the rest already.
    """

    cells: float
    added: float


def over_seeds(values: Sequence[float]) -> Interval | None:
    """A 95% interval of the mean over all seeds, from those that were run; None below three.

    The standard error is that of the bootstrap over seeds with all resamples (which for a mean is s / sqrt(n), once
    corrected by n / (n - 1)); Student's quantile stands for its shape. The percentile and BCa bootstraps of five values
    cover 80 to 88%; the studentised one covers, but its ends jump and contradict the paired test.
    """
    if len(values) < FEWEST:
        return None
    mean, half = statistics.fmean(values), half_width(statistics.stdev(values), len(values))
    return Interval(mean - half, mean + half)


def with_examples(seeds: Interval | None, centre: float, variance: float | None, rows: int) -> Interval | None:
    """The interval over seeds widened by what `rows` examples add; as it is where that is not known."""
    if seeds is None or variance is None or rows < 2:
        return seeds
    from scipy import stats

    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(variance / (rows - 1))
    return widened(seeds, centre, half)


def half_width(std: float, n: int) -> float:
    """Half of Student's 95% interval of a mean, from the sample standard deviation of n values."""
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * std / math.sqrt(n)


def widened(interval: Interval, centre: float, half: float) -> Interval:
    """The interval about `centre` with an independent half-width added to both sides, in quadrature (MOVER)."""
    return Interval(
        centre - math.hypot(centre - interval.low, half), centre + math.hypot(interval.high - centre, half)
    )  # fmt: skip


def hidden_sign(values: Values, mean: float) -> Spread:
    """Variances over examples of mean_s(v_i values[s, i]), v_i = ±1 unknown, whose mean is known.

    values: [seeds, examples].
    """
    seeds = len(values)
    cells = max(0.0, float((values.mean(0) ** 2).mean()) - mean**2)
    between = float(values.var(0, ddof=1).mean()) / seeds if seeds > 1 else 0.0
    return Spread(cells, max(0.0, cells - between))


def accuracy_spread(predictions: Values, accuracy: float, two_classes: bool) -> Spread:
    """Variances over examples of the mean accuracy of some seeds; predictions: [seeds, examples], class ids.

    Exact for two classes; for more an upper bound, that of one cell.
    """
    if not two_classes:
        return Spread(accuracy * (1 - accuracy), accuracy * (1 - accuracy))
    return hidden_sign(predictions - 0.5, accuracy - 0.5)


def difference_spread(first: Values, second: Values, difference: float, two_classes: bool) -> Spread:
    """Variances over examples of the mean difference in accuracy; both [seeds, examples], the same seeds and rows."""
    if two_classes:
        return hidden_sign(first - second, difference)
    bound = hidden_sign((first != second).astype(float), difference).cells
    return Spread(bound, bound)


def paired_over_seeds(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired t over seeds; None below three seeds, or where all differences are the same."""
    from scipy import stats

    differences = [one - other for one, other in zip(first, second, strict=True)]
    if len(differences) < FEWEST or max(differences) - min(differences) < 1e-12:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def paired_over_examples(difference: float, variance: float, rows: int) -> float | None:
    """Two-sided p of the paired t over examples, given the mean difference and its variance over them.

    With one seed it is McNemar's test in its t form. None where the cells never disagree.
    """
    from scipy import stats

    if rows < 2:
        return None
    if variance <= 1e-15:
        return None if abs(difference) < 1e-12 else 0.0
    return float(2 * stats.t.sf(abs(difference) / math.sqrt(variance / (rows - 1)), rows - 1))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction over those that are there."""
    known = [value for value in values if value is not None]
    if not known:
        return list(values)
    from statsmodels.stats.multitest import multipletests

    corrected = iter(multipletests(known, method="holm")[1].tolist())
    return [None if value is None else next(corrected) for value in values]
