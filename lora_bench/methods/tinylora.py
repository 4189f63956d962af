"""TinyLoRA (arXiv 2602.04118): LoRA-XS whose r × r matrix is a mix of frozen random matrices; only the mix trains.

With `W = V S Uᵀ` cut to r: `A = (U √S)ᵀ: [r, in]`, `B = V √S R: [out, r]`, `R = Σᵢ v[i] P[i]`, `v: [1, a]` from zero, P
random and frozen, from N(0, 1 / r). The parameter `a` is the number of matrices, and of values that a weight trains
(peft's u): 64 as in peft. r is 2, as peft says that the paper recommends. There is no alpha. As in peft's
`TinyLoraConfig`; the paper itself was not read, and peft says that it leaves the distribution of P open. Deviations: P
is drawn from the cell's seed and the weight's name, not from a seed of its own and the weight's number; no vector is
shared by several weights (`weight_tying`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Basis, Factor, Normal, Recipe, Shape, Update, Zeros, a_of, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class TinyLora(Recipe):
    """Trains the coefficients of frozen random r × r matrices."""

    name = "tinylora"
    title = "TinyLoRA"
    source = "arXiv 2602.04118"
    kind = "inside frozen factors"
    parameters = frozenset({"rank", "a", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 2, "a": 64, "targets": "attention"}
    default_lr = 5e-4

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`A: [r, in]`, `B: [out, r]` and `P: [r a, r]` frozen (P[i] are its rows i, i + a, …), `v: [1, a]` trained."""
        rank, mixed = rank_of(cell), self.trainable(cell, shape)
        return (
            Factor("A", rank, shape.inputs, Basis("balanced-svd", "input"), trainable=False),
            Factor("B", shape.outputs, rank, Basis("balanced-svd", "output"), trainable=False),
            Factor("P", rank * mixed, rank, Normal(rank**-0.5), trainable=False),
            Factor("v", 1, mixed, Zeros()),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose A and B R."""
        v, a = factors["v"], factors["A"]
        mixed = factors["P"].unflatten(-2, (a.shape[-2], v.shape[-1]))  # [..., r, a, r]
        return Update(a, factors["B"] @ (v[..., None, :, :] @ mixed)[..., 0, :])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return the number of matrices, a."""
        return a_of(cell)

    def layout(self, cell: Cell) -> object:
        """Return a: it determines the order of P's rows."""
        return cell.a


RECIPE = TinyLora()
