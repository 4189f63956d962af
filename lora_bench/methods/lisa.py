"""LISA (Pan et al. 2024, arXiv 2403.17919): full fine-tuning of a few layers at a time, drawn at random.

Read: the authors' code (OptimalScale/LMFlow f3597db), not the paper's text. Every `b` steps, `a` layers are drawn
uniformly without replacement. All parameters of these layers train until the next draw, the embeddings and the head at
every step. A layer that does not train keeps its moments, and Adam's bias correction counts the layer's own steps.
Defaults 2 and 20 are the code's. Draws are a function of the seed and the number of the interval.

Deviations: no GLUE setting was found; the default rate is that of `full`. Gradients of layers that do not train are
computed and left unused, so time and memory are those of full fine-tuning.
"""

from __future__ import annotations

from typing import ClassVar

from lora_bench.cell import Cell
from lora_bench.methods.recipe import a_of, b_of
from lora_bench.methods.rules import LayerDraws, WeightRule
from lora_bench.methods.unadapted import Unadapted


class Lisa(Unadapted):
    """Trains some layers of the encoder at a time."""

    name = "lisa"
    title = "LISA"
    source = "arXiv 2403.17919"
    kind = "whole weights"
    parameters = frozenset({"a", "b"})
    defaults: ClassVar = {"a": 2, "b": 20}
    default_lr = 2e-5
    trains_backbone = True

    def weights(self, cell: Cell) -> WeightRule:
        """Return the draws, all layers alike."""
        return WeightRule(layers=LayerDraws(a_of(cell), b_of(cell)))


RECIPE = Lisa()
