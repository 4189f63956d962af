"""The statistics against scipy, statsmodels, the known labels, and simulated seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from lora_bench.report.numbers.statistics import (
    Interval,
    accuracy_variance,
    add_example_variance,
    difference_variance,
    holm_correction,
    paired_example_test,
    paired_seed_test,
    seed_interval,
    widen,
)

Values = NDArray[np.float64]


def cells(rng: np.random.Generator, seeds: int, rows: int, level: float) -> tuple[Values, Values, Values]:
    """Labels, and predictions of two methods [seeds, rows]: hard examples are shared, seeds differ in quality."""
    labels = rng.integers(0, 2, rows).astype(float)
    hard = rng.normal(size=rows)
    both = []
    for _ in range(2):
        skill = level + rng.normal(0, 0.15, (seeds, 1))
        right = hard + rng.normal(size=(seeds, rows)) < skill
        both.append(np.where(right, labels, 1 - labels))
    return labels, both[0], both[1]


def test_interval_over_seeds_is_students() -> None:
    values = [0.90, 0.91, 0.93, 0.88, 0.92]
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    got = seed_interval(values)
    assert got is not None
    assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high))


def test_its_standard_error_is_the_bootstraps() -> None:
    values = np.random.default_rng(1).normal(size=7)
    got = seed_interval(values.tolist())
    assert got is not None
    error = stats.bootstrap((values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(0)).standard_error
    half = stats.t.ppf(0.975, 6) * error * math.sqrt(7 / 6)
    assert (got.high - got.low) / 2 == pytest.approx(half, rel=0.02)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.6]])
def test_of_fewer_than_three_seeds_there_is_no_interval(values: list[float]) -> None:
    assert seed_interval(values) is None
    assert paired_seed_test(values, [0.0] * len(values)) is None


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_interval_over_seeds_covers(seeds: int) -> None:
    """95% of the intervals hold the truth, over 3,000 simulated experiments; Monte Carlo error 0.4%."""
    draws = np.random.default_rng(seeds).normal(0.9, 0.01, (3000, seeds))
    found = [seed_interval(row) for row in draws.tolist()]
    covered = np.mean([each is not None and each.low <= 0.9 <= each.high for each in found])
    assert 0.93 <= covered <= 0.97


def test_plain_bootstraps_of_five_seeds_do_not_cover() -> None:
    """Why the report does not use them."""
    draws = np.random.default_rng(0).normal(size=(600, 5))
    found = stats.bootstrap(
        (draws,), np.mean, axis=1, n_resamples=999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert 0.78 <= np.mean((found.low <= 0) & (found.high >= 0)) <= 0.89


def truth(level: float) -> float:
    """The accuracy of all seeds on all examples."""
    return float(stats.norm.cdf(level / math.sqrt(1 + 1 + 0.15**2)))


def test_interval_of_an_accuracy_covers_over_seeds_and_examples() -> None:
    rng, hits = np.random.default_rng(2), []
    for _ in range(1200):
        labels, one, _ = cells(rng, 5, 250, 1.5)
        scores = (one == labels).mean(1)
        mean = float(scores.mean())
        variance = accuracy_variance(one, mean, two_classes=True)
        got = add_example_variance(seed_interval(scores.tolist()), mean, variance.beyond_seeds, 250)
        assert got is not None
        hits.append(got.low <= truth(1.5) <= got.high)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_over_seeds_alone_it_would_not() -> None:
    rng, hits = np.random.default_rng(2), []
    for _ in range(1200):
        labels, one, _ = cells(rng, 5, 250, 1.5)
        got = seed_interval((one == labels).mean(1).tolist())
        assert got is not None
        hits.append(got.low <= truth(1.5) <= got.high)
    assert np.mean(hits) < 0.93


def test_interval_of_a_difference_covers_over_seeds_and_examples() -> None:
    rng, hits = np.random.default_rng(3), []
    for _ in range(1200):
        labels, one, other = cells(rng, 5, 250, 1.5)
        differences = (one == labels).mean(1) - (other == labels).mean(1)
        mean = float(differences.mean())
        variance = difference_variance(one, other, mean, two_classes=True)
        got = add_example_variance(seed_interval(differences.tolist()), mean, variance.beyond_seeds, 250)
        assert got is not None
        hits.append(got.low <= 0 <= got.high)
    assert 0.93 <= np.mean(hits) <= 0.97


@pytest.mark.parametrize("seeds", [1, 3])
def test_of_two_classes_variances_need_no_labels(seeds: int) -> None:
    labels, one, other = cells(np.random.default_rng(4), seeds, 300, 1.0)
    right, wrong = (one == labels).astype(float), (other == labels).astype(float)
    gain = (right - wrong).mean(0)
    assert difference_variance(one, other, float(gain.mean()), True).total == pytest.approx(gain.var())
    assert accuracy_variance(one, float(right.mean()), True).total == pytest.approx(right.mean(0).var())


@pytest.mark.parametrize("seeds", [1, 5])
def test_the_paired_test_over_examples_is_scipys_on_correctness(seeds: int) -> None:
    labels, one, other = cells(np.random.default_rng(5), seeds, 400, 1.0)
    gain = ((one == labels).astype(float) - (other == labels)).mean(0)
    variance = difference_variance(one, other, float(gain.mean()), True)
    assert paired_example_test(float(gain.mean()), variance.total, 400) == pytest.approx(
        stats.ttest_1samp(gain, 0.0).pvalue
    )


def test_with_one_seed_it_is_mcnemars() -> None:
    labels, one, other = cells(np.random.default_rng(6), 1, 3000, 1.0)
    right, wrong = (one == labels)[0], (other == labels)[0]
    table = [[np.sum(right & wrong), np.sum(right & ~wrong)], [np.sum(~right & wrong), np.sum(~right & ~wrong)]]
    difference = float(right.mean() - wrong.mean())
    p = paired_example_test(difference, difference_variance(one, other, difference, True).total, 3000)
    assert p == pytest.approx(mcnemar(table, exact=False, correction=False).pvalue, abs=2e-3)


def test_of_three_classes_the_test_is_conservative() -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 500)
    one, other = (np.where(rng.random((4, 500)) < share, labels, rng.integers(0, 3, (4, 500))) for share in (0.7, 0.6))
    gain = ((one == labels).astype(float) - (other == labels)).mean(0)
    variance = difference_variance(one.astype(float), other.astype(float), float(gain.mean()), two_classes=False)
    bound = paired_example_test(float(gain.mean()), variance.total, 500)
    exact = stats.ttest_1samp(gain, 0.0).pvalue
    assert bound is not None
    assert exact < bound < 1
    right = (one == labels).astype(float)
    assert accuracy_variance(one.astype(float), float(right.mean()), False).total >= right.mean(0).var()


def test_cells_that_never_disagree_have_no_p() -> None:
    assert paired_example_test(0.0, 0.0, 100) is None
    assert paired_example_test(0.1, 0.0, 100) == 0.0
    assert paired_example_test(0.1, 0.2, 1) is None


def test_the_paired_test_over_seeds_is_scipys() -> None:
    one, other = [0.9, 0.92, 0.91, 0.95], [0.89, 0.9, 0.92, 0.9]
    assert paired_seed_test(one, other) == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert paired_seed_test([0.5] * 4, [0.4] * 4) is None


def test_holm_is_statsmodels_and_its_definition() -> None:
    values: list[float | None] = [0.01, None, 0.04, 0.03, 0.5]
    known = [value for value in values if value is not None]
    got = holm_correction(values)
    assert got[1] is None
    assert [value for value in got if value is not None] == pytest.approx(multipletests(known, method="holm")[1])
    assert got[0] == pytest.approx(0.04)
    assert got[3] == got[2] == pytest.approx(0.09)
    assert holm_correction([None]) == [None]


def test_widening_adds_in_quadrature_and_keeps_the_asymmetry() -> None:
    assert widen(Interval(-3.0, 4.0), 0.0, 0.0) == Interval(-3.0, 4.0)
    got = widen(Interval(-3.0, 5.0), 0.0, 4.0)
    assert (got.low, got.high) == pytest.approx((-5.0, math.sqrt(41)))
