"""What methods add to a training step besides the update of AdamW: penalties, and rank schedules (`TrainingRules`).

All of it is a function of the cell's own factors and of its own step, so that a cell's result does not depend on its
pack. Settings that differ between steps are tables on the device, whose row a CUDA graph selects by the optimiser's
count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine.adapters.group import Group, StackedFactor
from lora_bench.engine.encoder.families import Family
from lora_bench.engine.optimiser import PackedAdamW
from lora_bench.methods.rules import Step

GATES = "gates"  # the name of what a rank schedule remembers, in the memory of a cell


class StepRules:
    """The penalties and rank schedules of a pack.

    Args:
        groups: The groups of the pack, in the order of the optimiser's blocks.
        total_steps: The number of steps of the whole training.
        rows: The number of training rows.
    """

    def __init__(self, groups: Sequence[Group], total_steps: int, rows: int) -> None:
        steps = [Step(number, total_steps, rows) for number in range(1, total_steps + 1)]
        penalties = [Penalty(group, steps) for group in groups if group.recipe.has_penalty]
        self._in_loss = [penalty for penalty in penalties if not penalty.group.recipe.penalty_steps]
        self._stepping = [penalty for penalty in penalties if penalty.group.recipe.penalty_steps]
        self._schedules = {
            number: RankSchedule(group, steps) for number, group in enumerate(groups) if group.recipe.gate
        }

    def penalised(self, losses: Tensor, count: Tensor) -> Tensor:
        """The losses `[K]` with the penalties that are a part of them.

        Args:
            losses: The losses of the task.
            count: How many steps have been taken, `[1]`.
        """
        for penalty in self._in_loss:
            losses = losses.index_add(0, penalty.group.block.cells, penalty.values(count))
        return losses

    def after_step(self, optimiser: PackedAdamW, gradients: Sequence[Tensor], norms: Tensor) -> None:
        """Take the steps on penalties and apply the rank schedules, after the optimiser's step.

        Args:
            optimiser: The optimiser, which has counted the step.
            gradients: The gradient of each block's matrix, from before the step.
            norms: The norm of each cell's gradient, `[K]`.
        """
        last = optimiser.count - 1
        for penalty in self._stepping:
            penalty.step(optimiser, last)
        if self._schedules:
            clip = optimiser.clipping(norms)
            for number, schedule in self._schedules.items():
                cells = schedule.group.block.cells
                schedule.step(last, gradients[number] * clip[cells][:, None], optimiser.active[cells])

    def memory(self, position: int) -> dict[str, Tensor]:
        """What the rules of a cell remember between steps, by name, on the CPU; empty for most methods."""
        for schedule in self._schedules.values():
            if position in schedule.group.positions and schedule.group.recipe.memory:
                views = schedule.views(position - schedule.group.offset)
                return {GATES: torch.cat([view.flatten() for view in views]).cpu()}
        return {}

    def load_memory(self, position: int, memory: Mapping[str, Tensor]) -> None:
        """Restore what `memory` has returned for a cell."""
        for schedule in self._schedules.values():
            if position in schedule.group.positions and schedule.group.recipe.memory:
                views = schedule.views(position - schedule.group.offset)
                parts = memory[GATES].split([view.numel() for view in views])
                for view, part in zip(views, parts, strict=True):
                    view.copy_(part.view(view.shape))


class Penalty:
    """The penalty of a group's cells.

    Args:
        group: The group.
        steps: All steps of the training.

    Attributes:
        real: See `TrainingRules.penalty`, by family.
        weights: The weight of the penalty, `[steps, cells]`.
    """

    def __init__(self, group: Group, steps: Sequence[Step]) -> None:
        self.group, self.real = group, group.real()
        self.weights = _table(group, steps, group.recipe.penalty_weight, group.scales.dtype)

    def values(self, row: Tensor) -> Tensor:
        """The penalty of each of the group's cells, `[cells]`, with its weight in this row `[1]` of the table."""
        recipe, factors = self.group.recipe, self.group.factors(self.group.block.matrix)
        # One sum for each family, in the group's order: the order of a cell's terms does not depend on the pack.
        total = torch.stack([recipe.penalty(factors[f], self.real[f]).sum(1) for f in self.group.families]).sum(0)
        weight = self.weights.index_select(0, row)[0]
        return weight * total / (len(self.group.modules) if recipe.penalty_mean else 1)

    def step(self, optimiser: PackedAdamW, last: Tensor) -> None:
        """Take a plain gradient step on the penalty; cells that have diverged keep their values."""
        block = self.group.block
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.values(last).sum(), [block.matrix])
        schedule = optimiser.lr_multipliers.index_select(0, last)[0][block.cells]
        with torch.no_grad():
            active = optimiser.active[block.cells][:, None]
            block.matrix.sub_(torch.where(active, schedule[:, None] * gradient, 0))


class RankSchedule:
    """The rank schedule of a group's cells: it sets entries of the gate to zero, and keeps what the method remembers.

    Args:
        group: The group.
        steps: All steps of the training.

    Attributes:
        real: 1 for the components of each cell and 0 for padding, `[cells, modules, n]` by family.
        sizes: The number of components of each family, with padding.
        padding: Which of the components of all families are padding, `[cells, components]`.
        cuts: How many components are set to zero, `[steps, cells]`.
        remembers: Whether the memory is updated, `[steps, cells]`.
        memory: What the method remembers between steps, `[cells, values]`; without values if it remembers nothing.
    """

    def __init__(self, group: Group, steps: Sequence[Step]) -> None:
        self.group = group
        recipe, gate = group.recipe, group.recipe.gate
        real = group.real()
        self.real = {family: real[family][gate][..., 0].expand(-1, len(m), -1) for family, m in group.families.items()}
        self.sizes = [values.flatten(1).shape[1] for values in self.real.values()]
        components = torch.cat([values.flatten(1) for values in self.real.values()], dim=1)
        self.padding = components == 0
        counts = dict(zip(group.cells, components.sum(1).long().tolist(), strict=True))
        self.cuts = _table(group, steps, lambda cell, step: recipe.cut(cell, step, counts[cell]), torch.long)
        self.remembers = _table(group, steps, recipe.remembers, torch.bool)
        pairs = recipe.memory.items()
        self._remembered: list[tuple[str, StackedFactor]] = [
            (name, stack) for stack in group.trained for name, factor in pairs if factor == stack.name
        ]
        values = sum(stack.size for _, stack in self._remembered)
        self.memory = group.scales.new_zeros(len(group.cells), values)

    def memories(self) -> dict[Family, dict[str, Tensor]]:
        """What the method remembers `[cells, modules, rows, cols]` by family and name, as views of `memory`."""
        memories: dict[Family, dict[str, Tensor]] = {family: {} for family in self.group.families}
        parts = self.memory.split([stack.size for _, stack in self._remembered], dim=1) if self._remembered else ()
        for (name, stack), part in zip(self._remembered, parts, strict=True):
            memories[stack.families[0]][name] = part.unflatten(1, (stack.copies, stack.rows, stack.cols))
        return memories

    def views(self, row: int) -> list[Tensor]:
        """What the method remembers of one cell, as views without padding, `[modules, rows, cols]` each."""
        memories, views = self.memories(), []
        for name, stack in self._remembered:
            factor = self.group.factor_of(row, stack)
            views.append(memories[stack.families[0]][name][row, :, : factor.rows, : factor.cols])
        return views

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
        gradients, memory = self.group.factors(gradient), self.memories()
        for family in self.group.families:
            for name, value in self.group.recipe.remember(factors[family], gradients[family], memory[family]).items():
                before = memory[family][name]
                before.copy_(torch.where(writes[:, None, None, None], value, before))

    def _cut(self, factors: dict[Family, dict[str, Tensor]], cuts: Tensor) -> None:
        """Set the gate to zero where the score is among a cell's `cuts` smallest, or ties with the last of them."""
        memory = self.memories()
        scores = torch.cat([self.group.recipe.scores(memory[f]).flatten(1) for f in self.group.families], dim=1)
        scores = scores.masked_fill(self.padding, torch.inf)
        threshold = scores.sort(dim=1).values.gather(1, (cuts - 1).clamp(min=0)[:, None])
        off = (scores <= threshold) & (cuts > 0)[:, None] & ~self.padding
        for (family, real), part in zip(self.real.items(), off.split(self.sizes, dim=1), strict=True):
            factors[family][self.group.recipe.gate].masked_fill_(part.view(real.shape)[..., None], 0)


def _table(group: Group, steps: Sequence[Step], value: Callable[[Cell, Step], float], dtype: torch.dtype) -> Tensor:
    """`[steps, cells]`: a setting of each step and cell."""
    columns = {cell: [value(cell, step) for step in steps] for cell in group.cells}
    return torch.tensor([columns[cell] for cell in group.cells], dtype=dtype).T.contiguous().to(group.scales.device)
