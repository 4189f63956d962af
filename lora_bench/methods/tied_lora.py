"""Tied-LoRA (Renduchintala et al., arXiv 2311.09578): one trained pair A, B for all layers, two vectors a weight.

The update is `s · diag(v) B diag(u) A` with s = alpha / rank, `u: [r]` from 1 and `v: [out]` from zero, of which each
weight has its own. `A: [r, in]` starts Kaiming-uniform (a = √5) and `B: [out, r]` likewise; both train, and their
gradients are summed over the weights that share them. Values: r + out for each weight, and r (in + out) once.

Read: the abstract and summaries, not the paper nor its code (in NVIDIA's NeMo, where we could not find it). The form is
that of the summaries, and agrees with the count in VB-LoRA's paper (arXiv 2405.15179: 43,000 values on queries and
values of RoBERTa-base, r = 16). Where the summaries are silent the choice is ours: how the factors start, the scale,
and that weights share A if they have equally many inputs, B if they have equally many outputs. With queries and values
alone, the setting of that count, there is one pair.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from lora_bench.methods.recipe import Constant, Factor, Recipe, Shape, Uniform, Update, Zeros, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class TiedLora(Recipe):
    """Trains one A and one B for all weights, and scales both for each weight."""

    name = "tied-lora"
    title = "Tied-LoRA"
    source = "arXiv 2311.09578"
    kind = "shared factors"
    default_lr = 2e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`A: [r, in]` and `B: [out, r]` shared, `u: [r, 1]` and `v: [out, 1]` for each weight."""
        rank = rank_of(cell)
        return (
            Factor("A", rank, shape.inputs, Uniform(shape.inputs**-0.5), shared=True),
            Factor("u", rank, 1, Constant(1.0)),
            Factor("B", shape.outputs, rank, Uniform(rank**-0.5), shared=True),
            Factor("v", shape.outputs, 1, Zeros()),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Scale the rows of A by u and the rows of B by v."""
        return Update(factors["u"] * factors["A"], factors["v"] * factors["B"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r + out."""
        return rank_of(cell) + shape.outputs

    def once(self, cell: Cell, shapes: Collection[Shape]) -> int:
        """Return r (in + out), where each different number of inputs, and of outputs, is counted once."""
        return rank_of(cell) * (sum({shape.inputs for shape in shapes}) + sum({shape.outputs for shape in shapes}))


RECIPE = TiedLora()
