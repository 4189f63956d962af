"""LoRA-Mini with orthonormal outer factors, as in HyperDreamBooth's "Lightweight DreamBooth" (arXiv 2307.06949).

`A = A_train A_aux`, `B = B_aux B_train` as in `mini`, and as large, but the rows of `A_aux: [a, in]` are random
orthonormal directions, the columns of `B_aux: [out, b]` too (times √(out / b)); beyond the weight's side, it is the
other way round. Only `A_train: [r, a]`, Kaiming-uniform, and `B_train: [b, r]`, from zero, train: r (a + b) values.
Against `mini` it asks whether it matters that directions overlap.

Frozen orthogonal outer factors were published before LoRA-Mini (arXiv 2411.15804), for images. Read: an independent
code of it (github MFaceTech/HyperDreamBooth, modules/light_lora.py), not the paper. What deviates: the size of the
outer factors (there their rows or columns have length 1) and A_train's start (there Xavier-normal).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_bench.methods.mini import MiniVariant
from lora_bench.methods.recipe import Orthonormal, Shape, Start

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class MiniOrth(MiniVariant):
    name = "mini-orth"
    title = "LoRA-Mini, orthonormal (ours)"
    source = "arXiv 2307.06949, in arXiv 2411.15804's form"

    def outer(self, cell: Cell, shape: Shape) -> tuple[Start, Start]:
        """Random orthonormal directions of mini's size."""
        _, _, b = self.sizes(cell)
        return Orthonormal(shape.inputs**-0.5), Orthonormal(b**-0.5)


RECIPE = MiniOrth()
