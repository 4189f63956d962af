"""SVFT, plain (Lingam et al., arXiv 2405.19597): the singular values of W train, its singular vectors stay.

With `W = V S Uᵀ` (n = min(in, out) directions) the update is `V M Uᵀ`, M diagonal: `A = Uᵀ: [n, in]`,
`B = V M: [out, n]`, `M: [1, n]` from zero: n values a weight. There is no alpha. Read: the authors' code (github
VijayLingam95/SVFT, svft/svft_layers.py), not the paper. Deviation: there M is Kaiming-normal times a gate, σ(0) = ½
at the start and one more trained value, so that the start is not W; here M starts at zero, and there is no gate.

A and B are as large as W, and each cell has its own B. Such cells train in packs of their own, at about three times
LoRA's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Basis, Factor, Recipe, Shape, Update, Zeros

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Svft(Recipe):
    """Trains the singular values of the weight."""

    name = "svft"
    title = "SVFT, plain"
    source = "arXiv 2405.19597"
    kind = "inside frozen factors"
    parameters = frozenset({"targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"targets": "attention"}
    default_lr = 1e-2
    full_width = True

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`U: [n, in]` and `V: [out, n]` frozen, M's entries `[1, count]` trained."""
        return (
            Factor("U", min(shape), shape.inputs, Basis("singular-vectors", "input"), trainable=False),
            Factor("M", 1, self.trainable(cell, shape), Zeros()),
            Factor("V", shape.outputs, min(shape), Basis("svd", "output"), trainable=False),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose A = Uᵀ and B = V M."""
        return Update(factors["U"], factors["V"] * factors["M"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return the smaller of in and out."""
        return min(shape)

    def update_rank(self, cell: Cell) -> None:
        """Return None: any rank."""

    def width(self, cell: Cell, shape: Shape) -> int:
        """Return the smaller of in and out."""
        return min(shape)


RECIPE = Svft()
