"""RoBERTa's classification head for K cells: dropout, dense, tanh, dropout and projection of the first token.

A row of the matrix is one cell's head. Its start is a function of the seed alone, so cells of one seed start alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.engine.block import Block
from lora_bench.engine.masks import Masks

STD = 0.02  # transformers' initializer_range for RoBERTa and BERT


class Heads:
    """The heads of K cells: hidden states of first tokens `[K, B, d]` to logits `[K, B, outputs]`."""

    def __init__(
        self, cells: Sequence[Cell], hidden: int, outputs: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shapes = {
            "dense.weight": (hidden, hidden),
            "dense.bias": (1, hidden),
            "out_proj.weight": (outputs, hidden),
            "out_proj.bias": (1, outputs),
        }
        starts = {seed: self._start(seed).to(device, dtype) for seed in {cell.seed for cell in cells}}
        start = torch.stack([starts[cell.seed] for cell in cells])
        lrs = torch.tensor([cell.effective_head_lr for cell in cells], device=device, dtype=dtype)
        decays = torch.cat([torch.full((r * c,), float("bias" not in n)) for n, (r, c) in self.shapes.items()])
        positions = torch.arange(len(cells), device=device)
        self.block = Block(positions, start.requires_grad_(), lrs, decays.to(device, dtype))

    def _start(self, seed: int) -> Tensor:
        """Weights from N(0, 0.02²) and biases zero, as transformers initialises them."""
        parts = [
            torch.zeros(rows * cols, dtype=torch.float64)
            if "bias" in name
            else torch.from_numpy(randomness.normal(rows, cols, seed, "head", name) * STD).flatten()
            for name, (rows, cols) in self.shapes.items()
        ]
        return torch.cat(parts)

    def parts(self, matrix: Tensor) -> dict[str, Tensor]:
        """Weights and biases by name, `[K, rows, cols]` views of the matrix."""
        sizes = [rows * cols for rows, cols in self.shapes.values()]
        return {
            name: part.unflatten(1, shape)
            for (name, shape), part in zip(self.shapes.items(), matrix.split(sizes, dim=1), strict=True)
        }

    def logits(self, matrix: Tensor, first: Tensor, masks: Masks | None) -> Tensor:
        """The logits of each cell.

        Args:
            matrix: The heads, `[K, values]`.
            first: The hidden states of the first tokens, `[K, B, d]`.
            masks: The dropout masks while training; all cells share them.

        Returns:
            `[K, B, outputs]`.
        """
        parts = self.parts(matrix)
        hidden = _dropout(first.to(matrix.dtype), masks, 0)
        hidden = torch.baddbmm(parts["dense.bias"], hidden, parts["dense.weight"].mT).tanh()
        hidden = _dropout(hidden, masks, 1)
        return torch.baddbmm(parts["out_proj.bias"], hidden, parts["out_proj.weight"].mT)

    @staticmethod
    def is_output(name: str) -> bool:
        """Whether a part belongs to the output layer, whose size is the task's."""
        return name.startswith("out_proj.")

    def state(self, values: Tensor) -> dict[str, Tensor]:
        """Copies of one cell's parts by name, biases as vectors.

        `values` is the cell's row `[1, values]` of the matrix, or of another tensor of its shape.
        """
        return {name: _without_row_axis(name, part[0]).clone() for name, part in self.parts(values).items()}

    def load(self, state: dict[str, Tensor], values: Tensor) -> None:
        """Write a state into such a row."""
        for name, part in self.parts(values).items():
            part[0].copy_(state[name].view_as(part[0]))


def _without_row_axis(name: str, value: Tensor) -> Tensor:
    return value[0] if "bias" in name else value


def _dropout(hidden: Tensor, masks: Masks | None, index: int) -> Tensor:
    mask = None if masks is None else masks.head_mask(index)
    return hidden if mask is None else hidden * mask.factor(hidden.dtype)[: hidden.shape[1]]
