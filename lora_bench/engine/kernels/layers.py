"""GPU kernels (Triton) for the operations of `ops`: each reads its inputs once and writes its outputs once.

Reductions and softmax are in float32 whatever the type of the tensors. Attention is for bfloat16 alone (`ops.takes`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lora_bench.engine.kernels.types import Norm, Normed, Windows

if TYPE_CHECKING:
    from lora_bench.engine.masks import Keep


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
def _weights(query, key, own, others, scale):
    """Softmax over the slots of the same segment, `[M, W]` in float32."""
    scores = tl.dot(query, tl.trans(key)) * scale
    scores = tl.where(own[:, None] == others[None, :], scores, float("-inf"))
    grown = tl.exp(scores - tl.max(scores, 1)[:, None])
    return grown / tl.sum(grown, 1)[:, None]


@triton.jit
def _attention(
    mixed, segments, keep, out, slots, heads, keep_window, scale, keep_scale,
    W: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    head, cell = tl.program_id(0), tl.program_id(2).to(tl.int64)
    window, block = tl.program_id(1) // (W // M), tl.program_id(1) % (W // M)
    size = heads * D
    slot, mine, column = tl.arange(0, W), block * M + tl.arange(0, M), tl.arange(0, D)
    first = cell * slots + window * W
    place = (first + slot)[:, None] * (3 * size) + head * D + column[None, :]
    query = tl.load(mixed + (first + mine)[:, None] * (3 * size) + head * D + column[None, :])
    key = tl.load(mixed + place + size)
    value = tl.load(mixed + place + 2 * size)
    own, others = tl.load(segments + window * W + mine), tl.load(segments + window * W + slot)
    weights = _weights(query, key, own, others, scale)
    if DROPS:
        kept = tl.load(keep + window * keep_window + head * W * W + mine[:, None] * W + slot[None, :])
        weights = tl.where(kept != 0, weights * keep_scale, 0.0)
    result = tl.dot(weights.to(value.dtype), value)
    tl.store(out + (first + mine)[:, None] * size + head * D + column[None, :], result.to(out.dtype.element_ty))


@triton.jit
def _attention_backward(
    gradient, mixed, segments, keep, out, slots, heads, keep_window, scale, keep_scale,
    W: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    head, window, cell = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    size = heads * D
    slot, column = tl.arange(0, W), tl.arange(0, D)
    first = cell * slots + window * W
    place = (first + slot)[:, None] * (3 * size) + head * D + column[None, :]
    key = tl.load(mixed + place + size)
    value = tl.load(mixed + place + 2 * size)
    others = tl.load(segments + window * W + slot)
    by_key = tl.zeros([W, D], tl.float32)
    by_value = tl.zeros([W, D], tl.float32)
    for start in tl.static_range(0, W, M):
        mine = start + tl.arange(0, M)
        here = (first + mine)[:, None] * (3 * size) + head * D + column[None, :]
        query = tl.load(mixed + here)
        above = tl.load(gradient + (first + mine)[:, None] * size + head * D + column[None, :])
        weights = _weights(query, key, tl.load(segments + window * W + mine), others, scale)
        by_weight = tl.dot(above, tl.trans(value))
        dropped = weights
        if DROPS:
            kept = tl.load(keep + window * keep_window + head * W * W + mine[:, None] * W + slot[None, :])
            dropped = tl.where(kept != 0, weights * keep_scale, 0.0)
            by_weight = tl.where(kept != 0, by_weight * keep_scale, 0.0)
        by_value += tl.dot(tl.trans(dropped.to(above.dtype)), above)
        by_score = weights * (by_weight - tl.sum(by_weight * weights, 1)[:, None]) * scale
        by_score = by_score.to(query.dtype)
        tl.store(out + here, tl.dot(by_score, key).to(out.dtype.element_ty))
        by_key += tl.dot(tl.trans(by_score), query)
    tl.store(out + place + size, by_key.to(out.dtype.element_ty))
    tl.store(out + place + 2 * size, by_value.to(out.dtype.element_ty))


def attention(mixed: Tensor, windows: Windows, keep: Keep | None) -> Tensor:
    """See `ops.attention`."""
    cells, slots, size = mixed.shape
    out = mixed.new_empty(cells, slots, size // 3)
    shared = _attending(mixed, windows, keep, 64)
    grid = windows.heads, slots // shared["M"], cells
    _attention[grid](
        mixed, windows.segments, _bytes(keep), out, slots, windows.heads, *_scaled(windows, keep), **shared
    )
    return out


def attention_backward(gradient: Tensor, mixed: Tensor, windows: Windows, keep: Keep | None) -> Tensor:
    """See `ops.attention_backward`."""
    out = torch.empty_like(mixed)
    cells, slots, _ = mixed.shape
    grid = windows.heads, slots // windows.width, cells
    shared = _attending(mixed, windows, keep, 128 if mixed.shape[-1] >= 192 * windows.heads else 64)
    _attention_backward[grid](
        gradient.contiguous(), mixed, windows.segments, _bytes(keep), out, slots, windows.heads,
        *_scaled(windows, keep), **shared,
    )  # fmt: skip
    return out


def _bytes(keep: Keep | None) -> Tensor | None:
    return None if keep is None else keep.mask.view(torch.uint8)


def _scaled(windows: Windows, keep: Keep | None) -> tuple[int, float, float]:
    return (0, windows.scale, 1.0) if keep is None else (keep.mask.stride(0), windows.scale, keep.scale)


def _attending(mixed: Tensor, windows: Windows, keep: Keep | None, block: int) -> dict[str, Any]:
    """How a kernel is compiled; blocks of `block` queries were the fastest on an H200."""
    block = min(windows.width, block)
    return {
        "W": windows.width, "M": block, "D": mixed.shape[-1] // (3 * windows.heads),
        "DROPS": keep is not None, "num_warps": 8 if block > 64 else 4,
    }  # fmt: skip


@triton.jit
def _gelu_backward(gradient, wide, out, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(wide + place, mask=inside, other=0.0).to(tl.float32)
    above = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    below = 0.5 * (1 + tl.math.erf(value * 0.7071067811865476))
    slope = below + value * tl.exp(-0.5 * value * value) * 0.3989422804014327
    tl.store(out + place, (value * below).to(out.dtype.element_ty), mask=inside)
    tl.store(gradient + place, (above * slope).to(gradient.dtype.element_ty), mask=inside)


def gelu_backward(gradient: Tensor, wide: Tensor) -> Tensor:
    """See `ops.gelu_backward`."""
    out, block = torch.empty_like(wide), 2048
    _gelu_backward[(triton.cdiv(wide.numel(), block),)](gradient, wide, out, wide.numel(), BLOCK=block, num_warps=8)
    return out
