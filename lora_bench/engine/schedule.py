"""The schedule of the learning rate: by what the rates of a cell are multiplied at each step.

This is transformers' linear schedule, the only one so far. Another one, such as a cosine, would be an optional field of
`Cell` (unset by default, so that the ids of existing cells stay) and another branch of `lr_multipliers`. The optimiser
applies the multiplier (`PackedAdamW.step`) to every rate of the cell: the adapter's, the head's, and the rates of
single factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lora_bench.cell import Cell


def lr_multipliers(cells: Sequence[Cell], steps: Tensor, total_steps: int) -> Tensor:
    """What the learning rates of each cell are multiplied by: linear warm-up from 0 to 1, then linear decay to 0.

    Args:
        cells: K cells; `Cell.warmup` is the share of the steps that warm up.
        steps: Numbers of steps, from 0, `[n]`.
        total_steps: The number of steps of the whole training.

    Returns:
        `[n, K]` in float64. The first step of a warm-up has multiplier 0.
    """
    step = steps.to(torch.float64)[:, None]
    warmup_steps = torch.tensor([count_warmup_steps(cell, total_steps) for cell in cells], dtype=torch.float64)
    rising = step / warmup_steps.clamp(min=1)
    falling = ((total_steps - step) / (total_steps - warmup_steps).clamp(min=1)).clamp(min=0)
    return torch.where(step < warmup_steps, rising, falling)


def first_lr(cell: Cell, total_steps: int) -> float:
    """The learning rate `Cell.lr` at the first step at which its multiplier is not 0."""
    return cell.lr / max(1, count_warmup_steps(cell, total_steps))


def count_warmup_steps(cell: Cell, total_steps: int) -> int:
    """The number of steps of the warm-up."""
    return math.ceil(total_steps * cell.warmup)
