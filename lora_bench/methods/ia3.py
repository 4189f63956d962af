"""(IA)³ (Liu et al., arXiv 2205.05638): activations are scaled by trained vectors that start from ones.

Keys and values: `y = l ⊙ (W x + bias)`, `l: [out, 1]`. Inner activations of the feed-forward layer:
`y = W (l ⊙ x) + bias`, `l: [in, 1]`, for the weight that reads them, the one with more inputs than outputs. So `out` or
`in` values train for each weight. As in peft's `IA3Config` with the second feed-forward weight as
`feedforward_modules`; the paper itself was not read. Deviation: by default peft takes RoBERTa's attention output for a
feed-forward weight too (its name ends alike) and scales its inputs; here it is not adapted, and if targets name it, its
outputs are scaled, as those of any weight that does not narrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Constant, Factor, Recipe, Shape, Touch, Update

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class IA3(Recipe):
    """Trains one vector for each weight, which scales its outputs or inputs."""

    name = "ia3"
    title = "(IA)³"
    source = "arXiv 2205.05638"
    kind = "scales and shifts"
    parameters = frozenset({"targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"targets": "kv+ffn"}
    default_lr = 5e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`stretch: [in, 1]` where the weight narrows, else `gain: [out, 1]`."""
        if shape.inputs > shape.outputs:
            return (Factor("stretch", shape.inputs, 1, Constant(1.0)),)
        return (Factor("gain", shape.outputs, 1, Constant(1.0)),)

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Scale outputs or inputs."""
        return Update(gain=factors.get("gain"), stretch=factors.get("stretch"))

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return the larger of out and in."""
        return max(shape)

    def touches(self, shape: Shape) -> tuple[Touch, ...]:
        """Return whether outputs or inputs are scaled."""
        return ("stretch",) if shape.inputs > shape.outputs else ("gain",)

    def update_rank(self, cell: Cell) -> None:
        """Return None, any rank: the change is W ⊙ l − W."""


RECIPE = IA3()
