"""LoRA-Mini whose B_train learns at 16 times A_train's rate, as B does in LoRA+. Ours: a control for `mini`.

All else is as in `mini`. LoRA-Mini starts B_train at zero as LoRA starts B, so what a higher rate of B is worth to LoRA
(`lora-plus`, arXiv 2402.12354) has to be tried on it too before the two are compared. `mini-plus4` has the ratio 4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.mini import MiniVariant
from lora_bench.methods.recipe import Factor, Shape

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class MiniPlus(MiniVariant):
    """LoRA-Mini with a higher learning rate for B_train."""

    name = "mini-plus"
    title = "LoRA-Mini, B at 16 × (ours)"
    kind = "controls"
    default_lr = 5e-4
    ratio: ClassVar[float] = 16.0

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return LoRA-Mini's factors, with B_train at a multiple of the learning rate."""
        return tuple(
            replace(factor, rate=self.ratio) if factor.name == "B_train" else factor
            for factor in super().factors(cell, shape)
        )


RECIPE = MiniPlus()
