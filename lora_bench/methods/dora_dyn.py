"""DoRA with dynamic rank distribution (Mao et al., arXiv 2405.17357); `dora` is another method, of decomposed weights.

The update is `s · B diag(c) A` with r₀ = ⌈1.5 r⌉ components a weight and s = alpha / r₀, which stays when some are
pruned. `A: [r₀, in]` and `B: [out, r₀]` start from U(±√(6 / in)) and U(±√(6 / r₀)), `c: [r₀, 1]` at zero; all train.
After each step a component's score is `‖cᵢ bᵢ aᵢᵀ‖ / (‖B diag(c) A‖ + 1e-8)`, averaged over steps (β = 0.9, from zero).
Of T steps, p counts those after the first 15%, and P = ⌊0.35 T⌋: each 100 steps, and at p = P, the c of the lowest
scores are set to zero, `N (r₀ - r) / r₀ · (p / P)³` of all N components of the model and at least one. They may grow
again until p = P; those of that step stay zero. Until then the loss has the penalty 0.1 times the mean, over weights,
components and {A, B}, of the variance of aᵢ over the inputs and of bᵢ over the outputs. An epoch before p = P is never
selected.

Read: the authors' code (github MIkumikumi0116/DoRA, 235e21f: Finetune_Utils.py, Finetune_And_Benchmark.py), whose paper
was not read; it has these numbers for RoBERTa-base, with r = 8 and alpha = 8. Deviations: norms of ΔW are computed from
the Gram matrices of A and B; 0.1 for all tasks (the paper is said to choose from 0.1 to 0.5); no dropout of the
adapter's inputs, as in every method here; r₀ (in + out + 1) values are counted, those that train (the authors count
what is left, without c).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.gated import Gated
from lora_bench.methods.recipe import Factor, Shape, Uniform, Zeros, rank_of
from lora_bench.methods.rules import Step

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell

START, END = 0.15, 0.5  # the fractions of the training before and after the pruning
INTERVAL = 100
BETA, EPSILON = 0.9, 1e-8
PENALTY = 0.1


class DoraDyn(Gated):
    """Trains more components than the rank, and distributes the rank over the weights."""

    name = "dora-dyn"
    title = "DoRA (dynamic rank)"
    source = "arXiv 2405.17357"
    kind = "rank schedules"
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 8, "alpha": 8.0, "targets": "attention"}
    default_lr = 2e-4
    penalty_mean = True
    memory: ClassVar[Mapping[str, str]] = {"score": "c"}

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return `A: [r₀, in]`, `c: [r₀, 1]` and `B: [out, r₀]`."""
        count = self.components(cell)
        return (
            Factor("A", count, shape.inputs, Uniform((6 / shape.inputs) ** 0.5)),
            Factor("c", count, 1, Zeros()),
            Factor("B", shape.outputs, count, Uniform((6 / count) ** 0.5)),
        )

    def components(self, cell: Cell) -> int:
        """Return r₀: the components of a weight at the start."""
        return math.ceil(1.5 * rank_of(cell))

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """Return the mean variance of the rows of A and the columns of B; those of padding are zero."""
        variances = factors["A"].var(dim=-1).sum(-1) + factors["B"].var(dim=-2).sum(-1)
        return variances / (2 * real["c"].sum((-2, -1)))

    def penalty_weight(self, cell: Cell, step: Step) -> float:
        """Return 0.1 until the end of the pruning, then 0."""
        now, last = _progress(step)
        return PENALTY if now <= last else 0.0

    def remember(
        self, factors: Mapping[str, Tensor], gradients: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Update the moving averages of the components' shares of the update."""
        a, b = factors["c"] * factors["A"], factors["B"]
        shares = a.norm(dim=-1) * b.norm(dim=-2)
        # ‖B A‖² is the sum of the entries of BᵀB ∘ A Aᵀ; rounding may make it negative.
        norm = ((b.mT @ b) * (a @ a.mT)).sum((-2, -1)).clamp(min=0).sqrt()
        share = (shares / (norm + EPSILON)[..., None])[..., None]
        return {"score": BETA * memory["score"] + (1 - BETA) * share}

    def remembers(self, cell: Cell, step: Step) -> bool:
        """Return whether the pruning goes on, or ends with this step."""
        now, last = _progress(step)
        return now <= last

    def scores(self, memory: Mapping[str, Tensor]) -> Tensor:
        """Return the average shares."""
        return memory["score"][..., 0]

    def cut(self, cell: Cell, step: Step, components: int) -> int:
        """Return a number that grows with the cube of the time; from the end of the pruning on it stays the same.

        The scores do not change then either (`remembers`), so the same components stay zero.
        """
        now, last = _progress(step)
        if now < 0 or (now < last and now % INTERVAL):
            return 0
        count = self.components(cell)
        time = min(now / last, 1.0) if last else 1.0
        return max(int(components * ((count - rank_of(cell)) / count * time**3)), 1)

    def meets_budget(self, cell: Cell, step: Step) -> bool:
        """Return whether the last components have been cut."""
        now, last = _progress(step)
        return now >= last


def _progress(step: Step) -> tuple[int, int]:
    """The steps since the pruning began, and those that it takes; rounded as in the authors' code."""
    return int(step.number - step.total * START), int(step.total * (1 - START - END))


RECIPE = DoraDyn()
