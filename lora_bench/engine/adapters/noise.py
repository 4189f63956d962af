"""Frozen factors that are drawn anew for every step (`recipe.Noise`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.methods.recipe import Factor


@dataclass(frozen=True)
class NoiseFactor:
    """One such factor of a group.

    Attributes:
        modules: The weights that have it.
        cells: The cells of the group.
        versions: The factor as each cell has it.
        values: Its values, `[cells, modules, rows, cols]`, which are written in place: a CUDA graph reads them.
    """

    modules: tuple[str, ...]
    cells: tuple[Cell, ...]
    versions: Sequence[Factor]
    values: Tensor

    def draw(self, *key: str | int) -> None:
        """Write standard normals, a function of this key, the cell's seed, the factor's size and name, and the module.

        Without a key it is zero.
        """
        drawn = np.zeros(self.values.shape)
        by_size: dict[tuple[int, int, int], list[int]] = {}
        for row, (cell, factor) in enumerate(zip(self.cells, self.versions, strict=True)):
            by_size.setdefault((cell.seed, factor.rows, factor.cols), []).append(row)
        for (seed, rows, cols), sharing in by_size.items() if key else ():
            name = self.versions[0].name
            parts = [randomness.normal(rows, cols, seed, module, name, *key) for module in self.modules]
            drawn[sharing, :, :rows, :cols] = np.stack(parts)
        host = torch.from_numpy(drawn).to(self.values.dtype)
        if self.values.is_cuda:
            host = host.pin_memory()  # a copy from other memory would wait for the device in every step
        self.values.copy_(host, non_blocking=True)
