"""CLoRA, controlled LoRA (Lu et al., arXiv 2410.16801): LoRA with a penalty on what A and B do in fixed subspaces.

LoRA's A and B as in `lora`, and the penalty `λ Σ (‖A V‖² + ‖Bᵀ U‖²) / 2` over the adapted weights, in Frobenius norms,
with λ = 1, `V: [in, k]` and `U: [out, k]` random and frozen, orthonormal along the shorter side, another pair for each
weight. k is the parameter `a`. Values: r (in + out). U and V are functions of the seed, and not saved.

Read: the authors' code (github sutakori/CLoRA, 802cda8: clora.py, for peft) and the abstract; the paper is said to
print the penalty without the half. Deviation: k = 96 by default. Their README has 512 for Llama models, whose weights
have 4,096 inputs; an eighth of RoBERTa-base's 768 is 96. With k of at least the inputs the penalty is ‖A‖² / 2, plain
weight decay. The penalty is a sum over the adapted weights, and the loss a mean over the batch: with more weights the
penalty counts for more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Factor, Orthonormal, Recipe, Shape, a_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class CLora(Lora):
    """LoRA that is held out of random subspaces."""

    name = "clora"
    title = "CLoRA"
    source = "arXiv 2410.16801"
    parameters = frozenset({"rank", "a", "alpha", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {**Recipe.defaults, "a": 96}

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return LoRA's factors, and `V: [in, k]` and `U: [out, k]`, frozen."""
        count, frozen = a_of(cell), [("V", shape.inputs), ("U", shape.outputs)]
        return (
            *super().factors(cell, shape),
            *(Factor(n, size, count, Orthonormal(max(size, count) ** -0.5), trainable=False) for n, size in frozen),
        )

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """Return half the squares of A V and Bᵀ U; padding adds nothing to them."""
        sides = factors["A"] @ factors["V"], factors["B"].mT @ factors["U"]
        return (sides[0].square().sum((-2, -1)) + sides[1].square().sum((-2, -1))) / 2


RECIPE = CLora()
