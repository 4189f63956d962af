"""LoRA+ (arXiv 2402.12354): LoRA whose B learns at a multiple of A's rate: η_B = 16 η_A, with η_A the cell's rate.

`A: [r, in]` Kaiming-uniform (a = √5), `B: [out, r]` from zero, both train: r (in + out) values. The paper itself was
not read. Its repository's README calls the best ratio dependent on model and task, and advises a slightly smaller η_A
than LoRA's; 16 is the value that axolotl's documentation recommends. It is not the authors' on GLUE: their RoBERTa-base
script for MNLI (github nikhil-ghosh-berkeley/loraplus, a0c44bf; r 8, alpha 8, q and v) has a ratio of 80 and η_A =
5e-5. Deviations from peft's optimiser: the head keeps its own rate (there its weights have η_A, its biases η_B), and
weight decay is the cell's (there 0 by default).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Factor, Shape

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class LoraPlus(Lora):
    """LoRA with a higher learning rate for B."""

    name = "lora-plus"
    title = "LoRA+"
    source = "arXiv 2402.12354"
    default_lr = 2e-4
    ratio: ClassVar[float] = 16.0

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return LoRA's factors, with B at a multiple of the learning rate."""
        a, b = super().factors(cell, shape)
        return a, replace(b, rate=self.ratio)


RECIPE = LoraPlus()
