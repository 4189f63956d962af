"""LoRA-SB, Silver Bullet (Ponkshe et al., arXiv 2411.19557): LoRA-XS between the bases of the first full step.

The update is `B R A` with `A: [r, in]` and `B: [out, r]` frozen and `R: [r, r]` trained: r² values for each weight.
They start from the first step of full fine-tuning, `−η sign(G) ≈ U S Vᵀ` cut to r: B = U, R = S, A = Vᵀ, so that the
start is not W but such a step away from it; η is the rate of the first step of warm-up. There is no alpha (the authors'
GLUE script sets it to r). Read: abstract, README, GLUE script and the code that it calls (github CERT-Lab/lora-sb,
4feb81c).

Deviations: G is the gradient of the first batch, without dropout (theirs: with it, of 2 sequences on GLUE). η is
theirs, lr / (warm-up · steps), but with the steps of warm-up rounded up, and lr where there is no warm-up. The SVD is
exact; theirs is randomised (`svd_lowrank` of r directions, 10 rounds) without oversampling, which is far from exact on
a matrix of signs, whose singular values lie close. Theirs rounds U, S and V to bfloat16; here they are not rounded.

G is that of the unadapted model with the cell's own head, so a cell has the same start in every pack. A saved
adapter holds A and B too: they cannot be computed again without the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Factor, FirstStep, Recipe, Shape, Update, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class LoraSB(Recipe):
    """Trains an r × r matrix between bases from the first step of full fine-tuning."""

    name = "lora-sb"
    title = "LoRA-SB"
    source = "arXiv 2411.19557"
    kind = "inside frozen factors"
    parameters = frozenset({"rank", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 16, "targets": "attention"}
    default_lr = 1e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`A: [r, in]` and `B: [out, r]` frozen, `R: [r, r]` trained."""
        rank = rank_of(cell)
        return (
            Factor("A", rank, shape.inputs, FirstStep("input"), trainable=False),
            Factor("R", rank, rank, FirstStep("core")),
            Factor("B", shape.outputs, rank, FirstStep("output"), trainable=False),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose R A and B."""
        return Update(factors["R"] @ factors["A"], factors["B"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r²."""
        return rank_of(cell) ** 2


RECIPE = LoraSB()
