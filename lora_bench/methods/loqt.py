"""LoQT (Loeschcke et al. 2024, arXiv 2405.16528), unquantised (the paper's LoQT-nq): factors merged again and again.

Read: the authors' code (sebulo/LoQT 375b41a) and GLUE scripts, not the paper's text. Every linear weight of the layers
is `W + (alpha / rank) B P`: P is the leading singular directions, `rank` of them, of the gradient of W on one batch,
frozen; B starts at zero and trains. After `b` batches B is merged into W, and P is recomputed; that batch makes no
step, and Adam's moments stay. The biases of these weights train, everything else of the encoder is frozen. Defaults:
rank 32 and alpha 64 (the scripts' factor of 2, which they do not divide by the rank), gaps of 2,400 batches (static, as
in the GLUE scripts), rate 1e-4.

The factor is never formed: a step of Adam on B is a step of W within P, and merging changes nothing.

Deviations: not quantised, as that needs bitsandbytes' NF4 on a GPU; gaps are static (the paper's growing ones are not
offered); the schedule counts the batches that give P; singular vectors are computed in the cell's type, theirs in
float32; weight decay, 0 in the scripts, does not apply to B and biases. Clipping measures the gradients of B, the
biases and the head. W is a copy per cell, saved whole.
"""

from __future__ import annotations

from typing import ClassVar

from lora_bench.cell import Cell
from lora_bench.methods.recipe import b_of, rank_of
from lora_bench.methods.rules import Projection, WeightRule
from lora_bench.methods.unadapted import Unadapted


class LoQT(Unadapted):
    """Trains a factor of every weight, in directions of its gradient, and merges it."""

    name = "loqt"
    title = "LoQT (unquantised)"
    source = "arXiv 2405.16528"
    kind = "whole weights"
    parameters = frozenset({"rank", "alpha", "b"})
    defaults: ClassVar = {"rank": 32, "alpha": 64.0, "b": 2400}
    default_lr = 1e-4
    trains_backbone = True

    def weights(self, cell: Cell) -> WeightRule:
        """Return the projection that stands for the factor."""
        return WeightRule(Projection(rank_of(cell), self.scale(cell), b_of(cell), is_factor=True))


RECIPE = LoQT()
