"""Full fine-tuning in the packed trainer: the backbone's parameters as one matrix with one row."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine.block import Block
from lora_bench.engine.encoder.backbone import Backbone


class WholeBackbone:
    """All parameters of the backbone, trained by one cell.

    The block's matrix holds them in exact type; the model runs on views of it (`weights`).
    """

    def __init__(self, cell: Cell, backbone: Backbone) -> None:
        parameters = dict(backbone.model.named_parameters())
        self.shapes = {name: value.shape for name, value in parameters.items()}
        self.sizes = [value.numel() for value in parameters.values()]
        matrix = torch.cat([value.detach().flatten() for value in parameters.values()])[None].to(backbone.exact)
        decays = torch.cat([torch.full((v.numel(),), float(_decays(n, v))) for n, v in parameters.items()])
        self.block = Block(
            torch.zeros(1, dtype=torch.long, device=backbone.device),
            matrix.requires_grad_(),
            torch.tensor([cell.lr], device=backbone.device, dtype=matrix.dtype),
            decays.to(matrix),
        )

    def weights(self, matrix: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of the matrix `[1, values]`."""
        parts = matrix[0].split(self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def state(self, values: Tensor) -> dict[str, Tensor]:
        """Copies of the parameters by name; `values` is the matrix, or another tensor of its shape."""
        return {name: part.clone() for name, part in self.weights(values).items()}

    def load(self, state: dict[str, Tensor], values: Tensor) -> None:
        """Write a state into `values`, which is the matrix or another tensor of its shape."""
        for name, part in self.weights(values).items():
            part.copy_(state[name])


def _decays(name: str, value: Tensor) -> bool:
    """Whether weight decay applies: not to biases and norms, as in transformers' Trainer."""
    return value.dim() > 1 and "bias" not in name  # MPNet's table of biases by distance is a matrix
