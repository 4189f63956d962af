"""GaLore (Zhao et al. 2024, arXiv 2403.03507): all of the encoder trains, its linears by low-rank gradients.

Read: the authors' package (jiaweizzhao/GaLore 2cc66f8), its GLUE script and README, not the paper's text. The gradient
of every linear weight of the layers is projected on its first `rank` singular vectors, which are recomputed every `b`
steps. Adam runs on the projection, and its step is projected back and multiplied by `alpha / rank`: rank 8 and alpha 16
are the paper's rank 8 and scale 2, rank 4 is its scale 4. Moments are not rotated with the directions, epsilon is 1e-6
and is added before the bias correction, and decay comes after the step: all as in `GaLoreAdamW`. All other parameters
of the encoder train by plain Adam.

Deviations: the head trains by the benchmark's AdamW (epsilon 1e-8); biases and norms do not decay; gradients are
clipped as in every method, by the norm before the projection. The moments of a projection lie in memory for those of
the whole weight, so memory is that of full fine-tuning: what is reproduced is the training, not its saving of memory.
Singular vectors are computed in the cell's type, theirs in float32.
"""

from __future__ import annotations

from typing import ClassVar

from lora_bench.cell import Cell
from lora_bench.methods.recipe import b_of, rank_of
from lora_bench.methods.rules import Projection, WeightRule
from lora_bench.methods.unadapted import Unadapted

EPSILON = 1e-6  # the default of the authors' GaLoreAdamW


class GaLore(Unadapted):
    """Trains the whole encoder by low-rank gradients."""

    name = "galore"
    title = "GaLore"
    source = "arXiv 2403.03507"
    kind = "whole weights"
    parameters = frozenset({"rank", "alpha", "b"})
    defaults: ClassVar = {"rank": 8, "alpha": 16.0, "b": 500}
    default_lr = 2e-5  # among those of the paper's Table 7
    trains_backbone = True

    def weights(self, cell: Cell) -> WeightRule:
        """Return the projection, for all layers."""
        projection = Projection(rank_of(cell), self.scale(cell), b_of(cell))
        return WeightRule(projection, epsilon=EPSILON, is_early=True)


RECIPE = GaLore()
