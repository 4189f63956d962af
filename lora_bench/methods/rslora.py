"""rsLoRA, rank-stabilised LoRA (arXiv 2312.03732): LoRA whose update is scaled by alpha / √r, not alpha / r.

`A: [r, in]` Kaiming-uniform (a = √5), `B: [out, r]` from zero, both train: r (in + out) values. Formula and paper as
peft's `use_rslora` states them; the paper itself was not read. Nothing deviates from peft.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import rank_of

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class RsLora(Lora):
    """LoRA with the scale alpha / √r."""

    name = "rslora"
    title = "rsLoRA"
    source = "arXiv 2312.03732"
    default_lr = 2e-4

    def scale(self, cell: Cell) -> float:
        """Return alpha / √r."""
        return super().scale(cell) * math.sqrt(rank_of(cell))


RECIPE = RsLora()
