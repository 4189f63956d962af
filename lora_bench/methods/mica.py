"""MiCA, minor component adaptation (arXiv 2604.01694): LoRA whose B is frozen at W's last left singular vectors.

`A: [r, in]` from zero trains; `B: [out, r]` holds the left singular vectors of W for its r smallest singular values, of
the min(in, out) that it has; s = alpha / r; r · in values. As in peft's `init_lora_weights="mica"`; the paper itself
was not read. There is no deviation but the vectors' signs, which are fixed here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Basis, Factor, Shape, Zeros, rank_of

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class Mica(Lora):
    """LoRA with B frozen at minor singular directions."""

    name = "mica"
    title = "MiCA"
    source = "arXiv 2604.01694"
    default_lr = 1e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`A: [r, in]` trained from zero, `B: [out, r]` frozen."""
        a, b = super().factors(cell, shape)
        return replace(a, start=Zeros()), replace(b, start=Basis("minor-vectors", "output"), trainable=False)

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r · in."""
        return rank_of(cell) * shape.inputs


RECIPE = Mica()
