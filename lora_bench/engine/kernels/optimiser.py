"""GPU kernels (Triton) for what trains: factors into the encoder's operands and back, and the optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from lora_bench.engine.block import Block, ByRow

TRANSFER_BLOCK = 1024  # elements a program copies at most (chosen)
ADAMW_BLOCK = 2048  # values of a row that a program updates (chosen)


# Grid: (blocks of a matrix, matrices). A program copies a block of one `[rows, columns]` matrix. The strides of the
# five dimensions are s0 to s4 in the source, t0 to t4 in the target.
@triton.jit
def _transfer(
    source, target, scale, linears, products, columns, count,
    s0, s1, s2, s3, s4, t0, t1, t2, t3, t4, SCALES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(1)
    cell, product, linear = matrix // (products * linears), matrix // linears % products, matrix % linears
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    row, column = element // columns, element % columns
    cell, product = cell.to(tl.int64), product.to(tl.int64)  # offsets of a large pack do not fit into 32 bits
    value = tl.load(source + cell * s0 + product * s1 + linear * s2 + row * s3 + column * s4, mask=inside, other=0.0)
    value = value.to(tl.float32)
    if SCALES:
        value *= tl.load(scale + cell)
    address = target + cell * t0 + product * t1 + linear * t2 + row * t3 + column * t4
    tl.store(address, value.to(target.dtype.element_ty), mask=inside)


def transfer(source: Tensor, target: Tensor, scale: Tensor | None) -> None:
    """See `ops.transfer`."""
    cells, products, linears, rows, columns = source.shape
    block_size = min(TRANSFER_BLOCK, triton.next_power_of_2(rows * columns))
    grid = triton.cdiv(rows * columns, block_size), cells * products * linears
    _transfer[grid](
        source, target, scale, linears, products, columns, rows * columns, *source.stride(), *target.stride(),
        SCALES=scale is not None, BLOCK=block_size, num_warps=4,
    )  # fmt: skip


# Grid: (blocks of a row, rows). Each value, its gradient and its two moments are read once and written once; all
# intermediate values are float32. The steps are those of `PackedAdamW._update`.
@triton.jit
def _adamw(
    matrix, gradient, first, second, decays, lr_multipliers, lr, decay, clip, active, corrections,
    values, one_minus_beta1, beta2, one_minus_beta2, epsilon,
    HAS_DECAYS: tl.constexpr, HAS_LR_MULTIPLIERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    if tl.load(active + row) != 0:
        column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = column < values
        offset = row.to(tl.int64) * values + column
        clipped = tl.load(gradient + offset, mask=inside, other=0.0) * tl.load(clip + row)
        mean = tl.load(first + offset, mask=inside, other=0.0)
        mean += (clipped - mean) * one_minus_beta1
        square = tl.load(second + offset, mask=inside, other=0.0) * beta2 + clipped * clipped * one_minus_beta2
        tl.store(first + offset, mean, mask=inside)
        tl.store(second + offset, square, mask=inside)
        weight, step = tl.load(matrix + offset, mask=inside, other=0.0), tl.load(lr + row)
        if HAS_LR_MULTIPLIERS:
            step = step * tl.load(lr_multipliers + column, mask=inside, other=0.0)
        shrink = tl.load(decay + row) * step
        if HAS_DECAYS:
            shrink *= tl.load(decays + column, mask=inside, other=0.0)
        root = tl.sqrt(square / tl.load(corrections + 1)) + epsilon
        weight -= weight * shrink + (step / tl.load(corrections)) * mean / root
        tl.store(matrix + offset, weight, mask=inside)


def adamw(
    block: Block, gradient: Tensor, moments: tuple[Tensor, Tensor],
    by_row: ByRow, corrections: Tensor, constants: tuple[float, float, float, float],
) -> None:  # fmt: skip
    """AdamW on a block's float32 matrix, in place; a row that is not active keeps its values.

    Args:
        block: What trains; its matrix is `[rows, values]`.
        gradient: The gradient of the matrix.
        moments: Adam's first and second moments, of the same shape; updated in place.
        by_row: The settings of this step.
        corrections: What the two moments are divided by at this step, `[2]`.
        constants: 1 - beta1, beta2, 1 - beta2 and epsilon. They become float32, in which 1 - 0.999 would be 1e-5 off.
    """
    rows, values = block.matrix.shape
    lr, decay, clip, active = by_row
    _adamw[(triton.cdiv(values, ADAMW_BLOCK), rows)](
        block.matrix, gradient.contiguous(), *moments, block.decays, block.lr_multipliers, lr, decay, clip,
        active.view(torch.uint8), corrections, values, *constants,
        HAS_DECAYS=block.decays is not None, HAS_LR_MULTIPLIERS=block.lr_multipliers is not None, BLOCK=ADAMW_BLOCK,
        num_warps=8,
    )  # fmt: skip
