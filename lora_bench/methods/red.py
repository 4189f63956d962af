"""RED, Representation EDiting (Wu et al., arXiv 2402.15179): a trained scale and shift of the feed-forward outputs.

`y = g ⊙ (W x + bias) + t` for the second weight of each feed-forward layer (`ffn-output`, the default), before dropout
and the residual connection: `g: [out, 1]` from ones and `t: [out, 1]` from zeros train, 2 · out values a weight, 18,432
on RoBERTa-base. There is no rank and no alpha. Read: the authors' code (github mlwu22/RED, b34e48f: model.py and
RED/RoBERTa/roberta_base.py), not the paper.

Deviations: the classification head is ours, with the encoder's dropout (theirs has the same layers, with dropout 0.5).
Their scripts train without weight decay, which would pull g towards 0 and not 1; here decay does not apply to g and t.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Constant, Factor, Recipe, Shape, Touch, Update, Zeros

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Red(Recipe):
    """Trains a scale and a shift of the outputs of each weight."""

    name = "red"
    title = "RED"
    source = "arXiv 2402.15179"
    kind = "scales and shifts"
    parameters = frozenset({"targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"targets": "ffn-output"}
    default_lr = 5e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`g: [out, 1]` and `t: [out, 1]`."""
        return (
            Factor("g", shape.outputs, 1, Constant(1.0), decays=False),
            Factor("t", shape.outputs, 1, Zeros(), decays=False),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Scale by g, shift by t."""
        return Update(gain=factors["g"], shift=factors["t"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return 2 · out."""
        return 2 * shape.outputs

    def touches(self, shape: Shape) -> tuple[Touch, ...]:
        """Return gain and shift."""
        return ("gain", "shift")

    def update_rank(self, cell: Cell) -> None:
        """Return None, any rank: the change is g ⊙ W − W."""


RECIPE = Red()
