"""Draws are functions of their key: the same for ever, in any order, on any machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from lora_bench.engine.randomness import Floats, normal, permutation, seed_of, uniform

NORMAL = [
    [0.39755125823598664, 0.6170223139258141, -0.9357984441975677],
    [1.2612763675435898, 1.653932822033908, -0.23070428040600818],
]
UNIFORM = [[0.944084179531886, -0.8666977653148046], [0.2860168743644964, -0.00270626699832055]]


def test_the_stream_of_normal_is_frozen() -> None:
    """A saved adapter stores the seed alone: if these numbers change, it means something else."""
    np.testing.assert_allclose(normal(2, 3, 0, "m", "A"), NORMAL, rtol=1e-14)


def test_the_stream_of_uniform_is_frozen() -> None:
    assert uniform(2, 2, 7, "layer", "B").tolist() == UNIFORM


def test_the_stream_of_permutation_is_frozen() -> None:
    assert permutation(8, 3, "order", 1).tolist() == [5, 7, 4, 3, 2, 6, 1, 0]


def test_the_stream_of_seeds_is_frozen() -> None:
    assert seed_of(0, "dropout", 5) == 2545953485903313884


def test_draws_do_not_depend_on_what_was_drawn_before() -> None:
    keys = [(0, "a", "A"), (0, "a", "B"), (1, "a", "A"), (0, "b", "A")]
    forward = [normal(3, 4, *key) for key in keys]
    np.random.default_rng().random(5)
    permutation(10, 1)
    backward = [normal(3, 4, *key) for key in reversed(keys)]
    assert all(np.array_equal(one, other) for one, other in zip(forward, reversed(backward), strict=True))


def test_different_keys_are_different_draws() -> None:
    keys: list[tuple[int | str, ...]] = [(0, "a", "A"), (0, "a", "B"), (1, "a", "A"), (0, "b", "A"), ("0a", "A"), (0,)]
    draws = {normal(2, 2, *key).tobytes() for key in keys}
    assert len(draws) == len(keys)
    assert len({seed_of(0, "dropout", step) for step in range(500)}) == 500


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    assert seed_of(1, 23) != seed_of(12, 3)
    assert seed_of("a", "bc") != seed_of("ab", "c")


@pytest.mark.parametrize("draw", [normal, uniform])
def test_rows_are_a_prefix(draw: Callable[..., Floats]) -> None:
    """A factor of more rows begins with that of fewer, so that ranks compare on common random numbers."""
    assert np.array_equal(draw(3, 5, 0, "m", "A"), draw(8, 5, 0, "m", "A")[:3])


def test_moments_of_normal() -> None:
    values = normal(400, 500, 0, "moments").ravel()
    count = len(values)
    assert abs(values.mean()) < 4 / count**0.5
    assert abs(values.std() - 1) < 4 / (2 * count) ** 0.5
    assert abs(stats.skew(values)) < 4 * (6 / count) ** 0.5
    assert abs(stats.kurtosis(values)) < 4 * (24 / count) ** 0.5
    assert stats.kstest(values[:20000], "norm").pvalue > 1e-3


def test_moments_of_uniform() -> None:
    values = uniform(400, 500, 0, "moments").ravel()
    assert values.min() > -1
    assert values.max() < 1
    assert abs(values.mean()) < 4 / (3 * len(values)) ** 0.5
    assert stats.kstest(values[:20000], "uniform", (-1, 2)).pvalue > 1e-3


def test_neighbouring_seeds_are_uncorrelated() -> None:
    one, other = normal(200, 200, 0, "m").ravel(), normal(200, 200, 1, "m").ravel()
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / 200


def test_permutations_hold_every_row_once_and_change_by_epoch() -> None:
    orders = [permutation(100, 3, "order", epoch) for epoch in range(20)]
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 20
    first = np.array([permutation(10, "spread", trial)[0] for trial in range(1000)])
    assert stats.chisquare(np.bincount(first, minlength=10)).pvalue > 1e-3


def test_a_seed_fits_a_torch_generator() -> None:
    assert all(0 <= seed_of(step) < 2**63 for step in range(200))
