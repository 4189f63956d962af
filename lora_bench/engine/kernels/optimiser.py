"""GPU kernels (Triton) for what trains: factors into the encoder's operands and back, and the optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from lora_bench.engine.block import Block, ByRow


@triton.jit
def _transfer(
    source, target, scale, side, slots, columns, count,
    s0, s1, s2, s3, s4, t0, t1, t2, t3, t4, SCALES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    cell, slot, place = tl.program_id(1) // (slots * side), tl.program_id(1) // side % slots, tl.program_id(1) % side
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    row, column = element // columns, element % columns
    cell, slot = cell.to(tl.int64), slot.to(tl.int64)
    value = tl.load(source + cell * s0 + slot * s1 + place * s2 + row * s3 + column * s4, mask=inside, other=0.0)
    value = value.to(tl.float32)
    if SCALES:
        value *= tl.load(scale + cell)
    there = target + cell * t0 + slot * t1 + place * t2 + row * t3 + column * t4
    tl.store(there, value.to(target.dtype.element_ty), mask=inside)


def transfer(source: Tensor, target: Tensor, scale: Tensor | None) -> None:
    """See `ops.transfer`."""
    cells, slots, side, rows, columns = source.shape
    block = min(1024, triton.next_power_of_2(rows * columns))
    grid = triton.cdiv(rows * columns, block), cells * slots * side
    _transfer[grid](
        source, target, scale, side, slots, columns, rows * columns, *source.stride(), *target.stride(),
        SCALES=scale is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip


@triton.jit
def _adamw(
    matrix, gradient, first, second, decays, multiples, rate, decay, clip, active, corrections,
    values, rest1, beta2, rest2, epsilon, DECAYS: tl.constexpr, MULTIPLES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    if tl.load(active + row) != 0:
        column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = column < values
        place = row.to(tl.int64) * values + column
        slope = tl.load(gradient + place, mask=inside, other=0.0) * tl.load(clip + row)
        mean = tl.load(first + place, mask=inside, other=0.0)
        mean += (slope - mean) * rest1
        square = tl.load(second + place, mask=inside, other=0.0) * beta2 + slope * slope * rest2
        tl.store(first + place, mean, mask=inside)
        tl.store(second + place, square, mask=inside)
        own, step = tl.load(matrix + place, mask=inside, other=0.0), tl.load(rate + row)
        if MULTIPLES:
            step = step * tl.load(multiples + column, mask=inside, other=0.0)
        shrink = tl.load(decay + row) * step
        if DECAYS:
            shrink *= tl.load(decays + column, mask=inside, other=0.0)
        root = tl.sqrt(square / tl.load(corrections + 1)) + epsilon
        own -= own * shrink + (step / tl.load(corrections)) * mean / root
        tl.store(matrix + place, own, mask=inside)


def adamw(
    own: Block, gradient: Tensor, moments: tuple[Tensor, Tensor],
    by_row: ByRow, corrections: Tensor, constants: tuple[float, float, float, float],
) -> None:  # fmt: skip
    """AdamW on a block's float32 `[rows, values]`, in place; a row that is not active keeps its values.

    `constants`: 1 - beta1, beta2, 1 - beta2, epsilon. They become float32, in which 1 - 0.999 would be 1e-5 off.
    """
    rows, values = own.matrix.shape
    block = 2048
    rate, decay, clip, active = by_row
    _adamw[(triton.cdiv(values, block), rows)](
        own.matrix, gradient.contiguous(), *moments, own.decays, own.lr_multipliers, rate, decay, clip,
        active.view(torch.uint8), corrections, values, *constants,
        DECAYS=own.decays is not None, MULTIPLES=own.lr_multipliers is not None, BLOCK=block, num_warps=8,
    )  # fmt: skip
