"""What trains, as the optimiser sees it: a matrix whose rows are cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass
class Block:
    """Values that train together, a row per cell.

    Attributes:
        cells: The position in the pack of each row's cell, `[rows]`.
        matrix: The values, `[rows, values]`; a leaf of autograd.
        lrs: The learning rate of each row, `[rows]`.
        decays: 1 for columns with weight decay and 0 for others, `[values]`; None if all columns have it.
        lr_multipliers: What a row's learning rate is multiplied by in each column, `[values]`; None if by 1.
    """

    cells: Tensor
    matrix: Tensor
    lrs: Tensor
    decays: Tensor | None = None
    lr_multipliers: Tensor | None = None


class ByRow(NamedTuple):
    """The settings of one step that differ between the rows of a block, `[rows]` each.

    Attributes:
        lr: The learning rate times the schedule's multiplier.
        decay: The weight decay.
        clip: What the gradient is multiplied by to clip its norm, at most 1.
        active: Whether the row is updated.
    """

    lr: Tensor
    decay: Tensor
    clip: Tensor
    active: Tensor
