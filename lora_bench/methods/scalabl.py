"""ScalaBL (Samplawski et al. 2025, arXiv 2506.21408): LoRA whose r inner scales are uncertain, learnt while training.

`y = W x + bias + (alpha / r) B ((σ + ρ ⊙ ε) ⊙ V x)`: σ = exp(log_scale), ρ = exp(log_spread), V and B train; ε is one
standard normal a weight and step. Read: the authors' code (SRI-CSL/BayesAdapt 3843000), not the paper's text. Start: V
and σ from the singular value decomposition of a fresh linear layer, ρ from U(0.05 / √2, 0.05), B zero. After each step
of AdamW comes one of plain gradient descent on the divergence `Σ log ρ + (1 + (σ - 1e-8)²) / (2 ρ²) - ½`, summed over
the weights, with rate 0.2 w, times the multiplier of the schedule: w = 2^i / (2^(M + 1) - 1) with i = 1, 2, …, M, 1, …
from step to step, and M = ⌊100 N^(π/8) / batch⌋, with the number π, for N training rows. This is the divergence of the
code, KL(prior ‖ posterior), where the evidence bound has the roles exchanged.
Probabilities are the mean of 10 draws; the record has the calibration of the point (ε = 0) and of the mean.

The divergence makes the noise large: alone, over 1,440 steps with N = 7,695, batches of 32 and r = 4, it takes ρ from
0.04 to 1.05 and σ from 0.57 to 0.31 (the authors' own layer and scheduler, run outside of this repository): the noise
ends at three times the scales.

Deviations: the prior is N(1e-8, 1), as their code writes it down; as it runs, its mean is ρ's first value and its
deviation 1 more than that, since `z` shares memory with the parameter that is filled after it. Each draw for prediction
is one for all rows, theirs one for each batch; AdamW has the benchmark's epsilon 1e-8 for 1e-6; evaluations after
epochs, which select the epoch, are of the point. Neither GLUE settings nor rates for encoders were found: the default
rate is LoRA's. A regression has no probabilities: it is scored as the point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.cell import Cell
from lora_bench.errors import BenchError
from lora_bench.methods.recipe import Factor, Fresh, LogUniform, Noise, Recipe, Shape, Update, Zeros, rank_of
from lora_bench.methods.rules import SampledPosterior, Step

if TYPE_CHECKING:
    from torch import Tensor

SPREAD, PRIOR_MEAN, RATE, DRAWS = 0.05, 1e-8, 0.2, 10


class ScalaBL(Recipe):
    """LoRA with a learnt Gaussian over its inner scales."""

    name = "scalabl"
    title = "ScalaBL"
    source = "arXiv 2506.21408"
    kind = "posteriors"
    defaults: ClassVar = {"rank": 8, "alpha": 16.0, "targets": "attention"}
    default_lr = 5e-4
    penalty_steps = True
    posterior = SampledPosterior(DRAWS)

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return V, B, the scales' means and deviations, and the noise."""
        rank = rank_of(cell)
        if rank > shape.inputs:
            what = f"'{self.name}' takes {rank} directions of {shape.inputs} inputs."
            raise BenchError(what, f"Use --rank {shape.inputs} or less.")
        return (
            Factor("V", rank, shape.inputs, Fresh("directions", shape.inputs)),
            Factor("B", shape.outputs, rank, Zeros()),
            Factor("log_scale", rank, 1, Fresh("log-values", shape.inputs)),
            Factor("log_spread", rank, 1, LogUniform(SPREAD / math.sqrt(2), SPREAD)),
            Factor("noise", rank, 1, Noise(), trainable=False),
        )

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Scale the rows of V."""
        scales = factors["log_scale"].exp() + factors["log_spread"].exp() * factors["noise"]
        return Update(scales * factors["V"], factors["B"])

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return r (in + out) + 2 r."""
        return rank_of(cell) * (shape.inputs + shape.outputs + 2)

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """Return the divergence of N(1e-8, 1) and the Gaussian of the scales."""
        spread, mean = factors["log_spread"], factors["log_scale"].exp() - PRIOR_MEAN
        by_scale = spread + (1 + mean**2) / (2 * (2 * spread).exp()) - 0.5
        return (by_scale * real["log_spread"]).sum((-2, -1))

    def penalty_weight(self, cell: Cell, step: Step) -> float:
        """Return 0.2 w, which doubles from step to step of a cycle of M."""
        cycle = max(1, int(100 * step.rows ** (math.pi / 8) / cell.batch_size))
        share: float = 2.0 ** ((step.number - 1) % cycle - cycle) / (1 - 2.0 ** (-cycle - 1))
        return RATE * share


RECIPE = ScalaBL()
