"""Many groups' factors in one tensor: transposed, scaled, padded to one rank and cast in a single pass, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_bench.engine.kernels import ops


class Assemble(torch.autograd.Function):
    """Groups' parts `[cells, modules, p, q]` into one tensor of all cells, each times its cell's scale."""

    @staticmethod
    def forward(
        ctx: Any, size: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype, firsts: list[int],
        scales: list[Tensor] | None, *parts: Tensor,
    ) -> Tensor:  # fmt: skip
        """`order` takes `[cells, slots, side, p, q]` to the axes of `size`; `firsts`: where each part's cells begin."""
        cells = order.index(0)
        whole = sum(len(part) for part in parts) == size[cells] and all(part.shape[2:] == size[-2:] for part in parts)
        out = (torch.empty if whole else torch.zeros)(size, dtype=dtype, device=parts[0].device)
        ctx.order, ctx.firsts, ctx.shapes = order, firsts, [(part.shape, part.dtype) for part in parts]
        ctx.side = size[0], size[1] if cells == 2 else size[2]
        ctx.scales = scales or [None] * len(parts)
        for part, scale, own in zip(parts, ctx.scales, Assemble.places(ctx, out), strict=True):
            ops.transfer(part.unflatten(1, ctx.side), own, scale)
        return out

    @staticmethod
    def places(ctx: Any, whole: Tensor) -> list[Tensor]:
        """Where each part lies in the whole, as `[cells, slots, side, p, q]`."""
        by_cell = whole.permute([ctx.order.index(axis) for axis in range(5)])
        return [
            by_cell[first : first + shape[0], :, :, : shape[2], : shape[3]]
            for first, (shape, _) in zip(ctx.firsts, ctx.shapes, strict=True)
        ]

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        """The parts' gradients, each times its cell's scale."""
        made: list[Tensor | None] = []
        places = Assemble.places(ctx, above[0])
        for own, scale, (shape, dtype), wanted in zip(
            places, ctx.scales, ctx.shapes, ctx.needs_input_grad[5:], strict=True
        ):
            if wanted:
                part = torch.empty(shape, dtype=dtype, device=own.device)
                ops.transfer(own, part.unflatten(1, ctx.side), scale)
            made.append(part if wanted else None)
        return None, None, None, None, None, *made
