"""What trains, as the optimiser sees it: a matrix whose rows are cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass
class Block:
    """Values that train together: `matrix[i]` belongs to the pack's cell `cells[i]`.

    `decays` marks the columns that weight decay applies to (None: all). `rates` are the learning rates by row,
    `multiples` what they are multiplied by in each column (None: by 1).
    """

    cells: Tensor  # [rows], positions in the pack
    matrix: Tensor  # [rows, values], a leaf
    rates: Tensor  # [rows]
    decays: Tensor | None = None  # [values]
    multiples: Tensor | None = None  # [values]


class ByRow(NamedTuple):
    """What differs between the rows of a block, `[rows]` each."""

    rate: Tensor
    decay: Tensor
    clip: Tensor
    alive: Tensor
