"""The classification heads of K cells, all of one form (`encoder.head_forms`).

A row of the matrix is one cell's head. It starts from the seed, and from the pretrained pooler where the form has one,
so cells of one seed start alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.engine.block import Block
from lora_bench.engine.encoder import head_forms
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.head_forms import DENSE, OUTPUT
from lora_bench.engine.masks import Masks
from lora_bench.errors import MISSING, BenchError

STD = 0.02  # transformers' initializer_range for the types in `head_forms`, by default and in the published models


class Heads:
    """The heads of K cells: hidden states of first tokens `[K, B, d]` to logits `[K, B, outputs]`.

    Args:
        cells: The cells; their heads have one form.
        backbone: The encoder.
        outputs: The number of outputs.
    """

    def __init__(self, cells: Sequence[Cell], backbone: Backbone, outputs: int) -> None:
        if len({cell.head for cell in cells}) > 1:
            raise ValueError("the cells of a pack have heads of one form")
        self.form = head_forms.of_cell(cells[0].head, backbone.config)
        self.activation = self.form.activation_of(backbone.config)
        hidden, device, dtype = backbone.hidden_size, backbone.device, backbone.exact
        self.shapes = {
            f"{DENSE}.weight": (hidden, hidden),
            f"{DENSE}.bias": (1, hidden),
            f"{OUTPUT}.weight": (outputs, hidden),
            f"{OUTPUT}.bias": (1, outputs),
        }
        pretrained = backbone.pooler if self.form.pooler else {}
        if not all(value.isfinite().all() for value in pretrained.values()):
            what = "The model's pooler, from which its head starts, holds numbers that are not finite."
            raise BenchError(what, "Its weights are damaged: get them again.", MISSING)
        given = {f"{DENSE}.{kind}": value for kind, value in pretrained.items()}
        starts = {seed: self._start(seed, given).to(device, dtype) for seed in {cell.seed for cell in cells}}
        start = torch.stack([starts[cell.seed] for cell in cells])
        lrs = torch.tensor([cell.effective_head_lr for cell in cells], device=device, dtype=dtype)
        decays = torch.cat([torch.full((r * c,), float("bias" not in n)) for n, (r, c) in self.shapes.items()])
        positions = torch.arange(len(cells), device=device)
        self.block = Block(positions, start.requires_grad_(), lrs, decays.to(device, dtype))

    def _start(self, seed: int, pretrained: dict[str, Tensor]) -> Tensor:
        """What is pretrained, else weights from N(0, 0.02²) and biases zero, as transformers initialises them."""
        parts = []
        for name, (rows, cols) in self.shapes.items():
            if name in pretrained:
                parts.append(pretrained[name].flatten().to("cpu", torch.float64))
            elif "bias" in name:
                parts.append(torch.zeros(rows * cols, dtype=torch.float64))
            else:
                draw = randomness.normal(rows, cols, seed, "head", name)
                parts.append(torch.from_numpy(draw * STD).flatten())
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
        hidden = self.features(matrix, first, masks)
        return torch.baddbmm(parts[f"{OUTPUT}.bias"], hidden, parts[f"{OUTPUT}.weight"].mT)

    def features(self, matrix: Tensor, first: Tensor, masks: Masks | None) -> Tensor:
        """What the output layer reads, `[K, B, d]`; see `logits`."""
        parts = self.parts(matrix)
        hidden = _dropout(first.to(matrix.dtype), masks, 0)
        hidden = self.activation(torch.baddbmm(parts[f"{DENSE}.bias"], hidden, parts[f"{DENSE}.weight"].mT))
        return _dropout(hidden, masks, 1)

    @staticmethod
    def is_output(name: str) -> bool:
        """Whether a part belongs to the output layer, whose size is the task's."""
        return name.startswith(f"{OUTPUT}.")

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
    mask = None if masks is None else masks.head_mask(index, hidden.shape[1])
    return hidden if mask is None else hidden * mask.factor(hidden.dtype)
