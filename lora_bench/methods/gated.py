"""What methods with a gate between A and B have in common: the update `s · B diag(c) A`, and a schedule of c."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_bench.methods.recipe import Recipe, Shape, Update, alpha_of, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Gated(Recipe):
    """Trains `A: [n, in]`, `c: [n, 1]` and `B: [out, n]` for n components a weight, some of which a schedule prunes."""

    gate = "c"

    def components(self, cell: Cell) -> int:
        """Return n, the components of a weight at the start."""
        return rank_of(cell)

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Scale the rows of A by c."""
        return Update(factors["c"] * factors["A"], factors["B"])

    def scale(self, cell: Cell) -> float:
        """Return alpha / n, which stays when components are pruned."""
        return alpha_of(cell) / self.components(cell)

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return n (in + out + 1)."""
        return self.components(cell) * (shape.inputs + shape.outputs + 1)

    def update_rank(self, cell: Cell) -> int:
        """Return n: one weight may keep all of its components."""
        return self.components(cell)

    def width(self, cell: Cell, shape: Shape) -> int:
        """Return n."""
        return self.components(cell)
