"""GPU kernels (Triton) for the operations of `ops`: each reads its inputs once and writes its outputs once.

Reductions and softmax are computed in float32 whatever the type of the tensors. The attention kernels are for bfloat16
alone (`ops.attention_kernel_supports`). Offsets are 64-bit where they involve the cell: a pack's tensors can hold more
than 2³¹ values.

Memory layout: tensors of all cells are contiguous `[cells, slots, features]`, slot s of the batch being slot s mod W of
window s // W. Dropout masks are bytes without a cell dimension, `[windows, W, size]` or `[windows, heads, W, W]`; a
window's values are contiguous, but windows lie `mask_stride` bytes apart, since the masks of all sites share a buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lora_bench.engine.kernels.types import AttentionLayout, Norm, NormSaved

if TYPE_CHECKING:
    from lora_bench.engine.masks import DropoutMask


# One program per row (cell, slot): the row's features fit into one block, so the mean and the variance are sums within
# a program. `summed` may be `hidden` itself: the row is read before it is written.
@triton.jit
def _add_norm(
    hidden, residual, dropout_mask, weight, bias, summed, out, mean, rstd,
    slots, residual_stride, width, mask_stride, size, scale, epsilon,
    HAS_DROPOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cell, slot = row // slots, row % slots
    columns = tl.arange(0, BLOCK)
    valid = columns < size
    value = tl.load(hidden + row * size + columns, mask=valid, other=0.0).to(tl.float32)
    if HAS_DROPOUT:
        offset = (slot // width) * mask_stride + (slot % width) * size
        kept = tl.load(dropout_mask + offset + columns, mask=valid, other=0)
        value = tl.where(kept != 0, value * scale, 0.0)
    # residual_stride is 0 in the first layer, whose embeddings are the same for all cells and lie in memory once.
    value += tl.load(residual + cell * residual_stride + slot * size + columns, mask=valid, other=0.0).to(tl.float32)
    # The sum is rounded to the stored type first, so that backward sees exactly what was normalised here.
    rounded = value.to(summed.dtype.element_ty)
    tl.store(summed + row * size + columns, rounded, mask=valid)
    value = rounded.to(tl.float32)
    row_mean = tl.sum(value, 0) / size
    centered = tl.where(valid, value - row_mean, 0.0)
    row_rstd = tl.rsqrt(tl.sum(centered * centered, 0) / size + epsilon)
    gain = tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=valid, other=0.0).to(tl.float32)
    normed = centered * row_rstd * gain + shift
    tl.store(out + row * size + columns, normed.to(out.dtype.element_ty), mask=valid)
    tl.store(mean + row, row_mean)
    tl.store(rstd + row, row_rstd)


# One program per row. With x̂ = (x - mean) · rstd and g = dy ⊙ weight the gradient of the norm's input is
#     dx = rstd · (g - mean(g) - x̂ · mean(g ⊙ x̂)),
# which is the residual's gradient; the hidden states' is dx through the dropout mask.
@triton.jit
def _add_norm_backward(
    grad, summed, mean, rstd, dropout_mask, weight, residual_grad, hidden_grad,
    slots, width, mask_stride, size, scale,
    HAS_DROPOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    valid = columns < size
    out_grad = tl.load(grad + row * size + columns, mask=valid, other=0.0).to(tl.float32)
    value = tl.load(summed + row * size + columns, mask=valid, other=0.0).to(tl.float32)
    row_rstd = tl.load(rstd + row)
    normed = tl.where(valid, (value - tl.load(mean + row)) * row_rstd, 0.0)
    normed_grad = out_grad * tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)
    projection = tl.sum(normed_grad * normed, 0) / size
    result = (normed_grad - tl.sum(normed_grad, 0) / size - normed * projection) * row_rstd
    tl.store(residual_grad + row * size + columns, result.to(residual_grad.dtype.element_ty), mask=valid)
    if HAS_DROPOUT:
        slot = row % slots
        offset = (slot // width) * mask_stride + (slot % width) * size
        kept = tl.load(dropout_mask + offset + columns, mask=valid, other=0)
        result = tl.where(kept != 0, result * scale, 0.0)
        tl.store(hidden_grad + row * size + columns, result.to(hidden_grad.dtype.element_ty), mask=valid)


def add_norm(
    hidden: Tensor, residual: Tensor, dropout_mask: DropoutMask | None, norm: Norm
) -> tuple[Tensor, NormSaved]:
    """See `ops.add_norm`; `hidden` is overwritten with the norm's input."""
    cells, slots, size = hidden.shape
    out = torch.empty_like(hidden)
    mean = hidden.new_empty((cells, slots, 1), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    mask, width, mask_stride, scale = _hidden_mask(dropout_mask)
    _add_norm[(cells * slots,)](
        hidden, residual, mask, norm.weight, norm.bias, hidden, out, mean, rstd,
        slots, residual.stride(0), width, mask_stride, size, scale, norm.epsilon,
        HAS_DROPOUT=dropout_mask is not None, **_row_launch(size),
    )  # fmt: skip
    return out, NormSaved(hidden, mean, rstd)


def add_norm_backward(
    grad: Tensor, saved: NormSaved, dropout_mask: DropoutMask | None, norm: Norm
) -> tuple[Tensor, Tensor]:
    """See `ops.add_norm_backward`."""
    cells, slots, size = grad.shape
    grad = grad.contiguous()
    residual_grad = torch.empty_like(grad)
    hidden_grad = residual_grad if dropout_mask is None else torch.empty_like(grad)
    mask, width, mask_stride, scale = _hidden_mask(dropout_mask)
    _add_norm_backward[(cells * slots,)](
        grad, *saved, mask, norm.weight, residual_grad, hidden_grad, slots, width, mask_stride, size, scale,
        HAS_DROPOUT=dropout_mask is not None, **_row_launch(size),
    )  # fmt: skip
    return residual_grad, hidden_grad


def _hidden_mask(dropout_mask: DropoutMask | None) -> tuple[Tensor | None, int, int, float]:
    """A mask on hidden states for a kernel: its bytes `[n, W, d]`, W, the stride of windows, and the scale."""
    if dropout_mask is None:
        return None, 1, 0, 1.0
    kept = dropout_mask.kept
    return kept.view(torch.uint8), kept.shape[1], kept.stride(0), dropout_mask.scale


def _row_launch(size: int) -> dict[str, Any]:
    """The block that holds a row of `size` values, and the warps that share it (chosen by its length)."""
    block = triton.next_power_of_2(size)
    return {"BLOCK": block, "num_warps": 8 if block > 2048 else 4 if block > 512 else 2}


@triton.jit
def _softmax_weights(
    query, key, query_segments, key_segments, query_slots, key_slots, scale, distance_zero, HAS_BIASES: tl.constexpr
):
    """`softmax(scale · Q Kᵀ + T)` over the slots of the query's segment, `[M, W]` in float32.

    T is the bias by distance: `distance_zero` points to that of distance 0, with those of -1 before and 1 after it. A
    row of 2 L - 1 floats serves all programs of a head, so reading it by distance costs little; `[W, W]` biases would
    be as large as the keys and values.

    Every query shares its segment with itself, so no row is empty. The row's largest score is subtracted before the
    exponential, so that it cannot overflow.
    """
    scores = tl.dot(query, tl.trans(key)) * scale
    if HAS_BIASES:
        scores += tl.load(distance_zero + (key_slots[None, :] - query_slots[:, None]))
    scores = tl.where(query_segments[:, None] == key_segments[None, :], scores, float("-inf"))
    exponentials = tl.exp(scores - tl.max(scores, 1)[:, None])
    return exponentials / tl.sum(exponentials, 1)[:, None]


# One program per (head, block of M queries, cell). A window's W keys and values fit on chip, so that the softmax is
# complete in one pass, without the running maximum of flash attention. A slot's row of `qkv` is
# [queries of all heads | keys of all heads | values of all heads], each `size` long; a head's part is D contiguous.
@triton.jit
def _attention(
    qkv, segments, dropout_mask, biases, out, slots, heads, mask_stride, scale, dropout_scale, longest,
    W: tl.constexpr, M: tl.constexpr, D: tl.constexpr, HAS_DROPOUT: tl.constexpr, HAS_BIASES: tl.constexpr,
):  # fmt: skip
    head, cell = tl.program_id(0), tl.program_id(2).to(tl.int64)
    window, block = tl.program_id(1) // (W // M), tl.program_id(1) % (W // M)
    size = heads * D
    key_slots, query_slots, column = tl.arange(0, W), block * M + tl.arange(0, M), tl.arange(0, D)
    first = cell * slots + window * W
    key_offsets = (first + key_slots)[:, None] * (3 * size) + head * D + column[None, :]
    query = tl.load(qkv + (first + query_slots)[:, None] * (3 * size) + head * D + column[None, :])
    key = tl.load(qkv + key_offsets + size)
    value = tl.load(qkv + key_offsets + 2 * size)
    query_segments = tl.load(segments + window * W + query_slots)
    key_segments = tl.load(segments + window * W + key_slots)
    distance_zero = biases
    if HAS_BIASES:
        distance_zero = biases + head * (2 * longest - 1) + longest - 1
    weights = _softmax_weights(
        query, key, query_segments, key_segments, query_slots, key_slots, scale, distance_zero, HAS_BIASES
    )
    if HAS_DROPOUT:
        kept = tl.load(
            dropout_mask
            + window.to(tl.int64) * mask_stride
            + head * W * W
            + query_slots[:, None] * W
            + key_slots[None, :]
        )
        weights = tl.where(kept != 0, weights * dropout_scale, 0.0)
    result = tl.dot(weights.to(value.dtype), value)
    tl.store(out + (first + query_slots)[:, None] * size + head * D + column[None, :], result.to(out.dtype.element_ty))


# One program per (head, window, cell); `ops.attention_backward` has the formulas. It walks over the window's queries in
# blocks of M and computes their softmax weights P again instead of reading saved ones. The gradients of keys and values
# are sums over all queries of the window: they are accumulated in float32 on chip and stored once, so that no two
# programs add to the same value and the result does not depend on the order in which they run.
@triton.jit
def _attention_backward(
    grad, qkv, segments, dropout_mask, biases, out, slots, heads, mask_stride, scale, dropout_scale, longest,
    W: tl.constexpr, M: tl.constexpr, D: tl.constexpr, HAS_DROPOUT: tl.constexpr, HAS_BIASES: tl.constexpr,
):  # fmt: skip
    head, window, cell = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    size = heads * D
    key_slots, column = tl.arange(0, W), tl.arange(0, D)
    first = cell * slots + window * W
    key_offsets = (first + key_slots)[:, None] * (3 * size) + head * D + column[None, :]
    key = tl.load(qkv + key_offsets + size)
    value = tl.load(qkv + key_offsets + 2 * size)
    key_segments = tl.load(segments + window * W + key_slots)
    key_grad = tl.zeros([W, D], tl.float32)
    value_grad = tl.zeros([W, D], tl.float32)
    distance_zero = biases
    if HAS_BIASES:
        distance_zero = biases + head * (2 * longest - 1) + longest - 1
    for start in tl.static_range(0, W, M):
        query_slots = start + tl.arange(0, M)
        query_offsets = (first + query_slots)[:, None] * (3 * size) + head * D + column[None, :]
        query = tl.load(qkv + query_offsets)
        out_grad = tl.load(grad + (first + query_slots)[:, None] * size + head * D + column[None, :])
        query_segments = tl.load(segments + window * W + query_slots)
        weights = _softmax_weights(
            query, key, query_segments, key_segments, query_slots, key_slots, scale, distance_zero, HAS_BIASES
        )
        weights_grad = tl.dot(out_grad, tl.trans(value))
        dropped = weights
        if HAS_DROPOUT:
            kept = tl.load(
                dropout_mask
                + window.to(tl.int64) * mask_stride
                + head * W * W
                + query_slots[:, None] * W
                + key_slots[None, :]
            )
            dropped = tl.where(kept != 0, weights * dropout_scale, 0.0)
            weights_grad = tl.where(kept != 0, weights_grad * dropout_scale, 0.0)
        value_grad += tl.dot(tl.trans(dropped.to(out_grad.dtype)), out_grad)
        scores_grad = weights * (weights_grad - tl.sum(weights_grad * weights, 1)[:, None]) * scale
        scores_grad = scores_grad.to(query.dtype)
        tl.store(out + query_offsets, tl.dot(scores_grad, key).to(out.dtype.element_ty))
        key_grad += tl.dot(tl.trans(scores_grad), query)
    tl.store(out + key_offsets + size, key_grad.to(out.dtype.element_ty))
    tl.store(out + key_offsets + 2 * size, value_grad.to(out.dtype.element_ty))


def attention(qkv: Tensor, layout: AttentionLayout, dropout_mask: DropoutMask | None) -> Tensor:
    """See `ops.attention`."""
    cells, slots, size = qkv.shape
    out = qkv.new_empty(cells, slots, size // 3)
    launch = _attention_launch(qkv, layout, dropout_mask, 64)
    grid = layout.heads, slots // launch["M"], cells
    _attention[grid](
        qkv, layout.segments, _mask_bytes(dropout_mask), layout.distance_biases, out, slots, layout.heads,
        *_attention_scales(layout, dropout_mask), _longest(layout), **launch,
    )  # fmt: skip
    return out


def attention_backward(grad: Tensor, qkv: Tensor, layout: AttentionLayout, dropout_mask: DropoutMask | None) -> Tensor:
    """See `ops.attention_backward`."""
    out = torch.empty_like(qkv)
    cells, slots, _ = qkv.shape
    grid = layout.heads, slots // layout.width, cells
    # 128 queries at a time for heads of 64 features or more (3 · 64 = 192 in `qkv`), 64 for smaller ones.
    launch = _attention_launch(qkv, layout, dropout_mask, 128 if qkv.shape[-1] >= 192 * layout.heads else 64)
    _attention_backward[grid](
        grad.contiguous(), qkv, layout.segments, _mask_bytes(dropout_mask), layout.distance_biases, out, slots,
        layout.heads, *_attention_scales(layout, dropout_mask), _longest(layout), **launch,
    )  # fmt: skip
    return out


def _mask_bytes(dropout_mask: DropoutMask | None) -> Tensor | None:
    return None if dropout_mask is None else dropout_mask.kept.view(torch.uint8)


def _longest(layout: AttentionLayout) -> int:
    """L of `AttentionLayout.distance_biases`."""
    return 0 if layout.distance_biases is None else (layout.distance_biases.shape[1] + 1) // 2


def _attention_scales(layout: AttentionLayout, dropout_mask: DropoutMask | None) -> tuple[int, float, float]:
    """The kernels' `mask_stride`, `scale` and `dropout_scale`."""
    if dropout_mask is None:
        return 0, layout.scale, 1.0
    return dropout_mask.kept.stride(0), layout.scale, dropout_mask.scale


def _attention_launch(
    qkv: Tensor, layout: AttentionLayout, dropout_mask: DropoutMask | None, block: int
) -> dict[str, Any]:
    """The constants that a kernel is compiled for. The callers' sizes of `block` were the fastest on an H200."""
    block = min(layout.width, block)
    return {
        "W": layout.width,
        "M": block,
        "D": qkv.shape[-1] // (3 * layout.heads),
        "HAS_DROPOUT": dropout_mask is not None,
        "HAS_BIASES": layout.distance_biases is not None,
        "num_warps": 8 if block > 64 else 4,
    }


# Elementwise, one program per BLOCK values. gelu(x) = x Φ(x) with the normal distribution function
# Φ(x) = ½ (1 + erf(x / √2)); its derivative is Φ(x) + x φ(x) with the density φ(x) = exp(-x² / 2) / √(2π).
# 0.7071… is 1 / √2, 0.3989… is 1 / √(2π). `grad` is overwritten.
@triton.jit
def _gelu_backward(grad, pre_activation, out, count, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = offsets < count
    value = tl.load(pre_activation + offsets, mask=valid, other=0.0).to(tl.float32)
    out_grad = tl.load(grad + offsets, mask=valid, other=0.0).to(tl.float32)
    probability = 0.5 * (1 + tl.math.erf(value * 0.7071067811865476))
    derivative = probability + value * tl.exp(-0.5 * value * value) * 0.3989422804014327
    tl.store(out + offsets, (value * probability).to(out.dtype.element_ty), mask=valid)
    tl.store(grad + offsets, (out_grad * derivative).to(grad.dtype.element_ty), mask=valid)


def gelu_backward(grad: Tensor, pre_activation: Tensor) -> Tensor:
    """See `ops.gelu_backward`: `grad` is overwritten, the activation is returned."""
    out, count = torch.empty_like(pre_activation), pre_activation.numel()
    block = 2048  # chosen: eight values per thread of eight warps
    _gelu_backward[(triton.cdiv(count, block),)](grad, pre_activation, out, count, BLOCK=block, num_warps=8)
    return out
