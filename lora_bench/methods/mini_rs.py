"""LoRA-Mini whose update is scaled by alpha / √r, not alpha / r, as rsLoRA's is. Ours: a control for `mini`.

All else is as in `mini`. With alpha / r a large rank starts with a small update, which a searched learning rate need
not make up for; rsLoRA (arXiv 2312.03732) is to LoRA what this is to LoRA-Mini.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_bench.methods.mini import MiniVariant
from lora_bench.methods.recipe import rank_of

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class MiniRs(MiniVariant):
    """LoRA-Mini with the scale alpha / √r."""

    name = "mini-rs"
    title = "LoRA-Mini, alpha / √r (ours)"
    kind = "controls"
    default_lr = 1e-3

    def scale(self, cell: Cell) -> float:
        """Return alpha / √r."""
        return super().scale(cell) * math.sqrt(rank_of(cell))


RECIPE = MiniRs()
