"""Full fine-tuning in the packed trainer: the backbone's parameters as one matrix with one row."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.engine.block import Block
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.targets import within_layer


class WholeBackbone:
    """All parameters of the backbone, trained by one cell.

    The block's matrix holds them in exact type; the model runs on views of it (`weights`).

    Attributes:
        shapes: The shape of each parameter.
        rule: How they train; None for the cell's AdamW on all of them.
        linears: The names of the weights of the layers' linears.
    """

    def __init__(self, cell: Cell, backbone: Backbone) -> None:
        parameters = dict(backbone.model.named_parameters())
        self.shapes = {name: value.shape for name, value in parameters.items()}
        self.sizes = [value.numel() for value in parameters.values()]
        self.rule = methods.of(cell).weights(cell)
        self.linears = {f"{name}.weight" for name in backbone.linears() if within_layer(name)} & self.shapes.keys()
        matrix = torch.cat([value.detach().flatten() for value in parameters.values()])[None].to(backbone.exact)
        by_column = torch.cat([torch.full((v.numel(),), float(decays(n, v))) for n, v in parameters.items()])
        self.block = Block(
            torch.zeros(1, dtype=torch.long, device=backbone.device),
            matrix.requires_grad_(),
            torch.tensor([cell.lr], device=backbone.device, dtype=matrix.dtype),
            by_column.to(matrix),
        )

    def weights(self, matrix: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of the matrix `[1, values]`."""
        parts = matrix[0].split(self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def trains(self, name: str) -> bool:
        """Whether a parameter trains at any step."""
        if self.rule is None or self.rule.projection is None or not self.rule.projection.is_factor:
            return True
        return name in self.linears or f"{name.removesuffix('bias')}weight" in self.linears

    @property
    def trained_values(self) -> int:
        """How many values train: those of a factor where a weight changes by one."""
        projection = None if self.rule is None else self.rule.projection
        if projection is None or not projection.is_factor:
            return sum(self.sizes)
        shapes = [(name, shape) for name, shape in self.shapes.items() if self.trains(name)]
        return sum(
            min(projection.rank, *shape) * max(shape) if name in self.linears else shape.numel()
            for name, shape in shapes
        )

    def state(self, values: Tensor) -> dict[str, Tensor]:
        """Copies of the parameters by name; `values` is the matrix, or another tensor of its shape."""
        return {name: part.clone() for name, part in self.weights(values).items()}

    def load(self, state: dict[str, Tensor], values: Tensor) -> None:
        """Write a state into `values`, which is the matrix or another tensor of its shape."""
        for name, part in self.weights(values).items():
            part.copy_(state[name])


def decays(name: str, value: Tensor) -> bool:
    """Whether weight decay applies: not to biases and norms, as in transformers' Trainer."""
    return value.dim() > 1 and "bias" not in name  # MPNet's table of biases by distance is a matrix
