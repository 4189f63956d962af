"""The lengths of the rows of `W + s B A`, without forming it, for methods that keep them as a factor of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_bench.engine.encoder.product import Operands


class Lengths:
    """The frozen weights of a family in exact type: `[modules, out, in]`."""

    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self.weight = torch.stack([linear.weight.detach().to(dtype) for linear in linears])
        self.squares = self.weight.square().sum(-1)
        biases = [linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
                  for linear in linears]  # fmt: skip
        self.bias = torch.stack(biases).to(dtype)[..., None]

    @torch.no_grad()
    def of(self, update: Operands, scale: Tensor) -> Tensor:
        """`[cells, modules, out, 1]`: √(‖W‖² + 2 s (W Aᵀ ⊙ B) + s² (B (A Aᵀ)) ⊙ B), a constant in the backward pass."""
        a, b = update.A, update.B
        cells, _, rank, _ = a.shape
        across = self.weight @ a.permute(1, 3, 0, 2).flatten(2)  # [modules, out, cells · rank]: W is read once
        across = across.unflatten(-1, (cells, rank)).permute(2, 0, 1, 3)
        s = scale.view(-1, 1, 1)
        squares = self.squares + 2 * s * (across * b).sum(-1) + s**2 * ((b @ (a @ a.mT)) * b).sum(-1)
        lengths: Tensor = squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()[..., None]
        return lengths

    def gain(self, wanted: Tensor, update: Operands, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Gain less one and shift that give the rows the `wanted` lengths `[cells, modules, out, 1]`, not the bias."""
        gain = wanted / self.of(update, scale) - 1
        return gain, -gain * self.bias
