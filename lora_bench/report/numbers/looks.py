"""Tests and intervals that stay valid when one looks at the results more than once.

Whoever looks at 20 seeds, adds 20 more and looks again has two chances to be misled. Here the allowed error is spent
over the looks by a spending function (Lan and DeMets, Biometrika 1983): at a look with t times the seeds of the first
one, the share `1 - (1 - FIRST_SHARE) / t` of it may have been spent. That is less than all of it however many looks
follow, so the number of looks need not be known beforehand. The limits are those of normal statistics with independent
increments (Armitage, McPherson and Rowe, JRSS A 1969). They are applied to Student's tests by their nominal level
(Jennison and Turnbull, Group Sequential Methods, 2000, section 3.8), and give repeated confidence intervals (Jennison
and Turnbull, JRSS B 1989): over all looks together, the interval of 95% misses the true difference with a probability
of 5%. Both one-sided tests of equivalence are of this kind too.

What is added to the variance by examples is the same at each look; it makes the looks more alike than assumed here, so
that less than the allowed error is spent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

TAIL = 0.025  # of a 95% interval, on each side
FIRST_SHARE = 0.7  # of the allowed error, which the first look may spend; chosen: its interval is 1.08 times as wide
_RANGE = 9.0  # standard deviations below which a statistic is taken to be impossible
_POINTS, _MOST_POINTS = 120, 1200  # of the quadrature over the statistic of a look
_LEVELS = 10.0  # decades of levels that are tabulated; below, the cruder bound of `corrected` is used


class Levels(Protocol):
    """At which level a test or an interval is computed so that it has the level that is stated."""

    @property
    def tail(self) -> float:
        """The probability beyond each end of an interval that is called a 95% interval."""
        ...

    def corrected(self, p: FloatArray) -> FloatArray:
        """Return one-sided p-values that may be compared with the stated level."""
        ...


@dataclass(frozen=True)
class OneLook:
    """Levels where nothing was looked at before, and nobody will look again: the ordinary ones."""

    tail: float = TAIL

    def corrected(self, p: FloatArray) -> FloatArray:
        """Return the p-values as they are."""
        return p


ONE_LOOK = OneLook()


@dataclass(frozen=True)
class RepeatedLooks:
    """Levels at the last of several looks, after which others may follow.

    Attributes:
        seeds: The number of seeds at each look so far, ascending.
    """

    seeds: tuple[int, ...]

    @property
    def tail(self) -> float:
        """The probability beyond each end of this look's interval."""
        return nominal_level(self.seeds, TAIL)

    def corrected(self, p: FloatArray) -> FloatArray:
        """Return the smallest level of the whole sequence of looks at which this look's test would reject.

        Args:
            p: One-sided p-values of this look's data alone; NaN stays NaN.
        """
        import numpy as np

        nominal, levels = _table(self.seeds)
        with np.errstate(divide="ignore"):
            logarithm = np.log(np.asarray(p, dtype=float))
            result: FloatArray = np.exp(np.interp(logarithm, np.log(nominal), np.log(levels)))
        # Below the table, what this look may spend at least bounds the level: that of all looks times its share.
        small = np.minimum(np.asarray(p, dtype=float) / _shares(self.seeds)[-1], levels[0])
        return np.where(np.isnan(p), np.nan, np.where(p < nominal[0], small, result))


def levels_of(looks: tuple[int, ...]) -> Levels:
    """Return the levels for the numbers of seeds at the looks so far; the ordinary ones if none were declared."""
    return RepeatedLooks(looks) if looks else ONE_LOOK


def nominal_level(seeds: tuple[int, ...], level: float) -> float:
    """Return the one-sided level of the last look's test.

    Args:
        seeds: The number of seeds at each look, ascending.
        level: The probability that any look rejects, wrongly and on this side, is at most this.
    """
    from scipy import stats

    return float(stats.norm.sf(boundaries(seeds, level)[-1]))


def _shares(seeds: tuple[int, ...]) -> list[float]:
    """Return the share of the allowed error that each look spends."""
    spent = [1 - (1 - FIRST_SHARE) * seeds[0] / count for count in seeds]
    return [now - before for before, now in zip([0.0, *spent], spent, strict=False)]


@lru_cache(maxsize=256)
def boundaries(seeds: tuple[int, ...], level: float) -> tuple[float, ...]:
    """Return the upper limits of a standard normal statistic at each look.

    Args:
        seeds: The number of seeds at each look, ascending.
        level: The probability that the statistic exceeds its limit at any look.
    """
    import numpy as np
    from scipy import optimize, stats

    times = [count / seeds[0] for count in seeds]
    limits: list[float] = []
    # The sum behind the statistic, z √t, is a random walk with normal steps. `mass` is its density, times the weights
    # of the quadrature, at `sums`, for the walks that have not exceeded a limit before.
    sums, mass, before = np.zeros(1), np.ones(1), 0.0
    for time, share in zip(times, _shares(seeds), strict=True):
        step = math.sqrt(time - before)
        # The limit is in standard deviations of this look's sum.
        state = (math.sqrt(time), step, sums, mass, share * level)
        limits.append(float(optimize.brentq(_excess, -_RANGE, 4 * _RANGE, args=state, xtol=1e-12)))
        low, high = -_RANGE * math.sqrt(time), limits[-1] * math.sqrt(time)
        count = min(_MOST_POINTS, max(_POINTS, math.ceil(6 * (high - low) / step)))
        nodes, weights = np.polynomial.legendre.leggauss(count)
        points = low + (high - low) * (nodes + 1) / 2
        density = (stats.norm.pdf((points[:, None] - sums) / step) / step) @ mass
        sums, mass, before = points, weights * (high - low) / 2 * density, time
    return tuple(limits)


def _excess(limit: float, scale: float, step: float, sums: FloatArray, mass: FloatArray, spent: float) -> float:
    """Return by how much the probability that a walk exceeds a limit at this look is above what may be spent."""
    from scipy import stats

    return float((mass * stats.norm.sf((limit * scale - sums) / step)).sum()) - spent


@lru_cache(maxsize=64)
def _table(seeds: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Return the nominal levels of the last look's test for levels of all looks, both ascending and up to 1."""
    import numpy as np

    levels = np.concatenate([np.logspace(-_LEVELS, math.log10(0.5), 81), [1.0]])
    nominal = np.array([*(nominal_level(seeds, float(level)) for level in levels[:-1]), 1.0])
    return nominal, levels
