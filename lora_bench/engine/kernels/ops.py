"""The few operations of an encoder layer that are more than a matrix product, forward and backward.

Each has a plain implementation in torch, which runs everywhere and in every type, and, for float32 and bfloat16 on a
GPU, a kernel that touches memory once (`kernels`). Norms are frozen: no gradient of their weights is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_bench.engine.kernels.types import Norm, Normed, Windows
from lora_bench.engine.masks import Keep

aten = torch.ops.aten


def fused(tensor: Tensor) -> bool:
    """Whether the GPU kernels take this tensor."""
    return tensor.is_cuda and tensor.dtype in (torch.float32, torch.bfloat16)


def add_norm(hidden: Tensor, residual: Tensor, keep: Keep | None, norm: Norm) -> tuple[Tensor, Normed]:
    """`LayerNorm(residual + dropout(hidden))`, `[K, S, d]`; `hidden` may be overwritten."""
    if fused(hidden):
        from lora_bench.engine.kernels import layers

        return layers.add_norm(hidden, residual, keep, norm)
    if keep is not None:
        hidden.mul_(keep.factor(hidden.dtype).view(hidden.shape[1:]))
    summed = hidden.add_(residual)
    out, mean, rstd = torch.native_layer_norm(summed, summed.shape[-1:], norm.weight, norm.bias, norm.epsilon)
    return out, Normed(summed, mean, rstd)


def add_norm_backward(gradient: Tensor, saved: Normed, keep: Keep | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """Gradients of `residual` and `hidden`; without dropout they are one tensor."""
    if fused(gradient):
        from lora_bench.engine.kernels import layers

        return layers.add_norm_backward(gradient, saved, keep, norm)
    summed, mean, rstd = saved
    wanted = [True, False, False]
    size = list(summed.shape[-1:])
    both, _, _ = aten.native_layer_norm_backward(gradient, summed, size, mean, rstd, norm.weight, norm.bias, wanted)
    return both, both if keep is None else both * keep.factor(both.dtype).view(both.shape[1:])


def gelu_backward(gradient: Tensor, wide: Tensor, again: bool) -> Tensor | None:
    """Turn the gradient of `gelu(wide)` into that of `wide`, in place; `gelu(wide)` once more if it is wanted."""
    if again and fused(gradient):
        from lora_bench.engine.kernels import layers

        return layers.gelu_backward(gradient, wide)
    aten.gelu_backward.grad_input(gradient, wide, grad_input=gradient)
    return torch.nn.functional.gelu(wide) if again else None


def attention(mixed: Tensor, windows: Windows, keep: Keep | None, bias: Tensor) -> tuple[Tensor, Tensor | None]:
    """Attention within windows: `[K, S, 3 d]` queries, keys and values to `[K, S, d]`, and what backward needs.

    `bias`: `[n, W, W]`, 0 within a segment and -inf elsewhere.
    """
    if fused(mixed) and takes(mixed, windows):
        from lora_bench.engine.kernels import layers

        return layers.attention(mixed, windows, keep), None
    query, key, value = _heads(mixed, windows)
    scores = (query @ key.mT).mul_(windows.scale).add_(bias[:, None])
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=exact).to(value.dtype)
    dropped = weights if keep is None else weights * keep.factor(weights.dtype)
    return _joined([dropped @ value]), weights


def attention_backward(
    gradient: Tensor, mixed: Tensor, weights: Tensor | None, windows: Windows, keep: Keep | None
) -> Tensor:
    """Gradient `[K, S, 3 d]` of queries, keys and values."""
    if weights is None:
        from lora_bench.engine.kernels import layers

        return layers.attention_backward(gradient, mixed, windows, keep)
    query, key, value = _heads(mixed, windows)
    (own,) = _heads(gradient, windows, parts=1)
    factor = None if keep is None else keep.factor(weights.dtype)
    dropped = weights if factor is None else weights * factor
    by_value = dropped.mT @ own
    scores = own @ value.mT
    scores = scores if factor is None else scores.mul_(factor)
    scores = aten._softmax_backward_data(scores, weights, -1, weights.dtype).mul_(windows.scale)
    return _joined([scores @ key, scores.mT @ query, by_value])


def transfer(source: Tensor, target: Tensor, scale: Tensor | None) -> None:
    """Copy `[cells, slots, side, p, q]`, however either lies in memory, in the target's type, times `scale [cells]`."""
    if fused(target) and fused(source):
        from lora_bench.engine.kernels import optimiser

        optimiser.transfer(source, target, scale)
    elif scale is None:
        target.copy_(source)
    else:
        torch.mul(source, scale.view(-1, 1, 1, 1, 1), out=target)


def takes(mixed: Tensor, windows: Windows) -> bool:
    """Whether the attention kernels take this. float32's exact products have no tensor cores: cuBLAS does them."""
    sizes = windows.width <= 128 and mixed.shape[-1] // (3 * windows.heads) in (16, 32, 64, 128)
    return sizes and mixed.dtype == torch.bfloat16


def _heads(mixed: Tensor, windows: Windows, parts: int = 3) -> tuple[Tensor, ...]:
    """`[K, S, parts · d]` as `parts` views `[K, n, H, W, d / H]`."""
    cells, slots, size = mixed.shape
    shape = (cells, slots // windows.width, windows.width, parts, windows.heads, size // (parts * windows.heads))
    return mixed.view(shape).permute(3, 0, 1, 4, 2, 5).unbind(0)


def _joined(parts: list[Tensor]) -> Tensor:
    """The way back: views `[K, n, H, W, D]` to `[K, S, parts · H · D]`."""
    cells, count, _, width, _ = parts[0].shape
    return torch.stack(parts, 3).permute(0, 1, 4, 3, 2, 5).reshape(cells, count * width, -1)
