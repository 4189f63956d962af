"""LoRA-Mini with orthonormal outer factors, as in HyperDreamBooth's "Lightweight DreamBooth" (arXiv 2307.06949).

`A = A_train A_aux`, `B = B_aux B_train` as in `mini`, of the same size, but the rows of `A_aux: [a, in]` are random
orthonormal directions, and so are the columns of `B_aux: [out, b]` (times √(out / b)). Where a > in or b > out, the
other side is orthonormal. Only `A_train: [r, a]`, Kaiming-uniform, and `B_train: [b, r]`, from zero, train: r (a + b)
values. The comparison with `mini` shows whether overlapping directions matter.

Frozen orthogonal outer factors were published before LoRA-Mini (arXiv 2411.15804), for images. Read: an independent
code of it (github MFaceTech/HyperDreamBooth, modules/light_lora.py), not the paper. Deviations: the size of the
outer factors (there their rows or columns have length 1) and A_train's start (there Xavier-normal).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_bench.methods.mini import MiniVariant
from lora_bench.methods.recipe import Orthonormal, Shape, Start

if TYPE_CHECKING:
    from lora_bench.cell import Cell


class MiniOrth(MiniVariant):
    """LoRA-Mini whose outer factors are random and orthonormal."""

    name = "mini-orth"
    title = "LoRA-Mini, orthonormal (ours)"
    source = "arXiv 2307.06949, in arXiv 2411.15804's form"

    def outer(self, cell: Cell, shape: Shape) -> tuple[Start, Start]:
        """Return random orthonormal directions whose entries have the size of `mini`'s."""
        _, _, b = self.sizes(cell)
        return Orthonormal(shape.inputs**-0.5), Orthonormal(b**-0.5)


RECIPE = MiniOrth()
