"""Many groups' factors in one tensor: transposed, padded to one rank and cast in a single pass, and the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Assemble(torch.autograd.Function):
    """Groups' parts `[cells, modules, p, q]` into one tensor of all cells, transposed, padded with zeros, cast."""

    @staticmethod
    def forward(
        ctx: Any, size: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype, firsts: list[int],
        scales: list[Tensor] | None, *parts: Tensor,
    ) -> Tensor:  # fmt: skip
        cells = order.index(0)
        whole = sum(len(part) for part in parts) == size[cells] and all(part.shape[2:] == size[-2:] for part in parts)
        out = (torch.empty if whole else torch.zeros)(size, dtype=dtype, device=parts[0].device)
        ctx.order, ctx.firsts, ctx.shapes = order, firsts, [(part.shape, part.dtype) for part in parts]
        ctx.side = size[0], size[1] if cells == 2 else size[2]
        ctx.scales = [None] * len(parts) if scales is None else [scale.view(-1, 1, 1, 1, 1) for scale in scales]
        for part, scale, own in zip(parts, ctx.scales, Assemble.places(ctx, out), strict=True):
            values = part.unflatten(1, ctx.side).permute(order)
            if scale is None:
                own.copy_(values)
            else:
                torch.mul(values, scale.permute(order), out=own)
        return out

    @staticmethod
    def places(ctx: Any, whole: Tensor) -> list[Tensor]:
        """Where each part lies in the whole."""
        cells = ctx.order.index(0)
        found = []
        for first, (shape, _) in zip(ctx.firsts, ctx.shapes, strict=True):
            own = whole.narrow(cells, first, shape[0])
            found.append(own[..., : shape[2], : shape[3]])
        return found

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        back = [ctx.order.index(axis) for axis in range(5)]
        made: list[Tensor | None] = []
        places = Assemble.places(ctx, above[0])
        for own, scale, (shape, dtype), wanted in zip(
            places, ctx.scales, ctx.shapes, ctx.needs_input_grad[5:], strict=True
        ):
            values = own.permute(back)
            values = values.to(dtype) if scale is None else values * scale
            made.append(values.reshape(shape) if wanted else None)
        return None, None, None, None, None, *made
