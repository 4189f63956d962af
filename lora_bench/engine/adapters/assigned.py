"""Frozen factors whose entries are those of a trained factor that all weights share (`recipe.Assigned`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.engine.encoder.families import Family
from lora_bench.methods.recipe import Factor


@dataclass(frozen=True)
class AssignedFactor:
    """One such factor of a group.

    Attributes:
        family: The family of the weights.
        modules: The weights that have it.
        versions: The factor as each cell has it.
    """

    family: Family
    modules: tuple[str, ...]
    versions: tuple[Factor, ...]

    @property
    def name(self) -> str:
        """The factor's name."""
        return self.versions[0].name

    @property
    def shape(self) -> tuple[int, int, int]:
        """Weights, rows and columns, with the padding."""
        return len(self.modules), max(f.rows for f in self.versions), max(f.cols for f in self.versions)


class Assignment:
    """Which entry of the shared factor each entry of the others is.

    All entries of a cell's factors, weight by weight in the model's order, are numbered by a random permutation, which
    is drawn from the seed. Number n stands for entry n modulo d of the shared factor, so that each of its entries is
    used equally often, or once more.

    The factors are gathered from a table of as many copies of the shared factor as its most used entry has uses, and a
    zero for padding. So each place but that of the zero is read once. If several entries were read from one place, the
    backward pass would sum their gradients on a GPU in no fixed order; the gradients of the copies are summed in order.

    Args:
        source: The shared factor as each cell has it, `[1, d]`.
        factors: The factors that consist of its entries.
        cells: The cells.
        order: The weights in the model's order.
        like: A tensor of the device and type.

    Attributes:
        copies: The number of copies of the shared factor in the table.
        index: The place in the table of each entry of all factors, with padding, `[cells, entries]`.
        norms: What each entry of the shared factor is multiplied by, 1 / √uses, and 0 if it is not used, `[cells, d]`.
    """

    def __init__(
        self,
        source: Sequence[Factor],
        factors: Sequence[AssignedFactor],
        cells: Sequence[Cell],
        order: Sequence[str],
        like: Tensor,
    ) -> None:
        self.factors = tuple(factors)
        widest = max(factor.cols for factor in source)
        counts = [_entries(factors, row) for row in range(len(cells))]
        self.copies = max(-(-count // factor.cols) for count, factor in zip(counts, source, strict=True))
        norms = np.zeros((len(cells), widest))
        rows: list[Tensor] = []
        for row, (cell, count, factor) in enumerate(zip(cells, counts, source, strict=True)):
            size = factor.cols
            uses = count // size + (np.arange(size) < count % size)
            norms[row, :size] = np.where(uses > 0, np.maximum(uses, 1) ** -0.5, 0)
            numbers = randomness.permutation(count, cell.seed, "assigned", factor.name)
            places = torch.from_numpy(numbers % size + numbers // size * widest)
            rows.append(self._places(row, places, order, widest * self.copies))
        self.index = torch.stack(rows).to(like.device)
        self.norms = torch.from_numpy(norms).to(like)

    def _places(self, row: int, places: Tensor, order: Sequence[str], zero: int) -> Tensor:
        """The place of each entry of all factors of a cell, in the order of `factors`, with padding."""
        padded = [torch.full(factor.shape, zero) for factor in self.factors]
        begin = 0
        for module in order:
            for factor, target in zip(self.factors, padded, strict=True):
                if module in factor.modules:
                    own = factor.versions[row]
                    end = begin + own.rows * own.cols
                    part = places[begin:end].view(own.rows, own.cols)
                    target[factor.modules.index(module), : own.rows, : own.cols] = part
                    begin = end
        return torch.cat([target.flatten() for target in padded])

    def values(self, source: Tensor) -> list[tuple[AssignedFactor, Tensor]]:
        """The factors with their values `[cells, modules, rows, cols]`.

        Args:
            source: The shared factor, `[cells, d]`: each entry is divided by the root of how often it is used.
        """
        table = (source * self.norms).repeat(1, self.copies)
        flat = torch.cat([table, table.new_zeros(len(table), 1)], dim=1).gather(1, self.index)
        sizes = [int(np.prod(factor.shape)) for factor in self.factors]
        parts = flat.split(sizes, dim=1)
        return [(factor, part.unflatten(1, factor.shape)) for factor, part in zip(self.factors, parts, strict=True)]


def _entries(factors: Sequence[AssignedFactor], row: int) -> int:
    """How many entries a cell's factors have."""
    return sum(len(f.modules) * f.versions[row].rows * f.versions[row].cols for f in factors)
