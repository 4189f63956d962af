"""SoRA, sparse low-rank adaptation (Ding et al., arXiv 2311.11696): LoRA with a gate that training makes sparse.

The update is `s · B diag(c) A` with s = alpha / r, `A: [r, in]` Kaiming-uniform (a = √5), `B: [out, r]` from zero and
`c: [r, 1]` from N(0, 1); all train, with the penalty λ₁ = 10 times the mean of |c| over all weights. c has no weight
decay. After each step an entry of c beyond ±λ₂ moves towards zero by λ₂ = 3e-4 (not times the learning rate), and is
zero if it is then within ±λ₂: entries below 2 λ₂ become zero. They may grow again. Values: r (in + out + 1), those that
train; how many c are left depends on task and seed, and is not a budget.

Read: the authors' code (github TsinghuaC3I/SoRA: src/lora.py, src/sparse_optimizer.py, src/trainer.py) and scripts,
which have these λ for STS-B with DeBERTaV3-base, not the paper. Deviations: no schedule of λ₂ with its further epochs;
epsilon is 1e-8 as for all factors (their optimiser of c has transformers' 1e-6, and adds it before the correction of
the second moment).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.gated import Gated
from lora_bench.methods.recipe import Factor, Normal, Shape, Uniform, Zeros, rank_of
from lora_bench.methods.rules import Step

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell

PENALTY, THRESHOLD = 10.0, 3e-4


class SoRa(Gated):
    """LoRA with a gate, which a penalty and a threshold make sparse."""

    name = "sora"
    title = "SoRA"
    source = "arXiv 2311.11696"
    kind = "rank schedules"
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 8, "alpha": 16.0, "targets": "attention"}
    default_lr = 8e-4
    penalty_mean = True

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return LoRA's factors, and the gate `c: [r, 1]`."""
        rank = rank_of(cell)
        return (
            Factor("A", rank, shape.inputs, Uniform(shape.inputs**-0.5)),
            Factor("c", rank, 1, Normal(1.0), decays=False),
            Factor("B", shape.outputs, rank, Zeros()),
        )

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """Return the mean size of the gate's entries."""
        return factors["c"].abs().sum((-2, -1)) / real["c"].sum((-2, -1))

    def penalty_weight(self, cell: Cell, step: Step) -> float:
        """Return λ₁."""
        return PENALTY

    def shrink(self, gate: Tensor) -> Tensor:
        """Move entries towards zero by λ₂, and set those that are then within λ₂ to zero."""
        nearer = gate - gate.clamp(-THRESHOLD, THRESHOLD) * (gate.abs() > THRESHOLD)
        return nearer * (nearer.abs() >= THRESHOLD)


RECIPE = SoRa()
