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
from lora_bench.engine.bank import Block

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


class PackedAdamW:
    """The optimiser of a pack. `alive[k]` turns False when cell k's loss or gradient is not finite."""

    def __init__(self, blocks: Sequence[Block], cells: Sequence[Cell], steps: int) -> None:
        self.blocks = list(blocks)
        matrix = self.blocks[0].matrix
        self.factors = schedule(cells, steps).to(matrix.device, matrix.dtype)
        self.decay = torch.tensor([c.weight_decay for c in cells], device=matrix.device, dtype=matrix.dtype)
        clips = torch.tensor([c.clip or math.inf for c in cells], device=matrix.device, dtype=matrix.dtype)
        self.clips = clips if bool(torch.isfinite(clips).any()) else None
        self.alive = torch.ones(len(cells), dtype=torch.bool, device=matrix.device)
        self.first = [torch.zeros_like(block.matrix) for block in self.blocks]
        self.second = [torch.zeros_like(block.matrix) for block in self.blocks]
        self.count = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], losses: Tensor) -> None:
        """One update. `losses: [K]`; a cell whose loss or gradient norm is not finite keeps its values for good."""
        norms = self.norms(gradients)
        self.alive &= torch.isfinite(losses) & torch.isfinite(norms)
        scale = torch.ones_like(norms) if self.clips is None else (self.clips / (norms + 1e-6)).clamp(max=1)
        factor = self.factors[self.count]
        self.count += 1
        for index, (block, gradient) in enumerate(zip(self.blocks, gradients, strict=True)):
            self._update(index, block, gradient, factor, scale)

    def norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """`[K]`: the norm of each cell's whole gradient."""
        squares = torch.zeros_like(self.decay)
        for block, gradient in zip(self.blocks, gradients, strict=True):
            squares.index_add_(0, block.cells, gradient.square().sum(1))
        return squares.sqrt()

    def _update(self, index: int, block: Block, gradient: Tensor, factor: Tensor, scale: Tensor) -> None:
        alive = self.alive[block.cells, None]
        gradient = torch.where(alive, gradient * scale[block.cells, None], 0)
        first = self.first[index].lerp_(gradient, 1 - BETA1)
        second = self.second[index].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        rate = (block.rates * factor[block.cells])[:, None]
        decay = rate * self.decay[block.cells, None]
        shrink = block.matrix * (decay if block.decays is None else decay * block.decays)
        root = (second / (1 - BETA2**self.count)).sqrt_().add_(EPSILON)
        change = (rate / (1 - BETA1**self.count)) * first / root
        block.matrix.sub_(torch.where(alive, shrink + change, 0))
