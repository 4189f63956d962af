"""GPU kernels (Triton) for the operations of `ops`: each reads its inputs once and writes its outputs once.

Reductions and softmax are in float32 whatever the type of the tensors. Matrix products of float32 are IEEE, not TF32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from lora_bench.engine.masks import Keep
    from lora_bench.engine.ops import Norm, Normed, Windows
    from lora_bench.engine.optimiser import ByRow


@triton.jit
def _add_norm(
    hidden, residual, keep, weight, bias, summed, out, mean, rstd,
    slots, residual_cell, width, keep_window, size, scale, epsilon,
    DROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cell, slot = row // slots, row % slots
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    value = tl.load(hidden + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    if DROPS:
        place = (slot // width) * keep_window + (slot % width) * size
        kept = tl.load(keep + place + columns, mask=inside, other=0)
        value = tl.where(kept != 0, value * scale, 0.0)
    value += tl.load(residual + cell * residual_cell + slot * size + columns, mask=inside, other=0.0).to(tl.float32)
    rounded = value.to(summed.dtype.element_ty)
    tl.store(summed + row * size + columns, rounded, mask=inside)
    value = rounded.to(tl.float32)
    center = tl.sum(value, 0) / size
    apart = tl.where(inside, value - center, 0.0)
    inverse = tl.rsqrt(tl.sum(apart * apart, 0) / size + epsilon)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    normed = apart * inverse * gain + shift
    tl.store(out + row * size + columns, normed.to(out.dtype.element_ty), mask=inside)
    tl.store(mean + row, center)
    tl.store(rstd + row, inverse)


@triton.jit
def _add_norm_backward(
    gradient, summed, mean, rstd, keep, weight, whole, dropped,
    slots, width, keep_window, size, scale,
    DROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    above = tl.load(gradient + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(summed + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.load(rstd + row)
    normed = tl.where(inside, (value - tl.load(mean + row)) * inverse, 0.0)
    scaled = above * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    along = tl.sum(scaled * normed, 0) / size
    result = (scaled - tl.sum(scaled, 0) / size - normed * along) * inverse
    tl.store(whole + row * size + columns, result.to(whole.dtype.element_ty), mask=inside)
    if DROPS:
        slot = row % slots
        place = (slot // width) * keep_window + (slot % width) * size
        kept = tl.load(keep + place + columns, mask=inside, other=0)
        result = tl.where(kept != 0, result * scale, 0.0)
        tl.store(dropped + row * size + columns, result.to(dropped.dtype.element_ty), mask=inside)


def add_norm(hidden: Tensor, residual: Tensor, keep: Keep | None, norm: Norm) -> tuple[Tensor, Normed]:
    """See `ops.add_norm`."""
    from lora_bench.engine.ops import Normed

    cells, slots, size = hidden.shape
    out = torch.empty_like(hidden)
    mean = hidden.new_empty((cells, slots, 1), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    mask, width, window, scale = _masked(keep)
    _add_norm[(cells * slots,)](
        hidden, residual, mask, norm.weight, norm.bias, hidden, out, mean, rstd,
        slots, residual.stride(0), width, window, size, scale, norm.epsilon,
        DROPS=keep is not None, **_row(size),
    )  # fmt: skip
    return out, Normed(hidden, mean, rstd)


def add_norm_backward(gradient: Tensor, saved: Normed, keep: Keep | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """See `ops.add_norm_backward`."""
    cells, slots, size = gradient.shape
    gradient = gradient.contiguous()
    whole = torch.empty_like(gradient)
    dropped = whole if keep is None else torch.empty_like(gradient)
    mask, width, window, scale = _masked(keep)
    _add_norm_backward[(cells * slots,)](
        gradient, *saved, mask, norm.weight, whole, dropped, slots, width, window, size, scale,
        DROPS=keep is not None, **_row(size),
    )  # fmt: skip
    return whole, dropped


def _masked(keep: Keep | None) -> tuple[Tensor | None, int, int, float]:
    """The mask as bytes `[n, W, d]` with its width, the distance of its windows, and the scale."""
    if keep is None:
        return None, 1, 0, 1.0
    return keep.mask.view(torch.uint8), keep.mask.shape[1], keep.mask.stride(0), keep.scale


def _row(size: int) -> dict[str, Any]:
    block = triton.next_power_of_2(size)
    return {"BLOCK": block, "num_warps": 8 if block > 2048 else 4 if block > 512 else 2}


@triton.jit
def _weights(query, key, segments, window, scale, W: tl.constexpr, EXACT: tl.constexpr):
    """Softmax over the slots of the same segment, `[W, W]` in float32."""
    slot = tl.arange(0, W)
    own = tl.load(segments + window * W + slot)
    scores = tl.dot(query, tl.trans(key), input_precision=EXACT) * scale
    scores = tl.where(own[:, None] == own[None, :], scores, float("-inf"))
    grown = tl.exp(scores - tl.max(scores, 1)[:, None])
    return grown / tl.sum(grown, 1)[:, None]


@triton.jit
def _attention(
    mixed, segments, keep, out, slots, heads, keep_window, scale, keep_scale,
    W: tl.constexpr, D: tl.constexpr, DROPS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    head, window, cell = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    size = heads * D
    slot, column = tl.arange(0, W), tl.arange(0, D)
    row = cell * slots + window * W + slot
    place = row[:, None] * (3 * size) + head * D + column[None, :]
    query = tl.load(mixed + place)
    key = tl.load(mixed + place + size)
    value = tl.load(mixed + place + 2 * size)
    weights = _weights(query, key, segments, window, scale, W, EXACT)
    if DROPS:
        kept = tl.load(keep + window * keep_window + head * W * W + slot[:, None] * W + slot[None, :])
        weights = tl.where(kept != 0, weights * keep_scale, 0.0)
    result = tl.dot(weights.to(value.dtype), value, input_precision=EXACT)
    tl.store(out + row[:, None] * size + head * D + column[None, :], result.to(out.dtype.element_ty))


@triton.jit
def _attention_backward(
    gradient, mixed, segments, keep, out, slots, heads, keep_window, scale, keep_scale,
    W: tl.constexpr, D: tl.constexpr, DROPS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    head, window, cell = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    size = heads * D
    slot, column = tl.arange(0, W), tl.arange(0, D)
    row = cell * slots + window * W + slot
    place = row[:, None] * (3 * size) + head * D + column[None, :]
    query = tl.load(mixed + place)
    key = tl.load(mixed + place + size)
    value = tl.load(mixed + place + 2 * size)
    above = tl.load(gradient + row[:, None] * size + head * D + column[None, :])
    weights = _weights(query, key, segments, window, scale, W, EXACT)
    by_weight = tl.dot(above, tl.trans(value), input_precision=EXACT)
    dropped = weights
    if DROPS:
        kept = tl.load(keep + window * keep_window + head * W * W + slot[:, None] * W + slot[None, :])
        dropped = tl.where(kept != 0, weights * keep_scale, 0.0)
        by_weight = tl.where(kept != 0, by_weight * keep_scale, 0.0)
    by_value = tl.dot(tl.trans(dropped.to(above.dtype)), above, input_precision=EXACT)
    tl.store(out + place + 2 * size, by_value.to(out.dtype.element_ty))
    by_score = weights * (by_weight - tl.sum(by_weight * weights, 1)[:, None]) * scale
    by_score = by_score.to(query.dtype)
    tl.store(out + place, tl.dot(by_score, key, input_precision=EXACT).to(out.dtype.element_ty))
    by_key = tl.dot(tl.trans(by_score), query, input_precision=EXACT)
    tl.store(out + place + size, by_key.to(out.dtype.element_ty))


def attention(mixed: Tensor, windows: Windows, keep: Keep | None) -> Tensor:
    """See `ops.attention`."""
    cells, slots, size = mixed.shape
    out = mixed.new_empty(cells, slots, size // 3)
    grid, shared = _attending(mixed, windows, keep)
    mask, scale = _bytes(keep), 1.0 if keep is None else keep.scale
    window = 0 if keep is None else keep.mask.stride(0)
    _attention[grid](
        mixed, windows.segments, mask, out, slots, windows.heads, window, windows.scale, scale, **shared
    )  # fmt: skip
    return out


def attention_backward(gradient: Tensor, mixed: Tensor, windows: Windows, keep: Keep | None) -> Tensor:
    """See `ops.attention_backward`."""
    out = torch.empty_like(mixed)
    grid, shared = _attending(mixed, windows, keep)
    mask, scale = _bytes(keep), 1.0 if keep is None else keep.scale
    window = 0 if keep is None else keep.mask.stride(0)
    _attention_backward[grid](
        gradient.contiguous(), mixed, windows.segments, mask, out, mixed.shape[1], windows.heads, window,
        windows.scale, scale, **shared,
    )  # fmt: skip
    return out


def _bytes(keep: Keep | None) -> Tensor | None:
    return None if keep is None else keep.mask.view(torch.uint8)


def _attending(mixed: Tensor, windows: Windows, keep: Keep | None) -> tuple[tuple[int, int, int], dict[str, Any]]:
    cells, slots, size = mixed.shape
    grid = (windows.heads, slots // windows.width, cells)
    exact = "ieee" if mixed.dtype == torch.float32 else "tf32"
    warps = 8 if windows.width > 64 else 4
    head = size // (3 * windows.heads)
    return grid, {
        "W": windows.width, "D": head, "DROPS": keep is not None, "EXACT": exact, "num_warps": warps,
    }  # fmt: skip


@triton.jit
def _adamw(
    matrix, gradient, first, second, decays, rate, decay, clip, alive, corrections,
    values, beta1, beta2, epsilon, DECAYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    if tl.load(alive + row) != 0:
        column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = column < values
        place = row.to(tl.int64) * values + column
        slope = tl.load(gradient + place, mask=inside, other=0.0) * tl.load(clip + row)
        mean = tl.load(first + place, mask=inside, other=0.0)
        mean += (slope - mean) * (1 - beta1)
        square = tl.load(second + place, mask=inside, other=0.0) * beta2 + slope * slope * (1 - beta2)
        tl.store(first + place, mean, mask=inside)
        tl.store(second + place, square, mask=inside)
        own, step = tl.load(matrix + place, mask=inside, other=0.0), tl.load(rate + row)
        shrink = tl.load(decay + row) * step
        if DECAYS:
            shrink *= tl.load(decays + column, mask=inside, other=0.0)
        root = tl.sqrt(square / tl.load(corrections + 1)) + epsilon
        own -= own * shrink + (step / tl.load(corrections)) * mean / root
        tl.store(matrix + place, own, mask=inside)


def adamw(
    matrix: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], decays: Tensor | None,
    by_row: ByRow, corrections: Tensor, constants: tuple[float, float, float],
) -> None:  # fmt: skip
    """AdamW on float32 `[rows, values]`, in place; a row that is not alive keeps its values."""
    rows, values = matrix.shape
    block = 2048
    rate, decay, clip, alive = by_row
    _adamw[(triton.cdiv(values, block), rows)](
        matrix, gradient.contiguous(), *moments, decays, rate, decay, clip, alive.view(torch.uint8), corrections,
        values, *constants, DECAYS=decays is not None, BLOCK=block, num_warps=8,
    )  # fmt: skip
