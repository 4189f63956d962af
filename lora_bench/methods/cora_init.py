"""CoRA, second strategy (Xiao et al., arXiv 2409.02119): B starts from the common basis and trains too. Our port.

The basis is that of `cora`. A starts at zero, so that training starts from the pretrained model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_bench.methods.recipe import Basis, Factor, Recipe, Shape, Update, Zeros, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class CoraInit(Recipe):
    """LoRA whose B starts from the common basis."""

    name = "cora-init"
    title = "CoRA, basis as start (our port)"
    source = "arXiv 2409.02119, strategy 2"
    kind = "low-rank pairs"
    default_lr = 5e-4

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`A: [r, in]` from zero, `B: [out, r]` from the common basis; both train."""
        rank = rank_of(cell)
        return (
            Factor("A", rank, shape.inputs, Zeros()),
            Factor("B", shape.outputs, rank, Basis("joint-svd", "output")),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Use A and B as they are."""
        return Update(factors["A"], factors["B"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r (in + out)."""
        return rank_of(cell) * (shape.inputs + shape.outputs)


RECIPE = CoraInit()
