"""Uni-LoRA (Li et al., arXiv 2506.00799): every entry of every A and B is one of d trained values.

θ `[1, d]`, from U(±0.02), is shared by all weights. Each entry of all `A: [r, in]` and `B: [out, r]` is an entry of θ,
drawn at random from the seed so that all are used equally often, or once more, over the whole model, and divided by the
square root of the number of its uses: an isometric projection of θ. The update is `B A`, without alpha / r, and not
zero at the start. d is the parameter `a`. Values that train, and that are saved: d, whatever the model and the rank.

Read: peft's code (UniLoraConfig) and the authors' settings for RoBERTa-base (r = 4, d = 23,040, rate 5e-3), not the
paper. Deviation: the assignment is drawn from the cell's seed (peft: from a seed of its own), and which entries are
used once more is not drawn, as all entries are alike at the start. Weight decay applies to θ (their scripts have none).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Assigned, Factor, Recipe, Shape, Uniform, Update, a_of, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class UniLora(Recipe):
    """Trains one vector, whose entries make up A and B of all weights."""

    name = "uni-lora"
    title = "Uni-LoRA"
    source = "arXiv 2506.00799"
    kind = "shared factors"
    parameters = frozenset({"rank", "a", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 4, "a": 23040, "targets": "attention"}
    default_lr = 5e-3
    starts_as_base = False

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return `theta: [1, d]`, shared, and `A: [r, in]` and `B: [out, r]`, which consist of its entries."""
        rank, entries = rank_of(cell), Assigned("theta")
        return (
            Factor("theta", 1, a_of(cell), Uniform(0.02), shared=True),
            Factor("A", rank, shape.inputs, entries, trainable=False),
            Factor("B", shape.outputs, rank, entries, trainable=False),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Use A and B as they are."""
        return Update(factors["A"], factors["B"])

    def scale(self, cell: Cell) -> float:
        """Return 1: there is no scale."""
        return 1.0

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return 0: a weight has no values of its own."""
        return 0

    def once(self, cell: Cell, shapes: Collection[Shape]) -> int:
        """Return d."""
        return a_of(cell)


RECIPE = UniLora()
