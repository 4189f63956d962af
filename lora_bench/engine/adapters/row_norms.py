"""The norms of the rows of `W + s B A`, without forming it, for methods that train them as a factor of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_bench.engine.encoder.product import Operands


class RowNorms:
    """The frozen weights of a family, `[modules, out, in]`, and what their adapted rows' norms need of them."""

    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self.weight = torch.stack([linear.weight.detach().to(dtype) for linear in linears])
        self.squares = self.weight.square().sum(-1)  # ‖W‖² of each row
        biases = [
            linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
            for linear in linears
        ]
        self.bias = torch.stack(biases).to(dtype)[..., None]

    @torch.no_grad()
    def norms(self, update: Operands, scales: Tensor) -> Tensor:
        """The norm of each row of `W + s B A`, `[cells, modules, out, 1]`; a constant in the backward pass.

        For the row w of W and b of B, ‖w + s b A‖² = ‖w‖² + 2 s (w Aᵀ) · b + s² (b A Aᵀ) · b. Nothing as large as W is
        computed per cell.

        Args:
            update: A `[cells, modules, R, in]` and B `[cells, modules, out, R]` without the scale.
            scales: s of each cell, `[cells]`.
        """
        a, b = update.A, update.B
        cells, _, rank, _ = a.shape
        # W Aᵀ for all cells in one product, [modules, out, cells · R], so that W is read once.
        weight_a = self.weight @ a.permute(1, 3, 0, 2).flatten(2)
        weight_a = weight_a.unflatten(-1, (cells, rank)).permute(2, 0, 1, 3)
        s = scales.view(-1, 1, 1)
        squares = self.squares + 2 * s * (weight_a * b).sum(-1) + s**2 * ((b @ (a @ a.mT)) * b).sum(-1)
        # Rounding can make a square that should be 0 negative: the smallest normal number keeps its root finite.
        norms: Tensor = squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()[..., None]
        return norms

    def gain_and_shift(self, trained: Tensor, update: Operands, scales: Tensor) -> tuple[Tensor, Tensor]:
        """The gain (less 1) and the shift that give the rows their trained norms `[cells, modules, out, 1]`.

        The gain multiplies the bias as well; the shift takes that back.
        """
        gain = trained / self.norms(update, scales) - 1
        return gain, -gain * self.bias
