"""RoBERTa's classification head, stacked: dropout, dense, tanh, dropout, projection of the first token.

One row of the matrix is one cell's head; its start is a function of the seed alone, so cells of one seed start alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.engine.block import Block
from lora_bench.engine.masks import Masks

STD = 0.02


class Heads:
    """The heads of K cells: `[K, B, d]` hidden states of first tokens to `[K, B, outputs]` logits."""

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
        rates = torch.tensor([cell.effective_head_lr for cell in cells], device=device, dtype=dtype)
        decays = torch.cat([torch.full((r * c,), float("bias" not in n)) for n, (r, c) in self.shapes.items()])
        places = torch.arange(len(cells), device=device)
        self.block = Block(places, start.requires_grad_(), rates, decays.to(device, dtype))

    def _start(self, seed: int) -> Tensor:
        """Weights from N(0, 0.02²), biases zero, as transformers starts them."""
        parts = [
            torch.zeros(rows * cols, dtype=torch.float64)
            if "bias" in name
            else torch.from_numpy(randomness.normal(rows, cols, seed, "head", name) * STD).flatten()
            for name, (rows, cols) in self.shapes.items()
        ]
        return torch.cat(parts)

    def parts(self, matrix: Tensor) -> dict[str, Tensor]:
        """The matrix cut into `[K, rows, cols]` by name."""
        sizes = [rows * cols for rows, cols in self.shapes.values()]
        return {
            name: part.unflatten(1, shape)
            for (name, shape), part in zip(self.shapes.items(), matrix.split(sizes, dim=1), strict=True)
        }

    def logits(self, matrix: Tensor, first: Tensor, masks: Masks | None) -> Tensor:
        """`[K, B, outputs]`. While training, one dropout mask serves all cells."""
        own = self.parts(matrix)
        hidden = _drop(first.to(matrix.dtype), masks, 0)
        hidden = torch.baddbmm(own["dense.bias"], hidden, own["dense.weight"].mT).tanh()
        hidden = _drop(hidden, masks, 1)
        return torch.baddbmm(own["out_proj.bias"], hidden, own["out_proj.weight"].mT)

    def state(self, values: Tensor) -> dict[str, Tensor]:
        """A cell's row `[1, values]` of the matrix (or of what has its shape) by name, biases as vectors."""
        return {name: _flat(name, part[0]).clone() for name, part in self.parts(values).items()}

    def load(self, state: dict[str, Tensor], values: Tensor) -> None:
        """Put a state into such a row."""
        for name, part in self.parts(values).items():
            part[0].copy_(state[name].view_as(part[0]))


def _flat(name: str, value: Tensor) -> Tensor:
    return value[0] if "bias" in name else value


def _drop(hidden: Tensor, masks: Masks | None, place: int) -> Tensor:
    keep = None if masks is None else masks.head_site(place)
    return hidden if keep is None else hidden * keep.factor(hidden.dtype)[: hidden.shape[1]]
