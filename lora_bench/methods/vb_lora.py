"""VB-LoRA (Li et al., arXiv 2405.15179): the rows of A and the columns of B are mixtures of vectors of one bank.

All weights share the bank, h vectors of length b, which starts from U(±0.02). Each row of `A: [r, in]` is in / b pieces
of length b, and each column of `B: [out, r]` out / b of them. A piece has h logits, from N(0, 0.1²), and is the sum of
the 2 vectors with the largest logits, weighted by the softmax of these two; the other logits get no gradient. Bank and
logits train without weight decay, the logits at 10 times the rate. There is no alpha / r, and A and B are not zero at
the start. h is the parameter `a`, b the parameter `b`, which must divide in and out. Values that train: h b once, and
h r (in + out) / b for each weight.

What is saved is what the published count is about: the bank, and of each piece the numbers of its 2 vectors and their
logits. A cell that continues from such an adapter keeps to these vectors, as all other logits begin far below.

Read: peft's code (VBLoRAConfig) and the authors' settings for RoBERTa-base (r = 4, h = 90, b = 256, bank 1e-3, logits
1e-2), not the paper. Deviation: peft stores the weight of the first vector alone, from which that of the second
follows; here both logits are stored, so that what is loaded is the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.errors import BenchError
from lora_bench.methods.recipe import Factor, Normal, Recipe, Shape, Uniform, Update, a_of, b_of, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell

CHOSEN = 2  # vectors of a piece
FAR_BELOW = -1e4  # a logit that no training of ours reaches, and that float16 holds
LOGITS = ("A_logits", "B_logits")


class VbLora(Recipe):
    """Trains a bank of vectors, and which of them make up A and B."""

    name = "vb-lora"
    title = "VB-LoRA"
    source = "arXiv 2405.15179"
    kind = "shared factors"
    parameters = frozenset({"rank", "a", "b", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 4, "a": 90, "b": 256, "targets": "attention"}
    default_lr = 1e-3
    starts_as_base = False

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return `bank: [h, b]`, shared, and the logits `[r, h · in / b]` of A and `[out / b, h · r]` of B."""
        rank, count, length = self.sizes(cell)
        for size in shape:
            if size % length:
                what = f"'{self.name}' needs pieces of {length} values (b), into which {size} cannot be divided."
                raise BenchError(what, f"Use a --b that divides the weights' sides, such as {math.gcd(*shape)}.")
        pieces = shape.inputs // length, shape.outputs // length
        start = Normal(0.1)
        return (
            Factor("bank", count, length, Uniform(0.02), shared=True, decays=False),
            Factor("A_logits", rank, pieces[0] * count, start, rate=10.0, decays=False, is_sparse=True),
            Factor("B_logits", pieces[1], rank * count, start, rate=10.0, decays=False, is_sparse=True),
        )

    def sizes(self, cell: Cell) -> tuple[int, int, int]:
        """Return r, h and b."""
        count = a_of(cell)
        if count < CHOSEN:
            raise BenchError(
                f"'{self.name}' mixes {CHOSEN} vectors of {count} (a).", f"Use an --a of {CHOSEN} or more."
            )
        return rank_of(cell), count, b_of(cell)

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Mix the pieces, and put them together."""
        bank = factors["bank"]
        a, b = (_mixed(factors[name].unflatten(-1, (-1, bank.shape[-2])), bank) for name in LOGITS)
        return Update(a.flatten(-2), b.mT.flatten(-3, -2))

    def scale(self, cell: Cell) -> float:
        """Return 1: there is no scale."""
        return 1.0

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return h r (in + out) / b."""
        rank, count, length = self.sizes(cell)
        return count * rank * (shape.inputs + shape.outputs) // length

    def once(self, cell: Cell, shapes: Collection[Shape]) -> int:
        """Return h b."""
        _, count, length = self.sizes(cell)
        return count * length

    def layout(self, cell: Cell) -> object:
        """Return r, h and b: padding of the bank could be among the chosen vectors, and that of a rank is not zero."""
        return self.sizes(cell)

    def compact(self, cell: Cell, name: str, value: Tensor) -> Mapping[str, Tensor]:
        """Return, for logits, the `CHOSEN` largest of each piece and the numbers of their vectors."""
        if name not in LOGITS:
            return {"": value}
        _, count, _ = self.sizes(cell)
        largest, index = value.unflatten(-1, (-1, count)).topk(CHOSEN)
        small = index.byte() if count <= 256 else index.short() if count <= 2**15 else index.int()
        return {"index": small, "value": largest.contiguous()}

    def restore(self, cell: Cell, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        """Return logits of which all but the stored ones are far below."""
        if name not in LOGITS:
            return parts[""]
        _, count, _ = self.sizes(cell)
        largest = parts["value"]
        logits = largest.new_full((*largest.shape[:-1], count), FAR_BELOW)
        return logits.scatter(-1, parts["index"].long(), largest).flatten(-2)

    def compact_bytes(self, cell: Cell, shape: Shape) -> int:
        """Return the bytes of two logits and two numbers for each piece."""
        rank, count, length = self.sizes(cell)
        pieces = rank * (shape.inputs + shape.outputs) // length
        return CHOSEN * pieces * (5 if count <= 256 else 6 if count <= 2**15 else 8)


def _mixed(logits: Tensor, bank: Tensor) -> Tensor:
    """The pieces `[cells, modules, n, m, b]` of logits `[cells, modules, n, m, h]`.

    They are a product with the whole bank, since on a GPU the gradients of gathered rows are summed in no fixed order.
    """
    largest, index = logits.topk(CHOSEN)
    weights = logits.new_zeros(logits.shape).scatter(-1, index, largest.softmax(-1))
    return weights @ bank.unsqueeze(-3)


RECIPE = VbLora()
