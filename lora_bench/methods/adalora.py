"""AdaLoRA (Zhang et al., arXiv 2303.10512): LoRA in the form of an SVD, whose rank is distributed over the weights.

The update is `s · B diag(c) A` with n = ⌈1.5 r⌉ components a weight and s = alpha / (n + 1e-5), which stays when
components are pruned. `A: [n, in]` and `B: [out, n]` start from N(0, 0.02²), `c: [n, 1]` at zero; all train, with the
penalty γ = 0.1 times the mean of ‖A Aᵀ - I‖ and ‖Bᵀ B - I‖ (Frobenius norms, not squared) over the weights.

After each step two exponential moving averages (β = 0.85) are updated for every value w: of its sensitivity |w · g|,
with g the clipped gradient of the step, and of its uncertainty, the distance of the sensitivity from its average. The
product of the two is the value's importance. A component's is that of its c, plus the means of those of its row of A
and its column of B. From 15% of the training on, at each thousandth of it, the c of the least important components are
set to zero, so that N (r / n + (1 - r / n) (1 - t)³) of all N are left, with t from 0 to 1 at half of the training.
Components may grow again between these steps; those that are zero after the last of them stay zero. No epoch before the
last of these steps is selected.

Read: peft's code (AdaLoraModel, whose ranks at the start and in the end are 12 and 8 by default, and which takes the
numbers of steps as arguments) and the authors' scripts for GLUE, not the paper. Their scripts choose the steps for each
task, on average the fractions of the training above; γ is theirs (0.1 for most tasks; peft has 0.5), as is alpha.
Deviation: n is always ⌈1.5 r⌉. n (in + out + 1) values are counted, those that train.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.gated import Gated
from lora_bench.methods.orthonormality import distance_from_orthonormal
from lora_bench.methods.recipe import Factor, Normal, Shape, Zeros, alpha_of, rank_of
from lora_bench.methods.rules import Step

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell

START, END = 0.15, 0.5  # the fractions of the training before and after the pruning
INTERVALS = 1000  # of the whole training
BETA = 0.85
PENALTY = 0.1


class AdaLora(Gated):
    """Trains more components than the rank, and prunes the least important ones."""

    name = "adalora"
    title = "AdaLoRA"
    source = "arXiv 2303.10512"
    kind = "rank schedules"
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 8, "alpha": 32.0, "targets": "attention"}
    default_lr = 1e-3
    penalty_mean = True
    memory: ClassVar[Mapping[str, str]] = {f"{kind}.{name}": name for kind in ("mean", "spread") for name in "AcB"}

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return `A: [n, in]`, `c: [n, 1]` and `B: [out, n]`."""
        count = self.components(cell)
        return (
            Factor("A", count, shape.inputs, Normal(0.02)),
            Factor("c", count, 1, Zeros()),
            Factor("B", shape.outputs, count, Normal(0.02)),
        )

    def components(self, cell: Cell) -> int:
        """Return ⌈1.5 r⌉."""
        return math.ceil(1.5 * rank_of(cell))

    def scale(self, cell: Cell) -> float:
        """Return alpha / (n + 1e-5)."""
        return alpha_of(cell) / (self.components(cell) + 1e-5)

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of the two distances from orthonormal rows and columns."""
        return distance_from_orthonormal(factors, real["c"]) / 2

    def penalty_weight(self, cell: Cell, step: Step) -> float:
        """Return γ."""
        return PENALTY

    def remember(
        self, factors: Mapping[str, Tensor], gradients: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Update the moving averages of the sensitivities and of their uncertainties."""
        updated: dict[str, Tensor] = {}
        for name in "AcB":
            sensitivity = (factors[name] * gradients[name]).abs()
            mean = BETA * memory[f"mean.{name}"] + (1 - BETA) * sensitivity
            updated[f"mean.{name}"] = mean
            updated[f"spread.{name}"] = BETA * memory[f"spread.{name}"] + (1 - BETA) * (sensitivity - mean).abs()
        return updated

    def remembers(self, cell: Cell, step: Step) -> bool:
        """Return whether the pruning has not ended."""
        return step.number - 1 < _last(step.total)

    def scores(self, memory: Mapping[str, Tensor]) -> Tensor:
        """Return the importance of c, plus the means of those of A's rows and B's columns."""
        a, c, b = (memory[f"mean.{name}"] * memory[f"spread.{name}"] for name in "AcB")
        return c[..., 0] + a.mean(-1) + b.mean(-2)

    def cut(self, cell: Cell, step: Step, components: int) -> int:
        """Return the number of components beyond the budget; from the end of the pruning on it stays the same.

        The scores do not change then either (`remembers`), so the same components stay zero.
        """
        now, first, last = step.number - 1, int(START * step.total), _last(step.total)  # peft counts steps from 0
        target = components // self.components(cell) * rank_of(cell)
        if now >= last:
            return components - target
        if now <= first or now % max(1, step.total // INTERVALS):
            return 0
        left = 1 - (now - first) / (last - first)
        return components - int((components - target) * left**3 + target)

    def meets_budget(self, cell: Cell, step: Step) -> bool:
        """Return whether the last components have been cut, or the training was too short to cut any."""
        return step.number - 1 >= _last(step.total) or step.number == step.total


def _last(steps: int) -> int:
    """The step, from 0, at which the last components are cut."""
    return steps - int(END * steps)


RECIPE = AdaLora()
