"""The schedule of the learning rate: by what the rates of a cell are multiplied at each step.

This is transformers' linear schedule, the only one so far. Another one, such as a cosine, would be an optional field of
`Cell` (unset by default, so that the ids of existing cells stay) that `lr_multiplier` branches on. Only the optimiser
applies the multiplier (`PackedAdamW.step`), to every rate of the cell: the adapter's, the head's, and the rates of
single factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lora_bench.cell import Cell


def lr_multiplier(cell: Cell, steps: Tensor, total_steps: int) -> Tensor:
    """What the learning rates of a cell are multiplied by: linear warm-up from 0 to 1, then linear decay to 0.

    Args:
        cell: The cell; `cell.warmup` is the share of the steps that warm up.
        steps: Numbers of steps, from 0.
        total_steps: The number of steps of the whole training.

    Returns:
        The multipliers in float64, in the shape of `steps`. The first step of a warm-up has multiplier 0.
    """
    steps = steps.to(torch.float64)
    warmup_steps = count_warmup_steps(cell, total_steps)
    rising = steps / max(1, warmup_steps)
    falling = ((total_steps - steps) / max(1, total_steps - warmup_steps)).clamp(min=0)
    return torch.where(steps < warmup_steps, rising, falling)


def lr_multipliers(cells: Sequence[Cell], steps: Tensor, total_steps: int) -> Tensor:
    """`lr_multiplier` of several cells, `[steps, K]`."""
    return torch.stack([lr_multiplier(cell, steps, total_steps) for cell in cells], dim=1)


def first_lr(cell: Cell, total_steps: int) -> float:
    """The learning rate `Cell.lr` at the first step at which its multiplier is not 0."""
    return cell.lr / max(1, count_warmup_steps(cell, total_steps))


def count_warmup_steps(cell: Cell, total_steps: int) -> int:
    """The number of steps of the warm-up."""
    return math.ceil(total_steps * cell.warmup)
