"""The initial values of factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.engine.adapters.bases import basis
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.methods.recipe import (
    Assigned,
    Basis,
    Blocks,
    Constant,
    Factor,
    FirstStep,
    Fold,
    Fresh,
    LogUniform,
    Noise,
    Normal,
    Orthonormal,
    Uniform,
    Zeros,
)


def draw(factor: Factor, seed: int, module: str, backbone: Backbone) -> Tensor:
    """A factor's initial values, `[rows, cols]` in float64 on the CPU.

    They are a function of the cell's seed, the module and the factor's name; those of a shared factor, of the seed, its
    size and its name.
    """
    key = (seed, f"{factor.rows}x{factor.cols}" if factor.shared else module, factor.name)
    match factor.start:
        case Zeros() | FirstStep() | Noise() | Assigned():  # the last three get their values later
            return torch.zeros(factor.rows, factor.cols, dtype=torch.float64)
        case Constant(value):
            return torch.full((factor.rows, factor.cols), value, dtype=torch.float64)
        case Fold() | Blocks():
            rows, columns = torch.arange(factor.rows)[:, None], torch.arange(factor.cols)
            is_fold = isinstance(factor.start, Fold)
            return (rows == (columns % factor.rows if is_fold else columns * factor.rows // factor.cols)).double()
        case Normal(std):
            return torch.from_numpy(randomness.normal(factor.rows, factor.cols, *key) * std)
        case Uniform(bound):
            return torch.from_numpy(randomness.uniform(factor.rows, factor.cols, *key) * bound)
        case LogUniform(low, high):
            unit = torch.from_numpy(randomness.uniform(factor.rows, factor.cols, *key) + 1) / 2
            return torch.log(unit * (high - low) + low)
        case Fresh():
            return _part_of_fresh_layer(factor.start, factor.rows, seed, module)
        case Orthonormal(std):
            # A unit vector of n entries has entries of size 1 / √n.
            longer = max(factor.rows, factor.cols)
            return torch.from_numpy(randomness.orthonormal(factor.rows, factor.cols, *key) * (std * longer**0.5))
        case Basis(decomposition, side, gain):
            count = factor.rows if side == "input" else factor.cols
            return basis(backbone, module, decomposition, side, count).double().cpu() * gain


def draw_stack(versions: Sequence[Factor], cells: Sequence[Cell], modules: Sequence[str], backbone: Backbone) -> Tensor:
    """The initial values of one factor for all cells and modules, zero-padded to the largest.

    Args:
        versions: The factor as each cell has it.
        cells: The cells.
        modules: The weights.
        backbone: The encoder.

    Returns:
        `[cells, modules, rows, cols]`. What is the same for all modules, or for all cells, lies in memory once
        (with stride 0).
    """
    rows, cols = max(f.rows for f in versions), max(f.cols for f in versions)
    drawn_modules = modules[:1] if versions[0].shared else modules
    same_for_all = isinstance(versions[0].start, Basis) and not versions[0].trainable and len(set(versions)) == 1
    drawn_cells = cells[:1] if same_for_all else cells
    # Cells with an equal factor and seed share one draw. The lists differ in length if one cell stands for all.
    rows_of: dict[tuple[Factor, int], list[int]] = {}
    for row, (cell, factor) in enumerate(zip(drawn_cells, versions, strict=False)):
        rows_of.setdefault((factor, cell.seed), []).append(row)
    values = torch.zeros(len(drawn_cells), len(drawn_modules), rows, cols, dtype=backbone.exact)
    # Filled by NumPy, in one thread. Hundreds of copies by torch have as many barriers of its threads, which take
    # seconds, instead of 0.1 s, where other processes use the cores too.
    array = values.numpy()
    for index, module in enumerate(drawn_modules):
        for (factor, seed), sharing in rows_of.items():
            array[sharing, index, : factor.rows, : factor.cols] = draw(factor, seed, module, backbone).numpy()
    return values.to(backbone.device).expand(len(versions), len(modules), -1, -1)


def _part_of_fresh_layer(start: Fresh, rows: int, seed: int, module: str) -> Tensor:
    layer = torch.from_numpy(randomness.uniform(rows, start.columns, seed, module, "fresh") * start.columns**-0.5)
    _, values, directions = torch.linalg.svd(layer, full_matrices=False)
    part: Tensor = directions if start.part == "directions" else values.log()[:, None]
    return part
