"""LoRA-Mini whose B_train learns at 4 times A_train's rate. Ours: a control for `mini`; see `mini-plus`."""

from __future__ import annotations

from typing import ClassVar

from lora_bench.methods.mini_plus import MiniPlus


class MiniPlus4(MiniPlus):
    """LoRA-Mini with a moderately higher learning rate for B_train."""

    name = "mini-plus4"
    title = "LoRA-Mini, B at 4 × (ours)"
    default_lr = 1e-3
    ratio: ClassVar[float] = 4.0


RECIPE = MiniPlus4()
