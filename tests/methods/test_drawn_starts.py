"""The sizes of what methods draw at the start: other tests take our start over into the other implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from lora_bench.contracts.kit import Workbench, cell_of
from lora_bench.engine.adapters.pack import Pack

RANK = 32


@dataclass(frozen=True)
class Spread:
    """What a factor is drawn from.

    Attributes:
        size: The bound of a uniform distribution, or the standard deviation of a normal one, from (in, out, rank).
        is_uniform: Whether it is a uniform one.
    """

    size: Callable[[int, int, int], float]
    is_uniform: bool = True


def kaiming(inputs: int, _: int, __: int) -> float:
    """`nn.Linear`'s, and Kaiming-uniform with a = √5."""
    return 1 / math.sqrt(inputs)


def normal(std: float) -> Spread:
    return Spread(lambda *_: std, is_uniform=False)


def uniform(bound: float) -> Spread:
    return Spread(lambda *_: bound)


# As peft's code or the authors' has them; 0 or 1 where a factor is constant. n = ⌈1.5 r⌉ of the rank schedules is 48.
STARTS: dict[tuple[str, str], Spread | float] = {
    ("moslora", "A"): Spread(kaiming),
    ("moslora", "M"): Spread(lambda _, __, rank: rank**-0.5),
    ("moslora", "B"): 0.0,
    ("melora", "A"): Spread(lambda inputs, _, __: (inputs / 2) ** -0.5),  # of the inputs of a slice
    ("melora", "B"): 0.0,
    ("gralora", "A"): Spread(lambda inputs, _, __: (inputs / 2) ** -0.5),
    ("gralora", "B"): 0.0,
    ("miss", "D"): 0.0,
    ("mica", "A"): 0.0,
    ("delora", "A"): Spread(kaiming),
    ("delora", "B"): 0.0,
    ("delora", "size"): 8.0,  # alpha
    ("red", "g"): 1.0,
    ("red", "t"): 0.0,
    ("clora", "A"): Spread(kaiming),
    ("clora", "B"): 0.0,
    ("kasa", "A"): Spread(kaiming),
    ("kasa", "B"): 0.0,
    ("kasa", "c"): normal(1.0),
    ("adalora", "A"): normal(0.02),
    ("adalora", "B"): normal(0.02),
    ("adalora", "c"): 0.0,
    ("dora-dyn", "A"): Spread(lambda inputs, _, __: (6 / inputs) ** 0.5),  # Kaiming-uniform with a = 0
    ("dora-dyn", "B"): Spread(lambda _, __, ___: (6 / 48) ** 0.5),
    ("dora-dyn", "c"): 0.0,
    ("sora", "A"): Spread(kaiming),
    ("sora", "B"): 0.0,
    ("sora", "c"): normal(1.0),
    ("vb-lora", "bank"): uniform(0.02),
    ("vb-lora", "A_logits"): normal(0.1),
    ("vb-lora", "B_logits"): normal(0.1),
    ("uni-lora", "theta"): uniform(0.02),
    ("tied-lora", "A"): Spread(kaiming),  # ours, as the docstring says
    ("tied-lora", "B"): Spread(lambda _, __, rank: rank**-0.5),
    ("tied-lora", "u"): 1.0,
    ("tied-lora", "v"): 0.0,
    ("laplace-lora", "A"): Spread(kaiming),
    ("laplace-lora", "B"): 0.0,
    ("laplace-lora-last", "A"): Spread(kaiming),
    ("laplace-lora-last", "B"): 0.0,
    ("scalabl", "B"): 0.0,
}
SIZES: dict[str, dict[str, Any]] = {
    "vb-lora": {"a": 60, "b": 16}, "uni-lora": {"a": 2000}, "melora": {"a": 2}, "gralora": {"a": 2},
}  # fmt: skip


def drawn(bench: Workbench, method: str) -> dict[str, dict[tuple[int, int], Tensor]]:
    """All values of each trained factor by the shape `(in, out)` of the weights that have it."""
    cell = cell_of(method, rank=RANK, precision="float64", seed=11, **SIZES.get(method, {}))
    (group,) = Pack([cell], bench.load("float64"), 2).bank.groups
    found: dict[str, dict[tuple[int, int], Tensor]] = {}
    for family, factors in group.factors(group.block.matrix.detach()).items():
        for factor in group.recipe.factors(cell, family.shape):
            if factor.trainable:
                values = factors[factor.name][0].flatten()
                found.setdefault(factor.name, {})[family.shape.inputs, family.shape.outputs] = values
    return found


@pytest.mark.parametrize("method", sorted({method for method, _ in STARTS}))
def test_a_start_has_the_published_size(method: str, bench: Workbench) -> None:
    found = drawn(bench, method)
    expected = {name: start for (of, name), start in STARTS.items() if of == method}
    assert set(found) - {"V", "log_scale", "log_spread"} == set(expected)  # ScalaBL's others have a test of their own
    for name, start in expected.items():
        for (inputs, outputs), values in found[name].items():
            if not isinstance(start, Spread):
                assert bool((values == start).all()), name
                continue
            size = start.size(inputs, outputs, RANK)
            distinct = values.unique()
            # Of n values, a standard deviation is known to one part in √(2 n); four times that here, or less.
            tolerance = 4 / math.sqrt(2 * len(distinct))
            assert tolerance < 0.36
            assert float(distinct.std()) == pytest.approx(size / (3**0.5 if start.is_uniform else 1), rel=tolerance)
            if start.is_uniform:
                assert (1 - 20 / len(distinct)) * size < float(values.abs().max()) <= size
