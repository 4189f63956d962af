"""AdamW where everything is per cell: learning rate, warm-up, decay, clipping, and stopping at NaN.

The update is torch's AdamW, the schedule transformers' linear one (so the first step of a warm-up has rate 0), clipping
that of `clip_grad_norm_` over all that a cell trains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine.block import Block, ByRow
from lora_bench.engine.kernels.ops import uses_kernels

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def schedule(cells: Sequence[Cell], steps: int) -> Tensor:
    """`[steps, K]`: the factor on the learning rate at each step, linear warm-up then linear decay to 0."""
    table = torch.empty(steps, len(cells), dtype=torch.float64)
    step = torch.arange(steps, dtype=torch.float64)
    for k, cell in enumerate(cells):
        warm = math.ceil(steps * cell.warmup)
        down = (steps - step) / max(1, steps - warm)
        table[:, k] = torch.where(step < warm, step / max(1, warm), down.clamp(min=0))
    return table


def bias_corrections(steps: int) -> Tensor:
    """`[steps, 2]`: what Adam's two moments are divided by at each step, 1 - beta1^t and 1 - beta2^t.

    In float64, as the difference is small beside its terms: in float32 the second would be wrong by 1e-5 of itself at
    the first steps, more than all of the other rounding of a run.
    """
    rows = [(1 - BETA1**step, 1 - BETA2**step) for step in range(1, steps + 1)]
    return torch.tensor(rows, dtype=torch.float64).reshape(steps, 2)


class PackedAdamW:
    """The optimiser of a pack. `active[k]` turns False when cell k's loss or gradient is not finite.

    `steps_taken[k]` is how many updates it has taken.
    """

    def __init__(self, blocks: Sequence[Block], cells: Sequence[Cell], steps: int) -> None:
        self.blocks = list(blocks)
        matrix = self.blocks[0].matrix
        self.factors = schedule(cells, steps).to(matrix.device, matrix.dtype)
        self.corrections = bias_corrections(steps).to(matrix.device, matrix.dtype)
        self.decay = torch.tensor([c.weight_decay for c in cells], device=matrix.device, dtype=matrix.dtype)
        clips = torch.tensor([c.clip or math.inf for c in cells], device=matrix.device, dtype=matrix.dtype)
        self.clips = clips if bool(torch.isfinite(clips).any()) else None
        self.active = torch.ones(len(cells), dtype=torch.bool, device=matrix.device)
        self.steps_taken = torch.zeros(len(cells), dtype=torch.long, device=matrix.device)
        self.first = [torch.zeros_like(block.matrix) for block in self.blocks]
        self.second = [torch.zeros_like(block.matrix) for block in self.blocks]
        self.count = torch.zeros(1, dtype=torch.long, device=matrix.device)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], losses: Tensor) -> None:
        """One update. `losses: [K]`; a cell whose loss or gradient norm is not finite keeps its values for good."""
        norms = self.norms(gradients)
        self.active.logical_and_(torch.isfinite(losses) & torch.isfinite(norms))
        self.steps_taken += self.active
        clip = torch.ones_like(norms) if self.clips is None else (self.clips / (norms + 1e-6)).clamp(max=1)
        factor, corrections = (table.index_select(0, self.count)[0] for table in (self.factors, self.corrections))
        self.count += 1
        for index, (block, gradient) in enumerate(zip(self.blocks, gradients, strict=True)):
            by_row = ByRow(*(values[block.cells] for values in (factor, self.decay, clip, self.active)))
            by_row = by_row._replace(lr=by_row.lr * block.lrs)
            self._update(block, gradient, (self.first[index], self.second[index]), by_row, corrections)

    def norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """`[K]`: the norm of each cell's whole gradient."""
        squares = torch.zeros_like(self.decay)
        for block, gradient in zip(self.blocks, gradients, strict=True):
            squares.index_add_(0, block.cells, torch.linalg.vector_norm(gradient, dim=1).square())
        return squares.sqrt()

    @staticmethod
    def _update(
        block: Block, gradient: Tensor, moments: tuple[Tensor, Tensor], by_row: ByRow, corrections: Tensor
    ) -> None:
        if uses_kernels(block.matrix):
            from lora_bench.engine.kernels import optimiser

            constants = (1 - BETA1, BETA2, 1 - BETA2, EPSILON)  # differences taken here, in float64
            return optimiser.adamw(block, gradient, moments, by_row, corrections, constants)
        rate, decay, clip, active = (values[:, None] for values in by_row)
        gradient = torch.where(active, gradient * clip, 0)
        first = moments[0].lerp_(gradient, 1 - BETA1)
        second = moments[1].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        rate = rate if block.lr_multipliers is None else rate * block.lr_multipliers
        decay = rate * decay
        shrink = block.matrix * (decay if block.decays is None else decay * block.decays)
        root = (second / corrections[1]).sqrt_().add_(EPSILON)
        change = (rate / corrections[0]) * first / root
        block.matrix.sub_(torch.where(active, shrink + change, 0))
        return None
