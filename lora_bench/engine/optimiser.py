"""AdamW in which everything is per cell: learning rate, warm-up, weight decay, clipping, and the stop at NaN.

The update is torch's AdamW, the schedule transformers' linear one (`schedule.lr_multipliers`), and clipping that of
`clip_grad_norm_` over all values that a cell trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine.block import Block, ByRow
from lora_bench.engine.kernels.ops import uses_kernels
from lora_bench.engine.schedule import lr_multipliers

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults
CLIP_EPSILON = 1e-6  # torch's `clip_grad_norm_` adds it to the norm


def bias_corrections(steps: int) -> Tensor:
    """`[steps, 2]`: what Adam's two moments are divided by at each step, 1 - beta1^t and 1 - beta2^t.

    In float64, since 1 - beta2^t is small beside its terms at first: in float32 its relative error in the first steps
    would be 1e-5, more than all other rounding of a run.
    """
    rows = [(1 - BETA1**step, 1 - BETA2**step) for step in range(1, steps + 1)]
    return torch.tensor(rows, dtype=torch.float64).reshape(steps, 2)


class PackedAdamW:
    """The optimiser of a pack.

    Args:
        blocks: What trains.
        cells: The cells of the pack.
        total_steps: The number of steps of the whole training.

    Attributes:
        lr_multipliers: What the learning rates are multiplied by, `[total_steps, K]`.
        corrections: What Adam's two moments are divided by, `[total_steps, 2]`.
        decay: The weight decay of each cell, `[K]`.
        clips: The norm to which the gradient of each cell is clipped, `[K]`, infinite where it is not; None if no cell
            clips.
        active: Whether the loss and the gradient of each cell have been finite so far, `[K]`. A cell that is not
            active keeps its values.
        steps_taken: How many updates each cell has taken, `[K]`.
        first, second: Adam's moments of each block, with the shape of its matrix.
        count: How many steps have been taken, `[1]`. It is on the device, so that a CUDA graph can count.
        is_recordable: Whether a step does the same whatever its number, so that a CUDA graph can hold it.
    """

    is_recordable: ClassVar[bool] = True

    def __init__(self, blocks: Sequence[Block], cells: Sequence[Cell], total_steps: int) -> None:
        self.blocks = list(blocks)
        matrix = self.blocks[0].matrix
        multipliers = lr_multipliers(cells, torch.arange(total_steps), total_steps)
        self.lr_multipliers = multipliers.to(matrix.device, matrix.dtype)
        self.corrections = bias_corrections(total_steps).to(matrix.device, matrix.dtype)
        self.decay = torch.tensor([c.weight_decay for c in cells], device=matrix.device, dtype=matrix.dtype)
        clips = torch.tensor([c.clip or math.inf for c in cells], device=matrix.device, dtype=matrix.dtype)
        self.clips = clips if bool(torch.isfinite(clips).any()) else None
        self.active = torch.ones(len(cells), dtype=torch.bool, device=matrix.device)
        self.steps_taken = torch.zeros(len(cells), dtype=torch.long, device=matrix.device)
        self.first = [torch.zeros_like(block.matrix) for block in self.blocks]
        self.second = [torch.zeros_like(block.matrix) for block in self.blocks]
        self.count = torch.zeros(1, dtype=torch.long, device=matrix.device)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], losses: Tensor) -> Tensor:
        """Take one step. A cell whose loss or gradient norm is not finite keeps its values for good.

        Args:
            gradients: The gradient of each block's matrix, `[rows, values]`.
            losses: The loss of each cell, `[K]`.

        Returns:
            The norm of each cell's gradient before clipping, `[K]`.
        """
        norms = self.norms(gradients)
        self.active.logical_and_(torch.isfinite(losses) & torch.isfinite(norms))
        self.steps_taken += self.active
        clip = self.clipping(norms)
        # Rows are selected by a tensor: a CUDA graph would record a Python number as a constant.
        multiplier, corrections = (
            table.index_select(0, self.count)[0] for table in (self.lr_multipliers, self.corrections)
        )
        self.count += 1
        for index, (block, gradient) in enumerate(zip(self.blocks, gradients, strict=True)):
            by_row = ByRow(*(values[block.cells] for values in (multiplier, self.decay, clip, self.active)))
            by_row = by_row._replace(lr=by_row.lr * block.lrs)  # here the learning rate is applied
            self._update(block, gradient, (self.first[index], self.second[index]), by_row, corrections)
        return norms

    def clipping(self, norms: Tensor) -> Tensor:
        """What each cell's gradient is multiplied by to clip its norm, `[K]`, at most 1."""
        return torch.ones_like(norms) if self.clips is None else (self.clips / (norms + CLIP_EPSILON)).clamp(max=1)

    def memory(self) -> dict[str, Tensor]:
        """What the next step depends on besides values, moments and counts, by name, on the CPU.

        Nothing here; `RuledAdamW`, whose packs have one cell, returns its bases and counts.
        """
        return {}

    def load_memory(self, memory: Mapping[str, Tensor]) -> None:
        """Restore what `memory` has returned."""

    def norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """The 2-norm of the gradient of all that each cell trains, `[K]`."""
        squares = torch.zeros_like(self.decay)
        for block, gradient in zip(self.blocks, gradients, strict=True):
            squares.index_add_(0, block.cells, torch.linalg.vector_norm(gradient, dim=1).square())
        return squares.sqrt()

    @staticmethod
    def _update(
        block: Block, gradient: Tensor, moments: tuple[Tensor, Tensor], by_row: ByRow, corrections: Tensor
    ) -> None:
        # One step of AdamW in place; a row that is not active keeps its values. `kernels.optimiser` does the same.
        if uses_kernels(block.matrix):
            from lora_bench.engine.kernels import optimiser

            constants = (1 - BETA1, BETA2, 1 - BETA2, EPSILON)  # the differences are taken here, in float64
            return optimiser.adamw(block, gradient, moments, by_row, corrections, constants)
        lr, decay, clip, active = (values[:, None] for values in by_row)
        gradient = torch.where(active, gradient * clip, 0)
        first = moments[0].lerp_(gradient, 1 - BETA1)
        second = moments[1].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        lr = lr if block.lr_multipliers is None else lr * block.lr_multipliers
        decay = lr * decay
        shrink = block.matrix * (decay if block.decays is None else decay * block.decays)
        root = (second / corrections[1]).sqrt_().add_(EPSILON)
        change = (lr / corrections[0]) * first / root
        block.matrix.sub_(torch.where(active, shrink + change, 0))
        return None
