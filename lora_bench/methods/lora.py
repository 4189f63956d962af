"""LoRA (Hu et al., arXiv 2106.09685): A and B train; A starts Kaiming-uniform (a = √5), B at zero, as in the code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Factor, Kind, Recipe, Shape, Uniform, Update, Zeros, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Lora(Recipe):
    """LoRA: A and B train."""

    name = "lora"
    title = "LoRA"
    source = "arXiv 2106.09685"
    kind: ClassVar[Kind] = "low-rank pairs"
    default_lr = 5e-4

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return `A: [r, in]` and `B: [out, r]`."""
        rank = rank_of(cell)
        return (
            Factor("A", rank, shape.inputs, Uniform(shape.inputs**-0.5)),
            Factor("B", shape.outputs, rank, Zeros()),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Use A and B as they are."""
        return Update(factors["A"], factors["B"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r (in + out)."""
        return rank_of(cell) * (shape.inputs + shape.outputs)


RECIPE = Lora()
