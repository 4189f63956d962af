"""The first values of factors."""

from __future__ import annotations

import torch
from torch import Tensor

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
    Normal,
    Orthonormal,
    Uniform,
    Zeros,
)


def draw(factor: Factor, seed: int, module: str, backbone: Backbone) -> Tensor:
    """A factor's first value, `[rows, cols]` in float64 on the CPU.

    A function of the cell's seed, the module and the factor's name; of a shared factor, the seed, its size and name.
    """
    key = (seed, f"{factor.rows}x{factor.cols}" if factor.shared else module, factor.name)
    match factor.start:
        case Zeros() | FirstStep():  # the first step's values are written when the training begins
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
        case Orthonormal(std):
            # A unit vector of n entries has entries of size 1 / √n.
            longer = max(factor.rows, factor.cols)
            return torch.from_numpy(randomness.orthonormal(factor.rows, factor.cols, *key) * (std * longer**0.5))
        case Assigned():
            raise ValueError(f"{factor.name} follows the values of another factor: it is not drawn")
        case Basis(decomposition, side, gain):
            count = factor.rows if side == "input" else factor.cols
            return basis(backbone, module, decomposition, side, count).double().cpu() * gain
