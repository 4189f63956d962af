"""SVFT, banded (Lingam et al., arXiv 2405.19597): `svft` whose M has b diagonals more on each side of the main one.

M's entries are one factor `M: [1, n (2b + 1) − b (b + 1)]`, the main diagonal first, then those above and below it in
turn, from zero. b is 16 as in the authors' scripts. Everything else is as in `svft`, sources and deviations included. b
must be smaller than n; with b = n − 1, M is full.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.errors import BenchError
from lora_bench.methods.recipe import Shape, Update, b_of
from lora_bench.methods.svft import Svft

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class SvftBanded(Svft):
    """SVFT with 2b + 1 trained diagonals."""

    name = "svft-banded"
    title = "SVFT, banded"
    parameters = frozenset({"b", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"b": 16, "targets": "attention"}
    default_lr = 5e-4

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose A = Uᵀ and B = V M, with M assembled from its diagonals."""
        entries, v = factors["M"][..., 0, :], factors["V"]
        size = v.shape[-1]
        band = entries.new_zeros((*entries.shape[:-1], size, size))
        begin = 0
        for offset in offsets(size):
            if begin == entries.shape[-1]:
                break
            end = begin + size - abs(offset)
            band.diagonal(offset, -2, -1).copy_(entries[..., begin:end])
            begin = end
        return Update(factors["U"], v @ band)

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return n (2b + 1) − b (b + 1), with n the smaller of in and out."""
        size, band = min(shape), b_of(cell)
        if band >= size:
            raise BenchError(f"{band} diagonals are more than a matrix of {size} has.", f"Use --b {size - 1} or less.")
        return size * (2 * band + 1) - band * (band + 1)

    def layout(self, cell: Cell) -> object:
        """Return b: it determines the order of M's entries."""
        return cell.b


def offsets(size: int) -> Iterator[int]:
    """Yield the offsets of diagonals in the order of M's entries: 0, 1, −1, 2, −2, …"""
    yield 0
    for distance in range(1, size):
        yield from (distance, -distance)


RECIPE = SvftBanded()
