"""LoRA-Mini between singular bases of W. Ours: a variant that the paper (arXiv 2411.15804) does not try.

`A = A_train A_aux`, `B = B_aux B_train` as in `mini`, but with `Wᵀ = U S Vᵀ` the outer factors are those of `xs`:
`A_aux = (U S)ᵀ` cut to a directions, `B_aux = V` cut to b. Only `A_train: [r, a]`, Kaiming-uniform, and `B_train: [b,
r]`, from zero, train: r (a + b) values. The comparison with `mini` shows whether the pretrained directions matter, that
with `xs` what a core of two factors does. a and b can be no larger than the weight's smaller side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_bench.methods.mini import MiniVariant
from lora_bench.methods.recipe import Basis, Shape, Start

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class MiniSvd(MiniVariant):
    """LoRA-Mini whose outer factors are singular bases of the weight."""

    name = "mini-svd"
    title = "LoRA-Mini, singular bases (ours)"

    def outer(self, cell: Cell, shape: Shape) -> tuple[Start, Start]:
        """Return the bases of LoRA-XS."""
        return Basis("svd", "input"), Basis("svd", "output")


RECIPE = MiniSvd()
