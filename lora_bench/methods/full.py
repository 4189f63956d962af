"""Full fine-tuning: the whole backbone trains. Its cells share no frozen weights, so each trains in a pack of one."""

from __future__ import annotations

from lora_bench.methods.unadapted import Unadapted


class Full(Unadapted):
    """Trains the whole encoder."""

    name = "full"
    title = "Full fine-tuning"
    source = "the usual baseline"
    kind = "whole weights"
    default_lr = 2e-5
    trains_backbone = True


RECIPE = Full()
