"""MoSLoRA, mixture of subspaces (Wu et al., arXiv 2406.11909): LoRA with a trained r × r mixer between its factors.

The update is `s · B M A` with s = alpha / r: `A: [r, in]` and `M: [r, r]` Kaiming-uniform (a = √5), `B: [out, r]` from
zero; all three train, r (in + out) + r² values. The mixer lets every row of A meet every column of B. Read: the
authors' code (github wutaiqiang/MoSLoRA, bba79b5: commonsense_reasoning/peft/src/peft/tuners/lora.py), not the paper.
There is no deviation from that code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Factor, Shape, Uniform, Update, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class MosLora(Lora):
    """LoRA with a mixer between A and B."""

    name = "moslora"
    title = "MoSLoRA"
    source = "arXiv 2406.11909"
    default_lr = 5e-4

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return LoRA's factors, and `M: [r, r]`."""
        rank = rank_of(cell)
        return (*super().factors(cell, shape), Factor("M", rank, rank, Uniform(rank**-0.5)))

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose M A and B."""
        return Update(factors["M"] @ factors["A"], factors["B"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r (in + out) + r²."""
        return super().trainable(cell, shape) + rank_of(cell) ** 2


RECIPE = MosLora()
