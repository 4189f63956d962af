"""The factors of many groups in one tensor: transposed, scaled, padded and cast in a single pass, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_bench.engine.kernels import ops


class Assemble(torch.autograd.Function):
    """Copies the groups' tensors `[cells, modules, p, q]` into one tensor of all cells, times each cell's scale.

    The encoder reads operands product by product, with all cells side by side; groups compute them cell by cell. One
    pass over memory does what would else take a transposition, a product, a concatenation, padding and a cast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        size: tuple[int, ...],
        order: tuple[int, ...],
        dtype: torch.dtype,
        offsets: list[int],
        scales: list[Tensor] | None,
        *parts: Tensor,
    ) -> Tensor:
        """Assemble the parts.

        Args:
            ctx: Autograd's context.
            size: The size of the result, five axes.
            order: For each axis of the result, which of `[cells, products, linears, p, q]` it is; products come before
                linears.
            dtype: The type of the result.
            offsets: The position of each part's first cell.
            scales: The scales of each part's cells, `[cells]`; None if all are 1.
            parts: `[cells, modules, p, q]` with modules = products · linears, and p and q at most those of the result.
        """
        cell_axis = order.index(0)
        # Zeros are the padding, and the values of cells that have no part. Without either nothing needs them.
        covered = sum(len(part) for part in parts) == size[cell_axis]
        covered = covered and all(part.shape[2:] == size[-2:] for part in parts)
        out = (torch.empty if covered else torch.zeros)(size, dtype=dtype, device=parts[0].device)
        ctx.order, ctx.offsets, ctx.shapes = order, offsets, [(part.shape, part.dtype) for part in parts]
        ctx.module_shape = size[0], size[1] if cell_axis == 2 else size[2]  # products, linears
        ctx.scales = scales or [None] * len(parts)
        for part, scale, target in zip(parts, ctx.scales, Assemble._regions(ctx, out), strict=True):
            ops.transfer(part.unflatten(1, ctx.module_shape), target, scale)
        return out

    @staticmethod
    def _regions(ctx: Any, assembled: Tensor) -> list[Tensor]:
        """The region of each part within the result, as views `[cells, products, linears, p, q]`."""
        by_cell = assembled.permute([ctx.order.index(axis) for axis in range(5)])
        return [
            by_cell[offset : offset + shape[0], :, :, : shape[2], : shape[3]]
            for offset, (shape, _) in zip(ctx.offsets, ctx.shapes, strict=True)
        ]

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        """The parts' gradients: their regions of the result's gradient, times each cell's scale."""
        grads: list[Tensor | None] = []
        regions = Assemble._regions(ctx, output_grads[0])
        needed = ctx.needs_input_grad[5:]  # after the five arguments that are not parts
        for region, scale, (shape, dtype), is_needed in zip(regions, ctx.scales, ctx.shapes, needed, strict=True):
            if is_needed:
                part_grad = torch.empty(shape, dtype=dtype, device=region.device)
                ops.transfer(region, part_grad.unflatten(1, ctx.module_shape), scale)
            grads.append(part_grad if is_needed else None)
        return None, None, None, None, None, *grads
