"""DoRA, weight-decomposed (Liu et al., arXiv 2402.09353): LoRA sets the direction of each row of W, m its length.

`y = m ⊙ (W x + s · B A x) / ‖W + s B A‖ + bias` with the norms of rows: `A: [r, in]` Kaiming-uniform (a = √5),
`B: [out, r]` from zero and `m: [out, 1]` from ‖W‖ train: r (in + out) + out values. The norm is a constant in the
backward pass, as in peft's `use_dora`, which quotes section 4.3 for it; the paper itself was not read. (The paper
speaks of columns: its W is [in, out].) The only deviation from peft: the norm is computed without forming B A, from
‖W‖² + 2 s (W Aᵀ ⊙ B) + s² (B (A Aᵀ)) ⊙ B. Another method of that name (dynamic rank, arXiv 2405.17357) is not this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Basis, Factor, Shape, Touch, Update

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Dora(Lora):
    """LoRA with a trained norm for each row of the weight."""

    name = "dora"
    title = "DoRA (weight-decomposed)"
    source = "arXiv 2402.09353"
    default_lr = 5e-4
    normalises = True

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return LoRA's factors, and `m: [out, 1]`."""
        return (*super().factors(cell, shape), Factor("m", shape.outputs, 1, Basis("row-norms", "output")))

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose LoRA's update, and scale its rows to the norm m."""
        return super().update(factors)._replace(gain=factors["m"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r (in + out) + out."""
        return super().trainable(cell, shape) + shape.outputs

    def touches(self, shape: Shape) -> tuple[Touch, ...]:
        """Return gain and shift: the shift undoes the effect of the gain on the bias."""
        return ("gain", "shift")

    def update_rank(self, cell: Cell) -> None:
        """Return None, any rank: the norms of all rows of W change."""


RECIPE = Dora()
