"""CoRA, first strategy (Xiao et al., arXiv 2409.02119): B is a frozen common basis, only A trains. Our port.

The paper takes the basis from several fine-tuned Llama models; it does not say how it joins them, and nothing in it
concerns encoders. Here the basis is that of the pretrained model itself: the leading left singular vectors of the
layer's joined `[Wq | Wk | Wv]`, or, for a weight that is none of these, of that weight alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_bench.methods.recipe import Basis, Factor, Recipe, Shape, Update, Zeros, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Cora(Recipe):
    """LoRA with a frozen common basis as B."""

    name = "cora"
    title = "CoRA, frozen basis (our port)"
    source = "arXiv 2409.02119, strategy 1"
    kind = "low-rank pairs"
    default_lr = 1e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`A: [r, in]` trained from zero, `B: [out, r]` frozen."""
        rank = rank_of(cell)
        return (
            Factor("A", rank, shape.inputs, Zeros()),
            Factor("B", shape.outputs, rank, Basis("joint-svd", "output"), trainable=False),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Use A and B as they are."""
        return Update(factors["A"], factors["B"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r · in."""
        return rank_of(cell) * shape.inputs


RECIPE = Cora()
