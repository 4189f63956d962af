"""The second step of methods that also descend a divergence from a prior (`Recipe.divergence`)."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_bench.engine.adapters.group import Group
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.optimiser import PackedAdamW


class DivergenceSteps:
    """Plain gradient steps on the divergence of each cell, after those of the optimiser.

    Args:
        pack: The pack.
        total_steps: The number of steps of the whole training.
        rows: The training rows.
    """

    def __init__(self, pack: Pack, total_steps: int, rows: int) -> None:
        self._groups: list[tuple[Group, Tensor, Tensor]] = []
        for group in pack.bank.groups:
            size = group.cells[0].batch_size
            rates = [group.recipe.divergence_rate(step, rows, size) for step in range(total_steps)]
            if any(rates):
                matrix = group.block.matrix
                by_step = torch.tensor(rates, dtype=torch.float64).to(matrix.device, matrix.dtype)
                self._groups.append((group, by_step, group.real_entries()))

    def step(self, optimiser: PackedAdamW) -> None:
        """Take the step that follows the optimiser's; cells that have diverged keep their values."""
        for group, by_step, real in self._groups:
            # Selected by a tensor, as a CUDA graph would record a Python number as a constant.
            last = optimiser.count - 1
            multiplier = optimiser.lr_multipliers.index_select(0, last)[0][group.block.cells]
            rate = by_step.index_select(0, last) * multiplier * optimiser.active[group.block.cells]
            with torch.enable_grad():
                factors = group.factors(group.block.matrix)
                total = torch.stack([group.recipe.divergence(by_name).sum() for by_name in factors.values()]).sum()
            (gradient,) = torch.autograd.grad(total, [group.block.matrix])
            with torch.no_grad():
                group.block.matrix.sub_(torch.where(real > 0, rate[:, None] * gradient, 0))
