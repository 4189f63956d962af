"""MELoRA, mini-ensemble (Ren et al., arXiv 2402.17263): n small LoRAs side by side on the diagonal of the weight.

Inputs and outputs are cut into n equal slices, and slice i of the outputs gets `s · Bᵢ Aᵢ` of slice i of the inputs,
with `Aᵢ: [r, in / n]` Kaiming-uniform (a = √5), `Bᵢ: [out / n, r]` from zero and s = alpha / r. The Aᵢ side by side are
one factor `A: [r, in]`, the Bᵢ below each other one `B: [out, r]`: r (in + out) values as in LoRA, for an update of
rank n · r. n is the parameter `a`, 2 as in the authors' GLUE script, as are r = 8 and alpha = 16; it must divide in and
out.

Read: the authors' code (github ChasonShi/MELoRA, 4ebb8b4: peft-0.5.0/src/peft/tuners/melora.py, glue_finetune.sh), not
the paper. Deviations: all n have one rank and one alpha, as in that script (the code takes lists); the script's dropout
of the adapter's inputs, 0.05, is left out, as in every method here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Blocks, Factor, Recipe, Shape, Uniform, Update, Zeros, a_of, blocks_of, rank_of

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class MeLora(Recipe):
    """Trains n small LoRAs, each between a slice of the inputs and one of the outputs."""

    name = "melora"
    title = "MELoRA"
    source = "arXiv 2402.17263"
    kind = "low-rank pairs"
    parameters = frozenset({"rank", "a", "alpha", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 8, "a": 2, "alpha": 16.0, "targets": "attention"}
    default_lr = 4e-4

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """`A: [r, in]` and `B: [out, r]` trained, the slices `inputs: [n, in]` and `outputs: [n, out]` frozen."""
        rank, count = rank_of(cell), blocks_of(cell, *shape)
        return (
            Factor("A", rank, shape.inputs, Uniform((count / shape.inputs) ** 0.5)),
            Factor("B", shape.outputs, rank, Zeros()),
            Factor("inputs", count, shape.inputs, Blocks(), trainable=False, shared=True),
            Factor("outputs", count, shape.outputs, Blocks(), trainable=False, shared=True),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose A `[n r, in]` and B `[out, n r]`: n copies of the factors, each cut to its slice."""
        a = factors["inputs"][..., :, None, :] * factors["A"][..., None, :, :]  # [..., n, r, in]
        b = factors["outputs"].mT[..., :, None] * factors["B"][..., :, None, :]  # [..., out, n, r]
        return Update(a.flatten(-3, -2), b.flatten(-2))

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r (in + out)."""
        return rank_of(cell) * (shape.inputs + shape.outputs)

    def update_rank(self, cell: Cell) -> int:
        """Return n · r."""
        return rank_of(cell) * a_of(cell)

    def width(self, cell: Cell, shape: Shape) -> int:
        """Return n · r."""
        return self.update_rank(cell)


RECIPE = MeLora()
