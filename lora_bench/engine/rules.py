"""What methods add to a training step beside the update of AdamW: penalties before it, rank schedules after it.

Both are functions of the cell's own factors and of its own step, so that a cell's result does not depend on its pack.
Steps are counted from 1, and everything that differs between steps is a table on the device, which a CUDA graph reads
by the optimiser's count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine.adapters.group import Group
from lora_bench.engine.encoder.families import Family
from lora_bench.engine.optimiser import PackedAdamW


class Rules:
    """The penalties and rank schedules of a pack.

    Args:
        groups: The groups of the pack.
        total_steps: The number of steps of the whole training.
    """

    def __init__(self, groups: Sequence[Group], total_steps: int) -> None:
        self.penalties = [Penalty(group, total_steps) for group in groups if group.recipe.has_penalty]
        self.schedules = [
            (number, RankSchedule(group, total_steps)) for number, group in enumerate(groups) if group.recipe.gate
        ]

    def penalised(self, losses: Tensor, count: Tensor) -> Tensor:
        """The losses `[K]` with each cell's penalty added.

        Args:
            losses: The losses of the task.
            count: How many steps have been taken, `[1]`.
        """
        for penalty in self.penalties:
            losses = losses.index_add(0, penalty.group.block.cells, penalty.values(count))
        return losses

    def after_step(self, optimiser: PackedAdamW, gradients: Sequence[Tensor], norms: Tensor) -> None:
        """Apply the rank schedules after the optimiser's step.

        Args:
            optimiser: The optimiser, which has counted the step.
            gradients: The gradient of each block's matrix, from before the step.
            norms: The norm of each cell's gradient, `[K]`.
        """
        if not self.schedules:
            return
        clip, last = optimiser.clipping(norms), optimiser.count - 1
        for number, schedule in self.schedules:
            cells = schedule.group.block.cells
            schedule.step(last, gradients[number] * clip[cells][:, None], optimiser.active[cells])


class Penalty:
    """The penalty of a group's cells.

    Args:
        group: The group.
        total_steps: The number of steps of the whole training.
    """

    def __init__(self, group: Group, total_steps: int) -> None:
        self.group, self.real = group, group.real()
        self.weights = _table(group, total_steps, group.recipe.penalty_weight, group.scales.dtype)

    def values(self, count: Tensor) -> Tensor:
        """What is added to the loss of each of the group's cells, `[cells]`, after so many steps."""
        recipe, factors = self.group.recipe, self.group.factors(self.group.block.matrix)
        # Each family is summed for itself, and in the group's order, which does not depend on the pack.
        total = torch.stack([recipe.penalty(factors[f], self.real[f]).sum(1) for f in self.group.families]).sum(0)
        weight = self.weights.index_select(0, count)[0]
        return weight * total / (len(self.group.modules) if recipe.penalty_mean else 1)


class RankSchedule:
    """The rank schedule of a group's cells: it sets entries of the gate to zero, and keeps what the method remembers.

    Args:
        group: The group.
        total_steps: The number of steps of the whole training.
    """

    def __init__(self, group: Group, total_steps: int) -> None:
        self.group = group
        recipe, gate = group.recipe, group.recipe.gate
        real = group.real()
        self.real = {family: real[family][gate][..., 0].expand(-1, len(m), -1) for family, m in group.families.items()}
        self.sizes = [values.flatten(1).shape[1] for values in self.real.values()]
        components = torch.cat([values.flatten(1) for values in self.real.values()], dim=1)
        self.padding = components == 0
        counts = dict(zip(group.cells, components.sum(1).long().tolist(), strict=True))
        self.cuts = _table(
            group, total_steps, lambda cell, step, steps: recipe.cut(cell, step, steps, counts[cell]), torch.long
        )
        self.remembers = _table(group, total_steps, recipe.remembers, torch.bool)

    @torch.no_grad()
    def step(self, last: Tensor, gradient: Tensor, active: Tensor) -> None:
        """Remember the step, and set to zero what the schedule cuts after it.

        Args:
            last: The row of the tables, `[1]`.
            gradient: The clipped gradient of the group's matrix.
            active: Which of the cells have not diverged, `[cells]`.
        """
        recipe, factors = self.group.recipe, self.group.factors(self.group.block.matrix.detach())
        for by_name in factors.values():
            gate = by_name[recipe.gate]
            gate.copy_(torch.where(active[:, None, None, None], recipe.shrink(gate), gate))
        if recipe.memory:
            self._remember(factors, gradient, self.remembers.index_select(0, last)[0] & active)
            self._cut(factors, self.cuts.index_select(0, last)[0] * active)

    def _remember(self, factors: dict[Family, dict[str, Tensor]], gradient: Tensor, writes: Tensor) -> None:
        gradients, memory = self.group.factors(gradient), self.group.memories()
        for family in self.group.families:
            for name, value in self.group.recipe.remember(factors[family], gradients[family], memory[family]).items():
                before = memory[family][name]
                before.copy_(torch.where(writes[:, None, None, None], value, before))

    def _cut(self, factors: dict[Family, dict[str, Tensor]], cuts: Tensor) -> None:
        """Set the gate to zero where the score is among a cell's `cuts` smallest, or ties with the last of them."""
        memory = self.group.memories()
        scores = torch.cat([self.group.recipe.scores(memory[f]).flatten(1) for f in self.group.families], dim=1)
        scores = scores.masked_fill(self.padding, torch.inf)
        threshold = scores.sort(dim=1).values.gather(1, (cuts - 1).clamp(min=0)[:, None])
        off = (scores <= threshold) & (cuts > 0)[:, None] & ~self.padding
        for (family, real), part in zip(self.real.items(), off.split(self.sizes, dim=1), strict=True):
            factors[family][self.group.recipe.gate].masked_fill_(part.view(real.shape)[..., None], 0)


def _table(group: Group, total_steps: int, value: Callable[[Cell, int, int], float], dtype: torch.dtype) -> Tensor:
    """`[total_steps, cells]`: a setting of each step (from 1) and cell."""
    columns = {cell: [value(cell, step, total_steps) for step in range(1, total_steps + 1)] for cell in group.cells}
    return torch.tensor([columns[cell] for cell in group.cells], dtype=dtype).T.contiguous().to(group.scales.device)
