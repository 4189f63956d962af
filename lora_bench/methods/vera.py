"""VeRA (arXiv 2310.11454): random frozen A and B that all layers share; two vectors train for each weight.

The update is `diag(b) B diag(d) A` without a scale: `d: [r]` from 0.1, `b: [out]` from zero, r + out values.
`A: [r, in]` and `B: [out, r]` are Kaiming-uniform (gain √2) as in peft, drawn for the seed and their size, not for the
layer. The paper itself was not read. Deviation: weights of another size have another pair, while peft cuts all pairs
from the largest one. The default rank is peft's, 256; a replication's scripts have 1024 for RoBERTa-base, q and v.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Constant, Factor, Recipe, Shape, Uniform, Update, Zeros, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Vera(Recipe):
    """Trains two scaling vectors around frozen random factors that all layers share."""

    name = "vera"
    title = "VeRA"
    source = "arXiv 2310.11454"
    kind = "inside frozen factors"
    parameters = frozenset({"rank", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 256, "targets": "attention"}
    default_lr = 1e-2

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`A: [r, in]` and `B: [out, r]` frozen and shared, `d: [r, 1]` and `b: [out, 1]` trained."""
        rank = rank_of(cell)
        return (
            Factor("A", rank, shape.inputs, Uniform((6 / shape.inputs) ** 0.5), trainable=False, shared=True),
            Factor("d", rank, 1, Constant(0.1)),
            Factor("B", shape.outputs, rank, Uniform((6 / rank) ** 0.5), trainable=False, shared=True),
            Factor("b", shape.outputs, 1, Zeros()),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Scale the rows of A by d and the rows of B by b."""
        return Update(factors["d"] * factors["A"], factors["b"] * factors["B"])

    def scale(self, cell: Cell) -> float:
        """Return 1: there is no scale."""
        return 1.0

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r + out."""
        return rank_of(cell) + shape.outputs


RECIPE = Vera()
