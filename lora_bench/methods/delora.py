"""DeLoRA (Bini et al., arXiv 2503.18225): the update has a trained size, and directions of length 1.

`ΔW = (λ / r) Σᵢ bᵢ aᵢᵀ / (‖bᵢ‖ ‖aᵢ‖) · diag(c)` over the rows aᵢ of `A: [r, in]` and the columns bᵢ of `B: [out, r]`,
with c the norms of W's columns. A starts Kaiming-uniform (a = √5), B at zero, and `λ: [1, 1]` at alpha; all train,
r (in + out) + 1 values. Norms below 1e-4 count as 1e-4 and get no gradient. As in peft's `DeloraConfig`, with alpha for
its `delora_lambda` (15, the default); the paper itself was not read.

Deviation: λ learns at the cell's rate (the authors' scripts for GLUE give it one to three times that). Their own code
(github ExplainableML/DeLoRA) starts B at random and subtracts the start; peft and this file start B at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Basis, Constant, Factor, Recipe, Shape, Update, alpha_of, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell

SMALLEST_NORM = 1e-4  # as in peft


class DeLora(Lora):
    """LoRA with normalised directions and a trained size."""

    name = "delora"
    title = "DeLoRA"
    source = "arXiv 2503.18225"
    defaults: ClassVar[Mapping[str, int | float | str]] = {**Recipe.defaults, "alpha": 15.0}
    default_lr = 1e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return LoRA's factors, `size: [1, 1]` (λ), and the norms `columns: [1, in]` of W's columns, frozen."""
        return (
            *super().factors(cell, shape),
            Factor("size", 1, 1, Constant(alpha_of(cell))),
            Factor("columns", 1, shape.inputs, Basis("column-norms", "input"), trainable=False),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Normalise the rows of A and the columns of B; scale A by the norms of W's columns, and B by the size λ."""
        a, b = factors["A"], factors["B"]
        a = a / a.norm(dim=-1, keepdim=True).clamp(min=SMALLEST_NORM)
        b = b / b.norm(dim=-2, keepdim=True).clamp(min=SMALLEST_NORM)
        return Update(a * factors["columns"], b * factors["size"])

    def scale(self, cell: Cell) -> float:
        """Return 1 / r; alpha is where λ starts."""
        return 1 / rank_of(cell)

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r (in + out) + 1."""
        return super().trainable(cell, shape) + 1


RECIPE = DeLora()
