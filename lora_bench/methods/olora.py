"""OLoRA (arXiv 2406.01775): A and B start from the QR decomposition of W, and their start is subtracted from W.

With `W = Q R`: `A = R[:r]: [r, in]`, `B = Q[:, :r]: [out, r]` (orthonormal columns), both train, r (in + out) values,
and the layer computes `W + s (B A − B₀ A₀)` with s = alpha / r, so that the start is W itself. As in peft's `"olora"`;
of the paper only the abstract was read. Deviation: W is unchanged and shared by all cells, and the start is subtracted
from the update instead. A saved adapter holds A and B; its start is computed again from W.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Basis, Factor, Shape

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class Olora(Lora):
    """LoRA that starts from the QR decomposition of the weight."""

    name = "olora"
    title = "OLoRA"
    source = "arXiv 2406.01775"
    default_lr = 2e-4
    subtracts_start = True

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return LoRA's factors, which start from QR."""
        a, b = super().factors(cell, shape)
        return replace(a, start=Basis("qr", "input")), replace(b, start=Basis("qr", "output"))


RECIPE = Olora()
