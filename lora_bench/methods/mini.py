"""LoRA-Mini (Singh et al., arXiv 2411.15804): each factor is split into two, of which the outer one stays frozen.

`A = A_train A_aux`, `B = B_aux B_train`; only `A_train: [r, a]` and `B_train: [b, r]` train, r (a + b) values whatever
the weight's size. The update's rank is at most min(r, a, b).

The paper's start could not be found. Ours (`init: default`): outer factors random and scaled to keep variance (`A_aux`
from N(0, 1/in), `B_aux` from N(0, 1/b)), `A_train` Kaiming-uniform as LoRA's A, `B_train` zero. `init: published` is
what the one published layer file does: outer factors from N(0, 1) and both inner ones zero, so that every adapter
gradient is exactly zero and only the head learns.

The split was published before: HyperDreamBooth's "Lightweight DreamBooth" (Ruiz et al., arXiv 2307.06949, for images)
has the same four matrices, the outer ones frozen, random and orthogonal (see `mini-orth`). Its paper was not read; an
independent code of it (github MFaceTech/HyperDreamBooth, modules/light_lora.py) starts the inner down factor at random
(Xavier-normal) and the inner up factor at zero, which is a published precedent of our default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import (
    Factor,
    Kind,
    Normal,
    Recipe,
    Shape,
    Start,
    Uniform,
    Update,
    Zeros,
    a_of,
    b_of,
    rank_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Mini(Recipe):
    """LoRA-Mini: two trained factors between two frozen ones."""

    name = "mini"
    title = "LoRA-Mini"
    source = "arXiv 2411.15804"
    kind: ClassVar[Kind] = "inside frozen factors"
    parameters = frozenset({"rank", "a", "b", "alpha", "init", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {**Recipe.defaults, "a": 64, "b": 64, "init": "default"}
    default_lr = 2e-3
    shares_outer: ClassVar[bool] = False

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`A_aux: [a, in]` and `B_aux: [out, b]` frozen, `A_train: [r, a]` and `B_train: [b, r]` trained."""
        rank, a, b = self.sizes(cell)
        outer_a, outer_b = self.outer(cell, shape)
        return (
            Factor("A_aux", a, shape.inputs, outer_a, trainable=False, shared=self.shares_outer),
            Factor("A_train", rank, a, Zeros() if cell.init == "published" else Uniform(a**-0.5)),
            Factor("B_train", b, rank, Zeros()),
            Factor("B_aux", shape.outputs, b, outer_b, trainable=False, shared=self.shares_outer),
        )

    def outer(self, cell: Cell, shape: Shape) -> tuple[Start, Start]:
        """Return how `A_aux` and `B_aux` start."""
        if cell.init == "published":
            return Normal(1.0), Normal(1.0)
        return Normal(shape.inputs**-0.5), Normal(self.sizes(cell)[2] ** -0.5)

    def sizes(self, cell: Cell) -> tuple[int, int, int]:
        """Return rank, a and b."""
        return rank_of(cell), a_of(cell), b_of(cell)

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose A = A_train A_aux and B = B_aux B_train."""
        return Update(factors["A_train"] @ factors["A_aux"], factors["B_aux"] @ factors["B_train"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r (a + b)."""
        rank, a, b = self.sizes(cell)
        return rank * (a + b)

    def update_rank(self, cell: Cell) -> int:
        """Return the smallest of r, a and b."""
        return min(self.sizes(cell))


class MiniVariant(Mini):
    """LoRA-Mini with other outer factors; only `mini` itself has the published start."""

    source = "ours, after arXiv 2411.15804"
    parameters = Mini.parameters - {"init"}
    defaults: ClassVar[Mapping[str, int | float | str]] = {**Recipe.defaults, "a": 64, "b": 64}


RECIPE = Mini()
