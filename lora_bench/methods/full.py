"""Full fine-tuning: the whole backbone trains. It shares no frozen weights, so its packs are packs of one."""

from __future__ import annotations

from lora_bench.methods.recipe import Unadapted


class Full(Unadapted):
    name = "full"
    title = "Full fine-tuning"
    source = "the usual baseline"
    default_lr = 2e-5
    trains_backbone = True


RECIPE = Full()
