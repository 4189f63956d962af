"""BitFit (Ben Zaken et al., arXiv 2106.10199): only biases train.

`y = W x + bias + b` with `b: [out, 1]` from zero, so that the start is the pretrained bias: out values a weight. Weight
decay does not apply to b. Read: the authors' code (github benzakenelad/BitFit), not the paper. What deviates: there all
biases train, of the embeddings and layer norms too (on RoBERTa-base 102,144 of them without the pooler's); here those
of the adapted linear layers (`attention+dense`, the default: 82,944), as its `--bias-terms` can choose them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Factor, Recipe, Shape, Touch, Update, Zeros

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class BitFit(Recipe):
    name = "bitfit"
    title = "BitFit (linear layers)"
    source = "arXiv 2106.10199"
    parameters = frozenset({"targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"targets": "attention+dense"}
    default_lr = 2e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`b: [out, 1]`."""
        return (Factor("b", shape.outputs, 1, Zeros(), decays=False),)

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """A shift by b."""
        return Update(shift=factors["b"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Out."""
        return shape.outputs

    def touches(self, shape: Shape) -> tuple[Touch, ...]:
        """b."""
        return ("shift",)

    def update_rank(self, cell: Cell) -> int:
        """0: no weight changes."""
        return 0


RECIPE = BitFit()
