"""BitFit (Ben Zaken et al., arXiv 2106.10199): only biases train.

`y = W x + bias + b` with `b: [out, 1]` from zero, so that the start is the pretrained bias: out values a weight. Weight
decay does not apply to b. Read: the authors' code (github benzakenelad/BitFit), not the paper. Deviation: there all
biases train, also those of embeddings and layer norms (102,144 on RoBERTa-base without the pooler's); here only those
of the adapted linear layers (`attention+dense`, the default: 82,944), which its `--bias-terms` can select too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Factor, Recipe, Shape, Touch, Update, Zeros

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class BitFit(Recipe):
    """Trains the biases of the adapted layers."""

    name = "bitfit"
    title = "BitFit (linear layers)"
    source = "arXiv 2106.10199"
    kind = "scales and shifts"
    parameters = frozenset({"targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"targets": "attention+dense"}
    default_lr = 2e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`b: [out, 1]`."""
        return (Factor("b", shape.outputs, 1, Zeros(), decays=False),)

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Shift by b."""
        return Update(shift=factors["b"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return `out`."""
        return shape.outputs

    def touches(self, shape: Shape) -> tuple[Touch, ...]:
        """Return the shift by b."""
        return ("shift",)

    def update_rank(self, cell: Cell) -> int:
        """Return 0: no weight changes."""
        return 0


RECIPE = BitFit()
