"""LoRA-FA (arXiv 2308.03303): LoRA with A frozen at its random start; only B trains.

`A: [r, in]` Kaiming-uniform (a = √5) and frozen, drawn from the cell's seed; `B: [out, r]` from zero; r · out values.
That the paper's first version is this plain freezing is from memory, not read. Deviation: peft's LoRA-FA
optimiser freezes A too but also multiplies B's gradient by (A Aᵀ)⁻¹ / scaling²; here B has its own gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Factor, Shape, rank_of

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class LoraFA(Lora):
    """LoRA with a frozen A."""

    name = "lora-fa"
    title = "LoRA-FA"
    source = "arXiv 2308.03303"
    default_lr = 1e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return LoRA's factors with A frozen."""
        a, b = super().factors(cell, shape)
        return replace(a, trainable=False), b

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r · out."""
        return rank_of(cell) * shape.outputs


RECIPE = LoraFA()
