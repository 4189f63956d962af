"""OwLore (Li et al. 2024, arXiv 2405.18380): LISA with layers drawn by their outliers, and GaLore within them.

Read: the authors' code (pixeli99/OwLore e415973 `finetuner.py`, and luuyin/OWL's `prune_all.py` for the measure), not
the paper's text. Every `b` steps, `a` layers are drawn without replacement, each in proportion to the share of its
`|W[i, j]| · ‖x[j]‖` above 13 times their mean. Until the next draw the linear weights of these layers train by GaLore
with rank `rank`, scale 1 and a gap of 100 of the weight's own steps, their other parameters by Adam; the embeddings and
the head train at every step. Defaults 5 layers, 50 steps and rank 256 are the code's.

Deviations: the shares are measured on the cell's own model and first 128 training rows, since the authors' file holds
those of Llama-2 (13 is from its name, and their code opens a file of another name); a layer without outliers is drawn
only when no other is left, where numpy would fail. No GLUE setting was found; the default rate is that of `full`. Time
and memory as for `lisa` and `galore`, and the head as there.
"""

from __future__ import annotations

from typing import ClassVar

from lora_bench.cell import Cell
from lora_bench.methods.recipe import a_of, b_of, rank_of
from lora_bench.methods.rules import LayerDraws, Projection, WeightRule
from lora_bench.methods.unadapted import Unadapted

OUTLIERS, GAP, SCALE = 13.0, 100, 1.0
EPSILON = 1e-6  # the default of GaLoreAdamW


class OwLore(Unadapted):
    """Trains layers with many outliers more often, by low-rank gradients."""

    name = "owlore"
    title = "OwLore"
    source = "arXiv 2405.18380"
    kind = "whole weights"
    parameters = frozenset({"rank", "a", "b"})
    defaults: ClassVar = {"rank": 256, "a": 5, "b": 50}
    default_lr = 2e-5
    trains_backbone = True

    def weights(self, cell: Cell) -> WeightRule:
        """Return the projection and the draws."""
        draws = LayerDraws(a_of(cell), b_of(cell), OUTLIERS)
        return WeightRule(Projection(rank_of(cell), SCALE, GAP), draws, epsilon=EPSILON, is_early=True)


RECIPE = OwLore()
