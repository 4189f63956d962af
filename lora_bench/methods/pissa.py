"""PiSSA (arXiv 2404.02948): A and B start from the leading singular directions of W, which are subtracted from W.

With `W = V S Uᵀ` cut to r and s = alpha / r: `A = √(S / s) Uᵀ: [r, in]`, `B = V √(S / s): [out, r]`, both train,
r (in + out) values, and the layer computes `W + s (B A − B₀ A₀)`, so that the start is W itself, as in peft's
`"pissa"`; the paper itself was not read. Deviation: W is unchanged and shared by all cells, and the start is subtracted
from the update instead. A saved adapter holds A and B; its start is computed again from W.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Basis, Factor, Shape

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class Pissa(Lora):
    """LoRA that starts from the leading singular directions of the weight."""

    name = "pissa"
    title = "PiSSA"
    source = "arXiv 2404.02948"
    default_lr = 2e-4
    subtracts_start = True

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return LoRA's factors, which start from singular directions times the roots of their singular values."""
        a, b = super().factors(cell, shape)
        gain = self.scale(cell) ** -0.5
        start_a, start_b = Basis("balanced-svd", "input", gain), Basis("balanced-svd", "output", gain)
        return replace(a, start=start_a), replace(b, start=start_b)


RECIPE = Pissa()
