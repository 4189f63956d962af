"""GraLoRA, granular (Jung et al., arXiv 2505.20355): the weight in k × k blocks, each with a LoRA of rank r / k.

The block from slice n of the inputs to slice j of the outputs gets `s · B[j, n] A[j, n]`, `A[j, n]: [r / k, in / k]`
Kaiming-uniform (a = √5, of in / k inputs), `B[j, n]: [out / k, r / k]` from zero, s = alpha / r. All the A[j, n] are
one factor `A: [r, in]`, all the B[j, n] one `B: [out, r]`: r (in + out) values as in LoRA, for an update of rank k · r.
k is the parameter `a`, 2 as in peft, which recommends that up to r = 32, and 4 from 64; it must divide in, out and r.

Row m k + j of A, cut to slice n, is row m of A[j, n]; column m k + n of B, cut to slice j, is column m of B[j, n], so
that cells of smaller rank are padded at the end. peft has the same numbers in another order. As in its `GraloraConfig`;
the paper itself was not read. Deviation: no part of the rank goes to a plain LoRA (peft's `hybrid_r`, 0 by default).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.melora import MeLora
from lora_bench.methods.recipe import Factor, Recipe, Shape, Update, blocks_of, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class GraLora(MeLora):
    """Trains a small LoRA for each block of the weight."""

    name = "gralora"
    title = "GraLoRA"
    source = "arXiv 2505.20355"
    defaults: ClassVar[Mapping[str, int | float | str]] = {**Recipe.defaults, "a": 2}
    default_lr = 5e-4

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return MELoRA's factors; k must divide the rank too."""
        blocks_of(cell, rank_of(cell))
        return super().factors(cell, shape)

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose A `[k r, in]` and B `[out, k r]`, whose rank has the axes n, m and j."""
        a, b, slices = factors["A"], factors["B"], factors["outputs"].mT  # [..., out, j]
        count = slices.shape[-1]
        a = factors["inputs"][..., :, None, :] * a[..., None, :, :]  # [..., n, (m j), in]
        b = b.unflatten(-1, (-1, count)).mT  # [..., out, n, m]
        b = b[..., None] * slices[..., :, None, None, :]  # [..., out, n, m, j]
        return Update(a.flatten(-3, -2), b.flatten(-3))

    def layout(self, cell: Cell) -> object:
        """Return k: it determines the order of A's rows and B's columns."""
        return cell.a


RECIPE = GraLora()
