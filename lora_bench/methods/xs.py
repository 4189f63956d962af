"""LoRA-XS (Bałazy et al., arXiv 2405.17604): only an r × r matrix trains, between frozen singular bases of W.

With `Wᵀ = U S Vᵀ` cut to r (`Wᵀ: [in, out]`), the update is `x (U S) R Vᵀ`: in our notation `A = Rᵀ (U S)ᵀ`, `B = V`.
As in the authors' code the singular values are on the input side, V is orthonormal, W is unchanged, and R starts from
N(0, 1e-5²).

Deviation: the SVD is exact. The code's is randomised (scikit-learn's TruncatedSVD, 10 rounds, seed 42), which
leaves another subspace where singular values lie close: on the 24 weights of all-MiniLM-L6-v2 that the code adapts, the
largest angle between the two is 0.11, 0.40, 0.85 and 1.32 rad at r = 4, 8, 16 and 25 (medians 0.02, 0.06, 0.17 and
0.22). It keeps nearly as much of the weight: at least 99.8% of the squared singular values that the exact one keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_bench.methods.recipe import Basis, Factor, Normal, Recipe, Shape, Update, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class XS(Recipe):
    """Trains an r × r matrix between singular bases of the weight."""

    name = "xs"
    title = "LoRA-XS"
    source = "arXiv 2405.17604"
    kind = "inside frozen factors"
    default_lr = 1e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`US: [r, in]` and `V: [out, r]` frozen, `R: [r, r]` trained."""
        rank = rank_of(cell)
        return (
            Factor("US", rank, shape.inputs, Basis("svd", "input"), trainable=False),
            Factor("R", rank, rank, Normal(1e-5)),
            Factor("V", shape.outputs, rank, Basis("svd", "output"), trainable=False),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose A = Rᵀ (US)ᵀ and B = V."""
        return Update(factors["R"].mT @ factors["US"], factors["V"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r²."""
        return rank_of(cell) ** 2


RECIPE = XS()
