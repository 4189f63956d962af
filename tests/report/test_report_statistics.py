"""The statistics against scipy and statsmodels, the known labels, and simulated experiments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind

from lora_bench.report.numbers.examples import (
    AverageTerms,
    ExampleTerms,
    accuracy_terms,
    estimate_labels,
    matthews_terms,
    share_of_ones,
)
from lora_bench.report.numbers.statistics import Means, holm_correction, means_of, rank_entries, seed_interval

Values = NDArray[np.float64]
Indices = NDArray[np.int64]


def entries_of(scores: Values, lost: Values | None = None) -> pd.DataFrame:
    """The columns of entries that the statistics need: scores [entries, seeds], NaN where `lost` is true."""
    kept = scores if lost is None else np.where(lost, np.nan, scores)
    n = (~np.isnan(kept)).sum(axis=1)
    ordered = -np.sort(-kept, axis=1)  # the best first, NaN last
    number = np.arange(scores.shape[1])
    missing = scores.shape[1] - n
    trimmed = np.where((number >= missing[:, None]) & ~np.isnan(ordered), ordered, np.nan)
    squares = np.nanvar(kept, axis=1, ddof=1) * (n - 1)
    return pd.DataFrame(
        {"n": n, "mean": np.nanmean(kept, axis=1), "trimmed": np.nanmean(trimmed, axis=1), "squares": squares}
    )


def matthews(labels: Values, predictions: Values) -> Values:
    """The correlation of each cell, [cells]."""
    both = np.array([np.corrcoef(labels, row)[0, 1] if row.std() else 0.0 for row in predictions])
    correlations: Values = np.nan_to_num(both)
    return correlations


@dataclass(frozen=True)
class Kind:
    """What a simulated task is like.

    Attributes:
        rows: the number of examples.
        skill: of the two classes, in deviations: higher is easier.
        share: of the examples with label 1.
        metric: accuracy or matthews.
    """

    rows: int
    skill: tuple[float, float]
    share: float
    metric: str


COLA = Kind(1043, (-0.1, 1.4), 0.69, "matthews")
MRPC = Kind(408, (0.9, 1.9), 0.68, "accuracy")
RTE = Kind(277, (0.6, 0.7), 0.53, "accuracy")
KINDS = {"cola": COLA, "mrpc": MRPC, "rte": RTE}
METHODS = 16


def experiment(kind: Kind, seeds: int, rng: np.random.Generator, advantage: float = 0.0) -> tuple[Values, ExampleTerms]:
    """One experiment of `METHODS` entries: scores [methods, seeds], and what the examples add.

    Some examples are hard for all, some for one method, the rest is chance. The first half of the methods has the
    advantage.
    """
    labels = (rng.random(kind.rows) < kind.share).astype(float)
    skill = np.where(labels == 1, kind.skill[1], kind.skill[0])
    shared = skill + rng.normal(size=kind.rows)
    method = rng.normal(scale=0.5, size=(METHODS, 1, kind.rows))
    seed = rng.normal(scale=0.08, size=(METHODS, seeds, 1))
    bonus = np.where(np.arange(METHODS) < METHODS // 2, advantage, 0.0)[:, None, None]
    right = shared + method + seed + bonus + rng.normal(scale=0.7, size=(METHODS, seeds, kind.rows)) > 0
    predictions = np.where(right, labels, 1 - labels).reshape(METHODS * seeds, kind.rows)
    accuracies = right.mean(axis=2).reshape(-1)
    members = [np.arange(seeds) + seeds * index for index in range(METHODS)]
    if kind.metric == "accuracy":
        scores = accuracies.reshape(METHODS, seeds)
        return scores, accuracy_terms(predictions, scores.mean(axis=1), members, 2)
    scores = matthews(labels, predictions)
    terms = matthews_terms(predictions, accuracies, scores, members)
    assert terms is not None
    return scores.reshape(METHODS, seeds), terms


def experiments(kind: Kind, seeds: int, count: int, advantage: float = 0.0) -> Iterator[tuple[Values, ExampleTerms]]:
    rng = np.random.default_rng(seeds)
    for _ in range(count):
        yield experiment(kind, seeds, rng, advantage)


PAIRS = np.arange(METHODS // 2), np.arange(METHODS // 2, METHODS)  # each method once, so that pairs are independent


def pairwise(scores: Values, terms: ExampleTerms, margin: float = 0.01, lost: Values | None = None) -> pd.DataFrame:
    return means_of(entries_of(scores, lost), terms).compare(*PAIRS, margin)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("seeds", "count"), [(3, 160), (5, 160), (20, 80)])
def test_intervals_of_differences_cover_and_tests_keep_their_level(name: str, seeds: int, count: int) -> None:
    """Of equal methods: over new seeds and new examples, 95% of the intervals hold zero, 5% of the tests reject."""
    tables = pd.concat([pairwise(*drawn) for drawn in experiments(KINDS[name], seeds, count)])
    covered = ((tables["low"] <= 0) & (tables["high"] >= 0)).mean()
    assert 0.93 <= covered <= 0.97
    assert (tables["p"] < 0.05).mean() <= 0.065  # 0.05, and two and a half Monte Carlo errors


def test_verdicts_reject_a_true_null_in_five_percent() -> None:
    """All kinds of task and numbers of seeds together: the Monte Carlo error is 0.3%."""
    rejected = [
        (pairwise(*drawn)["p"] < 0.05).mean()
        for kind in KINDS.values()
        for seeds in (3, 5)
        for drawn in experiments(kind, seeds, 110)
    ]
    assert np.mean(rejected) <= 0.055


@pytest.mark.parametrize("name", KINDS)
def test_intervals_of_scores_cover(name: str) -> None:
    """The truth is the mean of many experiments. Methods of one experiment share its examples, so that is many."""
    drawn = list(experiments(KINDS[name], 5, 600))
    truth = float(np.mean([scores.mean() for scores, _ in drawn]))
    limits = [means_of(entries_of(scores), terms).intervals() for scores, terms in drawn]
    covered = np.mean([(low <= truth) & (truth <= high) for low, high in limits])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("seeds", [4, 5, 10])
@pytest.mark.parametrize("which", ["any", "worst"])
def test_intervals_cover_when_seeds_are_lost(seeds: int, which: str) -> None:
    """Whether any seed is lost, or always the worst one of each method of the first half."""
    rng = np.random.default_rng(1)
    covered = []
    for scores, terms in experiments(RTE, seeds, 160):
        position = rng.integers(0, seeds, METHODS) if which == "any" else scores.argmin(axis=1)
        lost = np.arange(seeds) == position[:, None]
        lost[METHODS // 2 :] = False
        table = pairwise(scores, terms, lost=lost)
        covered.append(((table["low"] <= 0) & (table["high"] >= 0)).mean())
    assert 0.93 <= np.mean(covered) <= 0.98


def test_without_that_the_loss_of_the_worst_would_be_missed() -> None:
    covered = []
    for scores, terms in experiments(RTE, 5, 160):
        lost = np.arange(5) == scores.argmin(axis=1)[:, None]
        lost[METHODS // 2 :] = False
        entries = entries_of(scores, lost).assign(trimmed=lambda frame: frame["mean"])
        table = means_of(entries, terms).compare(*PAIRS, 0.01)
        covered.append(((table["low"] <= 0) & (table["high"] >= 0)).mean())
    assert np.mean(covered) < 0.94


@pytest.mark.parametrize("name", KINDS)
def test_equivalence_is_claimed_of_methods_a_margin_apart_in_five_percent(name: str) -> None:
    drawn = list(experiments(KINDS[name], 5, 240, advantage=0.12))
    half = METHODS // 2
    margin = float(np.mean([scores[:half].mean() - scores[half:].mean() for scores, _ in drawn]))
    assert margin > 0.01
    claimed = [(pairwise(scores, terms, margin)["p_equivalent"] < 0.05).mean() for scores, terms in drawn]
    assert np.mean(claimed) <= 0.055


def test_seeds_alone_would_not_cover() -> None:
    """Why the verdict counts examples too."""
    tables = [means_of(entries_of(scores)).compare(*PAIRS, 0.01) for scores, _ in experiments(MRPC, 20, 60)]
    table = pd.concat(tables)
    assert ((table["low"] <= 0) & (table["high"] >= 0)).mean() < 0.9


def test_the_average_covers_over_its_tasks() -> None:
    rng, covered = np.random.default_rng(7), []
    for _ in range(120):
        drawn = [experiment(kind, 5, rng) for kind in KINDS.values()]
        scores = np.mean([scores for scores, _ in drawn], axis=0)
        positions = np.arange(METHODS)
        terms = AverageTerms(tuple((part, positions) for _, part in drawn), len(drawn))
        table = means_of(entries_of(scores), terms).compare(*PAIRS, 0.01)
        covered.append(((table["low"] <= 0) & (table["high"] >= 0)).mean())
    assert 0.93 <= np.mean(covered) <= 0.97


# ---- against other code


def test_without_examples_it_is_welchs_test_of_two_samples() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(0.8, [[0.01], [0.03], [0.1]], (3, 5))
    row = means_of(entries_of(scores)).compare(np.array([0]), np.array([1]), 0.01).iloc[0]
    wanted = stats.ttest_ind(scores[0], scores[1], equal_var=False)
    interval = wanted.confidence_interval(0.95)
    assert (row["p"], row["degrees"]) == pytest.approx((wanted.pvalue, wanted.df))
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    p, _, _ = ttost_ind(scores[0], scores[1], -0.01, 0.01, usevar="unequal")
    assert row["p_equivalent"] == pytest.approx(p)


@pytest.mark.parametrize("seeds", [3, 5, 20])
@pytest.mark.parametrize("unstable", [1, METHODS // 2])
def test_it_keeps_its_level_where_some_settings_vary_far_more(seeds: int, unstable: int) -> None:
    """Why variances are not pooled: beside a setting that varies ten times as much, 1% would be called different."""
    rng = np.random.default_rng(seeds)
    deviation = np.ones((METHODS, 1))
    deviation[:unstable] = 10 if unstable == 1 else 3
    rejected = [
        means_of(entries_of(rng.normal(0, deviation, (METHODS, seeds)))).compare(*PAIRS, 0.01)["p"] < 0.05
        for _ in range(400)
    ]
    stable = [table[unstable:] if unstable == 1 else table for table in rejected]
    assert 0.025 <= np.mean(stable) <= 0.065


def test_a_contrast_of_two_means_is_their_comparison() -> None:
    scores, terms = experiment(COLA, 5, np.random.default_rng(11))
    lost = np.zeros(scores.shape, dtype=bool)
    lost[0, 0] = lost[9, 1] = True
    means = means_of(entries_of(scores, lost), terms)
    for first, second in ((0, 8), (3, 9)):
        row = means.compare(np.array([first]), np.array([second]), 0.01).iloc[0]
        wanted = (row["difference"], row["low"], row["high"])
        assert means.contrast(np.array([first, second]), np.array([1.0, -1.0])) == pytest.approx(wanted)


def test_the_mean_of_several_differences_covers() -> None:
    covered = []
    for scores, terms in experiments(MRPC, 5, 600):
        weights = np.repeat([1.0, -1.0], METHODS // 2) / (METHODS // 2)
        contrast = means_of(entries_of(scores), terms).contrast(np.concatenate(PAIRS), weights)
        covered.append(contrast.low <= 0 <= contrast.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_each_entry_has_the_interval_of_its_own_seeds() -> None:
    scores = np.random.default_rng(4).normal(0.8, 0.01, (30, 5))
    scores[0] = [0.1, 0.9, 0.5, 0.8, 0.2]
    means = means_of(entries_of(scores))
    low, high = means.intervals()
    wanted = stats.ttest_1samp(scores, 0, axis=1).confidence_interval(0.95)
    assert low == pytest.approx(wanted.low)
    assert high == pytest.approx(wanted.high)
    assert means.typical_deviation == pytest.approx(np.median(scores.std(axis=1, ddof=1)))


def test_with_one_seed_nothing_is_known_of_its_deviation() -> None:
    columns = {"n": [3, 1], "mean": [0.81, 0.7], "trimmed": [0.81, 0.7], "squares": [0.0002, 0.0]}
    means = means_of(pd.DataFrame(columns))
    assert np.isnan(means.variance).tolist() == [False, True]
    contrast = means.contrast(np.array([0, 1]), np.array([1.0, -1.0]))
    assert contrast.difference == pytest.approx(0.11)
    assert np.isnan([contrast.low, contrast.high]).all()


def test_of_fewer_than_three_seeds_there_is_no_interval_and_no_test() -> None:
    entries = entries_of(np.array([[0.8, 0.81, 0.82], [0.7, 0.71, 0.72]])).assign(n=[2, 3])
    means = means_of(entries)
    row = means.compare(np.array([0]), np.array([1]), 0.01).iloc[0]
    assert row[["low", "high", "p", "p_equivalent"]].isna().all()
    assert row["difference"] == pytest.approx(0.1)
    assert np.isnan(means.intervals()[0]).tolist() == [True, False]
    assert seed_interval([0.5, 0.6]) is None


def test_equal_scores_without_any_variance() -> None:
    scores = np.array([[0.5] * 3, [0.5] * 3, [0.6] * 3])
    table = means_of(entries_of(scores)).compare(np.array([0, 2]), np.array([1, 0]), 0.01)
    assert table["p"].tolist() == [1.0, 0.0]
    assert table["high"].tolist() == pytest.approx([0.0, 0.1])


def test_seed_interval_is_students() -> None:
    values = [0.90, 0.91, 0.93, 0.88, 0.92]
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert seed_interval(values) == pytest.approx((wanted.low, wanted.high))


def test_holm_is_statsmodels_and_its_definition() -> None:
    values = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    corrected = holm_correction(values)
    assert np.isnan(corrected[1])
    known = ~np.isnan(values)
    assert corrected[known] == pytest.approx(multipletests(values[known], method="holm")[1])
    assert corrected[[0, 2, 3]] == pytest.approx([0.04, 0.09, 0.09])
    assert np.isnan(holm_correction(np.array([np.nan]))).all()
    rng = np.random.default_rng(0)
    many = rng.random(200) ** 4
    assert holm_correction(many) == pytest.approx(multipletests(many, method="holm")[1])


def test_ranks_of_methods_far_apart_are_certain_and_of_equal_ones_open() -> None:
    rng = np.random.default_rng(5)
    levels = np.array([0.9, 0.8, 0.8, 0.6])
    ranking = rank_entries(means_of(entries_of(levels[:, None] + rng.normal(0, 0.002, (4, 5)))), np.arange(4))
    assert ranking.first.tolist() == [1, 2, 2, 4]
    assert ranking.last.tolist() == [1, 3, 3, 4]
    assert ranking.best.tolist() == [True, False, False, False]


@pytest.mark.parametrize("unstable", [0, 3])
def test_each_rank_holds_the_true_one_and_the_best_is_kept_in_nineteen_of_twenty_experiments(unstable: int) -> None:
    """Also where some entries vary far more than the others."""
    rng = np.random.default_rng(6)
    levels = np.linspace(0.8, 0.82, 8)[::-1]
    deviation = np.where(np.arange(8) < unstable, 0.04, 0.01)[:, None]
    right, kept = np.zeros(8), 0
    for _ in range(400):
        scores = levels[:, None] + deviation * rng.normal(size=(8, 5))
        ranking = rank_entries(means_of(entries_of(scores)), np.arange(8))
        true_rank = np.arange(1, 9)
        right += (ranking.first <= true_rank) & (true_rank <= ranking.last)
        kept += int(ranking.best[0])
    least = 0.95 * 400 - 2 * math.sqrt(400 * 0.05 * 0.95)
    assert right.min() >= least
    assert kept >= least


def test_the_best_is_kept_where_all_are_equal_and_share_their_examples() -> None:
    kept = [
        rank_entries(means_of(entries_of(scores), terms), np.arange(METHODS)).best.mean()
        for scores, terms in experiments(RTE, 5, 160)
    ]
    assert np.mean(kept) >= 0.95


def test_compared_with_the_best_mean_alone_equal_entries_would_be_called_worse_too_often() -> None:
    """Why each entry is compared with all others: the data have chosen the best mean."""
    rng = np.random.default_rng(12)
    wrong = []
    for _ in range(600):
        means = means_of(entries_of(rng.normal(0, 1, (METHODS, 20))))
        top = int(means.mean.argmax())
        others = np.delete(np.arange(METHODS), top)
        table = means.compare(others, np.full(len(others), top), 0.01)
        wrong.append(bool((holm_correction(table["p"].to_numpy()) < 0.05).any()))
    assert np.mean(wrong) > 0.1


def test_what_is_worse_than_another_entry_is_not_called_a_possible_best_for_other_pairs() -> None:
    """Two are certainly apart by the eight comparisons of each, and would not be by all thirty-six."""
    deviations = np.array([-1.2, -0.6, 0.0, 0.6, 1.2])
    levels = np.array([2.5, 0.0, *np.linspace(1.1, 1.4, 7)])
    means = means_of(entries_of(levels[:, None] + deviations))
    everyone = np.triu_indices(9, 1)
    table = means.compare(*everyone, 0.01)
    p = table["p"].iloc[0]
    assert 0.05 / 36 < p < 0.05 / 8
    assert holm_correction(table["p"].to_numpy())[0] > 0.05
    ranking = rank_entries(means, np.arange(9))
    assert ranking.best.tolist() == [True, False, *[True] * 7]
    assert (ranking.first[1], ranking.last[0]) == (2, 8)


def test_an_entry_without_a_test_may_have_any_rank_and_counts_for_no_other() -> None:
    entries = entries_of(np.array([[0.8, 0.81, 0.82], [0.7, 0.71, 0.72], [0.1, 0.1, 0.11]])).assign(n=[3, 3, 2])
    ranking = rank_entries(means_of(entries), np.arange(3))
    assert (ranking.first[2], ranking.last[2]) == (1, 3)
    assert ranking.best.tolist() == [True, False, False]
    assert ranking.first.tolist() == [1, 2, 1]


# ---- examples: what the predictions say without labels


def drawn_cells(seeds: int = 5, methods: int = 3, rows: int = 300) -> tuple[Values, Values, list[Indices]]:
    """Labels, predictions [methods · seeds, rows], and the cells of each method."""
    rng = np.random.default_rng(8)
    labels = (rng.random(rows) < 0.65).astype(float)
    easy = rng.normal(size=rows)
    skill = np.where(labels == 1, 1.2, 0.3)
    right = easy + skill + rng.normal(size=(methods * seeds, rows)) > 0
    predictions = np.where(right, labels, 1 - labels)
    return labels, predictions, [np.arange(seeds) + seeds * index for index in range(methods)]


def test_of_two_classes_the_variance_over_examples_needs_no_labels() -> None:
    labels, predictions, members = drawn_cells()
    right = (predictions == labels).astype(float)
    means = np.array([right[cells].mean() for cells in members])
    terms = accuracy_terms(predictions, means, members, 2)
    by_example = np.array([right[cells].mean(axis=0) for cells in members])
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])
    wanted = [np.cov(by_example[one], by_example[other])[0, 1] / 300 for one, other in zip(first, second, strict=True)]
    assert terms.covariance(first, second) == pytest.approx(wanted)
    within = [right[cells].var(axis=0, ddof=1).mean() / 5 for cells in members]
    alone = [(row.var(ddof=1) - part * 300 / 299) / 300 for row, part in zip(by_example, within, strict=True)]
    assert terms.covariance(np.arange(3), np.arange(3)) == pytest.approx(alone, rel=1e-9)


def test_of_three_classes_it_is_an_upper_bound() -> None:
    rng = np.random.default_rng(9)
    labels = rng.integers(0, 3, 400)
    predictions = np.array([np.where(rng.random(400) < 0.7, labels, rng.integers(0, 3, 400)) for _ in range(6)])
    right = (predictions == labels).astype(float)
    members = [np.arange(3), np.arange(3, 6)]
    terms = accuracy_terms(predictions.astype(float), right.reshape(2, 3, -1).mean(axis=(1, 2)), members, 3)
    gain = right[:3].mean(axis=0) - right[3:].mean(axis=0)
    zero, one = np.array([0]), np.array([1])
    bound = terms.covariance(zero, zero) + terms.covariance(one, one) - 2 * terms.covariance(zero, one)
    assert gain.var(ddof=1) / 400 <= bound[0] < 3 * gain.var(ddof=1) / 400


def test_the_share_of_ones_follows_from_accuracy_and_correlation() -> None:
    labels, predictions, _ = drawn_cells()
    accuracies = (predictions == labels).mean(axis=1)
    share = share_of_ones(predictions, accuracies, matthews(labels, predictions))
    assert share == pytest.approx(labels.mean())
    assert share_of_ones(np.ones((2, 10)), np.array([0.5, 0.5]), np.zeros(2)) is None


def test_with_more_cells_than_examples_the_labels_follow() -> None:
    labels, predictions, _ = drawn_cells(seeds=30, methods=4, rows=60)
    accuracies = (predictions == labels).mean(axis=1)
    assert ((estimate_labels(predictions, accuracies, labels.mean()) + 1) / 2).tolist() == labels.tolist()


def test_with_fewer_they_are_estimated_in_agreement_with_every_accuracy() -> None:
    labels, predictions, _ = drawn_cells()
    accuracies = (predictions == labels).mean(axis=1)
    signs = estimate_labels(predictions, accuracies, labels.mean())
    assert np.abs(signs).max() <= 1
    agreement = ((2 * predictions - 1) @ signs / 300 + 1) / 2
    assert agreement == pytest.approx(accuracies, abs=0.02)
    assert np.corrcoef(signs, labels)[0, 1] > 0.5


def test_the_variance_of_a_correlation_is_the_bootstraps() -> None:
    """Over examples, with the labels known from many cells."""
    labels, predictions, members = drawn_cells(seeds=5, methods=80, rows=200)
    scores = matthews(labels, predictions)
    terms = matthews_terms(predictions, (predictions == labels).mean(axis=1), scores, members)
    assert terms is not None
    one, other = np.array([0]), np.array([1])
    plain = ExampleTerms(
        terms.weights, terms.labels, terms.w, terms.q, terms.centre, terms.seed_part * 0, terms.known, terms.rows
    )
    variance = plain.covariance(one, one) + plain.covariance(other, other) - 2 * plain.covariance(one, other)
    rng = np.random.default_rng(10)
    resampled = []
    for _ in range(800):
        rows = rng.integers(0, 200, 200)
        both = matthews(labels[rows], predictions[:10][:, rows])
        resampled.append(both[:5].mean() - both[5:].mean())
    assert math.sqrt(variance[0]) == pytest.approx(np.std(resampled), rel=0.1)


def test_unknown_predictions_add_nothing() -> None:
    _, predictions, members = drawn_cells()
    terms = accuracy_terms(predictions, np.array([0.7, 0.7, np.nan]), [*members[:2], np.zeros(0, dtype=int)], 2)
    assert terms.covariance(np.array([2, 2]), np.array([2, 0])).tolist() == [0.0, 0.0]
    means = Means(np.array([0.7, 0.6, 0.5]), np.zeros(3), np.full(3, 5.0), np.full(3, 1e-4), terms)
    assert means.compare(np.array([2]), np.array([2]), 0.01)["error"].iloc[0] == pytest.approx(math.sqrt(2e-4 / 5))
