"""OLoRA (arXiv 2406.01775): A and B start from the QR decomposition of W, and that start leaves W.

With `W = Q R`: `A = R[:r]: [r, in]`, `B = Q[:, :r]: [out, r]` (orthonormal columns), both train, r (in + out) values,
and the layer computes `W + s (B A − B₀ A₀)` with s = alpha / r, so that the start is W itself. As in peft's `"olora"`;
of the paper only the abstract was read. What deviates: W stays whole and shared by all cells, the start is subtracted
from the update instead; a saved adapter holds A and B, its start is computed again from W.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Basis, Factor, Shape

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class Olora(Lora):
    name = "olora"
    title = "OLoRA"
    source = "arXiv 2406.01775"
    default_lr = 2e-4
    subtracts_start = True

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """LoRA's, from QR."""
        a, b = super().factors(cell, shape)
        return replace(a, start=Basis("qr", "input")), replace(b, start=Basis("qr", "output"))


RECIPE = Olora()
