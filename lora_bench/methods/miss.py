"""MiSS, matrix shard sharing (arXiv 2409.15371): every r columns of the weight get one and the same trained shard.

`y = W x + D f(x) + bias`, where `f(x): [r]` sums the entries of x whose numbers are equal modulo r: `A: [r, in]` is
frozen, with `A[i, j] = 1` where j ≡ i (mod r) and 0 elsewhere, `B = D: [out, r]` trains from zero. r · out values; no
alpha. As in peft's `MissConfig` with its default start (its starts `bat` and `mini` are other methods); the paper
itself was not read. There is no deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.errors import BenchError
from lora_bench.methods.recipe import Factor, Fold, Recipe, Shape, Update, Zeros, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Miss(Recipe):
    """Trains one shard, which is added to every r columns of the weight."""

    name = "miss"
    title = "MiSS"
    source = "arXiv 2409.15371"
    kind = "low-rank pairs"
    parameters = frozenset({"rank", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 16, "targets": "attention"}
    default_lr = 1e-3

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return `A: [r, in]`, frozen, which folds the inputs, and `D: [out, r]`, trained."""
        rank = rank_of(cell)
        if rank > shape.inputs:
            what = f"A fold of {shape.inputs} inputs has no {rank} parts."
            raise BenchError(what, f"Use --rank {shape.inputs} or less.")
        return (
            Factor("A", rank, shape.inputs, Fold(), trainable=False, shared=True),
            Factor("D", shape.outputs, rank, Zeros()),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Use A and D as they are."""
        return Update(factors["A"], factors["D"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r · out."""
        return rank_of(cell) * shape.outputs


RECIPE = Miss()
