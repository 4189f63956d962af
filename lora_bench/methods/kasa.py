"""KaSA (Wang et al., arXiv 2412.06071): LoRA in the form of an SVD, over a weight without its smallest singular values.

`ΔW = s · B diag(c) A - W_r` with s = alpha / r, where W_r is the part of W that belongs to its r smallest singular
values: frozen, and computed from W again whenever it is needed. `A: [r, in]` starts Kaiming-uniform (a = √5),
`B: [out, r]` at zero, and `c: [r, 1]` from N(0, 1); all train, with the penalty
`Σ (β Σ c² + γ (‖A Aᵀ - I‖ + ‖Bᵀ B - I‖))` over the weights, in Frobenius norms, with β = 1e-4 and γ = 1e-3. The model
without training is not the pretrained one: it lacks W_r. Values: r (in + out + 1).

Read: peft's code (the variant `kasa_config` of LoRA, whose users add its penalty to their loss), not the paper nor the
authors' code, which divides the penalty by the number of weights and has other Gram matrices (in × in), with β and γ
for each task. Deviation from peft: W_r and the penalty are computed in the exact type, not in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.orthonormality import distance_from_orthonormal
from lora_bench.methods.recipe import Basis, Factor, Normal, Recipe, Shape, Uniform, Update, Zeros, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell

SIZE, ORTHONORMAL = 1e-4, 1e-3  # β and γ


class KaSa(Recipe):
    """Replaces the smallest singular values of W by a trained update in the form of an SVD."""

    name = "kasa"
    title = "KaSA"
    source = "arXiv 2412.06071"
    kind = "low-rank pairs"
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 8, "alpha": 16.0, "targets": "attention"}
    default_lr = 4e-4
    starts_as_base = False

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return `A: [r, in]`, `c: [r, 1]`, `B: [out, r]`, and the two frozen factors of -W_r / s."""
        rank = rank_of(cell)
        lost = Basis("minor-svd", "input", -1 / self.scale(cell)), Basis("minor-vectors", "output")
        return (
            Factor("A", rank, shape.inputs, Uniform(shape.inputs**-0.5)),
            Factor("c", rank, 1, Normal(1.0)),
            Factor("B", shape.outputs, rank, Zeros()),
            Factor("A_lost", rank, shape.inputs, lost[0], trainable=False),
            Factor("B_lost", shape.outputs, rank, lost[1], trainable=False),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Scale the rows of A by c, and append the factors of -W_r: A is `[2 r, in]`, B `[out, 2 r]`."""
        a, b, side = factors["A"], factors["B"], factors["A_lost"]
        # A concatenation: recipes do not import torch.
        joined_a = a.new_empty((*side.shape[:-2], 2 * side.shape[-2], side.shape[-1]))
        joined_b = joined_a.new_empty((*b.shape[:-1], 2 * b.shape[-1]))
        return Update(
            joined_a.slice_scatter(factors["c"] * a, -2, 0, a.shape[-2]).slice_scatter(side, -2, a.shape[-2]),
            joined_b.slice_scatter(b, -1, 0, b.shape[-1]).slice_scatter(factors["B_lost"], -1, b.shape[-1]),
        )

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """Return β Σ c² + γ (‖A Aᵀ - I‖ + ‖Bᵀ B - I‖)."""
        sizes = factors["c"].square().sum((-2, -1))
        return SIZE * sizes + ORTHONORMAL * distance_from_orthonormal(factors, real["c"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r (in + out + 1)."""
        return rank_of(cell) * (shape.inputs + shape.outputs + 1)

    def update_rank(self, cell: Cell) -> int:
        """Return 2 r."""
        return 2 * rank_of(cell)

    def width(self, cell: Cell, shape: Shape) -> int:
        """Return 2 r."""
        return 2 * rank_of(cell)


RECIPE = KaSa()
