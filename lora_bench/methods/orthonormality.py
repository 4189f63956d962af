"""A penalty that several methods have: how far A's rows and B's columns are from orthonormal ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def distance_from_orthonormal(factors: Mapping[str, Tensor], real: Tensor) -> Tensor:
    """Return ‖A Aᵀ - I‖ + ‖Bᵀ B - I‖ of each weight, `[cells, modules]`, with zeros in I where components are padding.

    Args:
        factors: A and B.
        real: 1 for the components of each cell and 0 for padding, `[cells, 1, n, 1]`.
    """
    eye = real * real.new_ones(real.shape[-2]).diag()
    squares = factors["A"] @ factors["A"].mT, factors["B"].mT @ factors["B"]
    one, other = ((square - eye).norm(dim=(-2, -1)) for square in squares)
    total: Tensor = one + other  # torch leaves `norm` untyped
    return total
