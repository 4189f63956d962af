"""The operations of an encoder layer that are more than a matrix product, forward and backward.

Each has a plain implementation in torch, which runs on every device in every type, and a GPU kernel (`layers`) for
float32 and bfloat16 that reads and writes memory once. Layer norms are frozen: their weights get no gradient.

Shapes: K cells, S slots in n windows of W (S = n · W), d features, H heads of size D (d = H · D).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from lora_bench.engine.kernels import tiles
from lora_bench.engine.kernels.types import AttentionLayout, Norm, NormSaved
from lora_bench.engine.masks import DropoutMask

aten = torch.ops.aten


def uses_kernels(tensor: Tensor) -> bool:
    """Whether the GPU kernels run on this tensor."""
    return tensor.is_cuda and tensor.dtype in (torch.float32, torch.bfloat16)


def product(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    low_rank: Tensor | None,
    up: Tensor | None,
    linears: Sequence[int],
    with_gelu: bool,
) -> tuple[Tensor, Tensor | None]:
    """A frozen product with low-rank adapters: `y = x Wᵀ + b`, plus `u Bᵀ` in the columns of the adapted linears.

    Args:
        inputs: x, `[K, S, in]`; with stride 0 over the cells (all have the same input) x Wᵀ is computed once.
        weight: W, `[out of all linears, in]`.
        bias: b, `[out of all linears]`.
        low_rank: u = x Aᵀ, `[K, S, J · R]`; None without adapters.
        up: B, `[J, K, out, R]`; None without adapters.
        linears: The index of each of the J adapted linears within the product, in rising order.
        with_gelu: Whether gelu(y) is wanted too.

    Returns:
        y, `[K, S, out of all linears]`, a tensor of its own; and gelu(y) or None.
    """
    rank = 0 if up is None else up.shape[-1]
    size = len(weight) if up is None else up.shape[2]
    tiling = tiles.tiles_for(tiles.FORWARD, inputs, weight, size, rank)
    if tiling is not None:
        from lora_bench.engine.kernels import products

        return products.forward(inputs, weight, bias, low_rank, up, linears, with_gelu, tiling)
    is_shared = inputs.shape[0] > 1 and inputs.stride(0) == 0
    out = linear(inputs[:1] if is_shared else inputs, weight, bias)
    out = out.expand(len(inputs), -1, -1).contiguous() if is_shared else out
    if low_rank is not None and up is not None and rank:
        for index, position in enumerate(linears):
            values = out[:, :, position * size : (position + 1) * size]
            values.baddbmm_(low_rank[:, :, index * rank : (index + 1) * rank], up[index].mT)
    return out, gelu(out) if with_gelu else None


def product_backward(
    grad: Tensor, weight: Tensor, low_rank_grad: Tensor | None, down: Tensor | None, accumulate: Tensor | None
) -> Tensor:
    """The gradient of a product's inputs, `dx = dy W + g A`.

    Args:
        grad: dy, `[K, S, out of all linears]`.
        weight: W, `[out of all linears, in]`.
        low_rank_grad: g, the gradient of x Aᵀ, `[K, S, J · R]`; None without adapters.
        down: A, `[K, J · R, in]`; None without adapters.
        accumulate: A gradient `[K, S, in]` that dx is added to in place: the matrix products accumulate into it, which
            saves a pass over memory.

    Returns:
        dx, or `accumulate` with dx added.
    """
    ranks = 0 if down is None else down.shape[1]
    tiling = tiles.tiles_for(tiles.BACKWARD, grad, weight, weight.shape[1], ranks)
    if tiling is not None:
        from lora_bench.engine.kernels import products

        return products.backward(grad, weight, low_rank_grad, down, accumulate, None, False, tiling)[0]
    flat = grad.flatten(0, 1)
    if low_rank_grad is None or down is None or not ranks:
        if accumulate is None:
            return (flat @ weight).view(*grad.shape[:2], -1)
        accumulate.flatten(0, 1).addmm_(flat, weight)
        return accumulate
    input_grad = torch.bmm(low_rank_grad, down) if accumulate is None else accumulate.baddbmm_(low_rank_grad, down)
    input_grad.flatten(0, 1).addmm_(flat, weight)
    return input_grad


def gelu_product_backward(
    grad: Tensor,
    weight: Tensor,
    low_rank_grad: Tensor | None,
    down: Tensor | None,
    pre_activation: Tensor,
    recompute: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of p where gelu(p) is a product's input, and gelu(p) if it is wanted (see `gelu_backward`).

    Args:
        grad: As for `product_backward`.
        weight: As for `product_backward`.
        low_rank_grad: As for `product_backward`.
        down: As for `product_backward`.
        pre_activation: p, `[K, S, in]`.
        recompute: Whether gelu(p) is wanted.
    """
    ranks = 0 if down is None else down.shape[1]
    tiling = tiles.tiles_for(tiles.BACKWARD, grad, weight, weight.shape[1], ranks)
    if tiling is not None:
        from lora_bench.engine.kernels import products

        return products.backward(grad, weight, low_rank_grad, down, None, pre_activation, recompute, tiling)
    input_grad = product_backward(grad, weight, low_rank_grad, down, None)
    return input_grad, gelu_backward(input_grad, pre_activation, recompute)


def add_norm(
    hidden: Tensor, residual: Tensor, dropout_mask: DropoutMask | None, norm: Norm
) -> tuple[Tensor, NormSaved]:
    """`LayerNorm(residual + dropout(hidden))`.

    Args:
        hidden: `[K, S, d]`. Overwritten with the norm's input, which is saved for backward: no further copy.
        residual: `[K, S, d]`; cells may share memory (stride 0).
        dropout_mask: `[n, W, d]`, shared by all cells.
        norm: The frozen norm.

    Returns:
        The normalised hidden states, and what backward needs.
    """
    if uses_kernels(hidden):
        from lora_bench.engine.kernels import layers

        return layers.add_norm(hidden, residual, dropout_mask, norm)
    if dropout_mask is not None:
        hidden.mul_(dropout_mask.factor(hidden.dtype).view(hidden.shape[1:]))
    summed = hidden.add_(residual)
    out, mean, rstd = torch.native_layer_norm(summed, summed.shape[-1:], norm.weight, norm.bias, norm.epsilon)
    return out, NormSaved(summed, mean, rstd)


def add_norm_backward(
    grad: Tensor, saved: NormSaved, dropout_mask: DropoutMask | None, norm: Norm
) -> tuple[Tensor, Tensor]:
    """The gradients of `residual` and of `hidden`. Without dropout they are equal, and one tensor."""
    if uses_kernels(grad):
        from lora_bench.engine.kernels import layers

        return layers.add_norm_backward(grad, saved, dropout_mask, norm)
    summed, mean, rstd = saved
    input_only = [True, False, False]  # no gradients of the norm's weight and bias
    size = list(summed.shape[-1:])
    residual_grad, _, _ = aten.native_layer_norm_backward(
        grad, summed, size, mean, rstd, norm.weight, norm.bias, input_only
    )
    if dropout_mask is None:
        return residual_grad, residual_grad
    return residual_grad, residual_grad * dropout_mask.factor(residual_grad.dtype).view(residual_grad.shape[1:])


def gelu_backward(grad: Tensor, pre_activation: Tensor, recompute: bool) -> Tensor | None:
    """Turn the gradient of `gelu(pre_activation)` into that of `pre_activation`, in place.

    The activation is four times as wide as the hidden states, so forward does not save it. `recompute` returns it
    again, for the gradient of an adapter that reads it.
    """
    if recompute and uses_kernels(grad):
        from lora_bench.engine.kernels import layers

        return layers.gelu_backward(grad, pre_activation)
    aten.gelu_backward.grad_input(grad, pre_activation, grad_input=grad)
    return gelu(pre_activation) if recompute else None


def attention(
    qkv: Tensor, layout: AttentionLayout, dropout_mask: DropoutMask | None, bias: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention within windows: `O = dropout(P) V` with `P = softmax(scale · Q Kᵀ + bias + T)`.

    T is the Toeplitz matrix of the layout's `distance_biases`, the same in all windows, if there are any.

    Args:
        qkv: Queries, keys and values side by side, `[K, S, 3 d]`.
        layout: The windows, segments and heads.
        dropout_mask: `[n, H, W, W]`, shared by all cells.
        bias: `[n, W, W]`, 0 within a segment and -inf elsewhere.

    Returns:
        The outputs `[K, S, d]`, and the weights P `[K, n, H, W, W]` that backward needs. None for P where a kernel ran:
        its backward computes P again from `qkv`, so that it takes no memory.
    """
    if uses_kernels(qkv) and attention_kernel_supports(qkv, layout):
        from lora_bench.engine.kernels import layers

        return layers.attention(qkv, layout, dropout_mask), None
    query, key, value = _split_heads(qkv, layout)
    scores = query @ key.mT
    torch.add(bias[:, None], scores, alpha=layout.scale, out=scores)  # one pass over the widest tensor of a layer
    if layout.distance_biases is not None:
        scores.add_(toeplitz(layout.distance_biases, layout.width))
    exact = torch.promote_types(scores.dtype, torch.float32)  # softmax never in bfloat16
    weights = scores.softmax(-1, dtype=exact).to(value.dtype)
    dropped = weights if dropout_mask is None else weights * dropout_mask.factor(weights.dtype)
    return _join_heads((dropped @ value)[None]), weights


def toeplitz(biases: Tensor, width: int) -> Tensor:
    """The matrix `[H, W, W]` of what is added to the scores of a window: entry (i, j) is that of distance j - i.

    Args:
        biases: By distance, `[H, 2 L - 1]` for distances from 1 - L to L - 1.
        width: W, at most L.
    """
    longest = (biases.shape[1] + 1) // 2
    # Row i is the slice that begins at distance -i: one earlier for each further row.
    return biases.unfold(1, width, 1)[:, longest - width : longest].flip(1)


def attention_backward(
    grad: Tensor, qkv: Tensor, weights: Tensor | None, layout: AttentionLayout, dropout_mask: DropoutMask | None
) -> Tensor:
    """The gradient of queries, keys and values, `[K, S, 3 d]`, given that of the outputs, `[K, S, d]`.

    With the dropout factor F (0 or 1 / (1 - rate)), `P̃ = F ⊙ P` and `S = Q Kᵀ`:

        dV = P̃ᵀ dO
        dP = F ⊙ (dO Vᵀ)
        dS = scale · P ⊙ (dP - rowsum(dP ⊙ P))      (softmax backward)
        dQ = dS K,  dK = dSᵀ Q
    """
    if weights is None:
        from lora_bench.engine.kernels import layers

        return layers.attention_backward(grad, qkv, layout, dropout_mask)
    query, key, value = _split_heads(qkv, layout)
    out_grad = _split_heads(grad, layout, parts=1)[0].contiguous()  # two products read it
    factor = None if dropout_mask is None else dropout_mask.factor(weights.dtype)
    dropped = weights if factor is None else weights * factor
    qkv_grad = out_grad.new_empty(3, *out_grad.shape)  # one tensor for all three, so that one copy joins the heads
    torch.matmul(dropped.mT, out_grad, out=qkv_grad[2])
    weights_grad = out_grad @ value.mT
    weights_grad = weights_grad if factor is None else weights_grad.mul_(factor)
    scores_grad = aten._softmax_backward_data(weights_grad, weights, -1, weights.dtype).mul_(layout.scale)
    torch.matmul(scores_grad, key, out=qkv_grad[0])
    torch.matmul(scores_grad.mT, query, out=qkv_grad[1])
    return _join_heads(qkv_grad)


def transfer(source: Tensor, target: Tensor, scale: Tensor | None) -> None:
    """Copy into `target`, cast to its type and multiplied by `scale`.

    Args:
        source: `[cells, products, linears, p, q]` with any strides.
        target: The same shape with any strides; written in place.
        scale: `[cells]`, or None for 1.
    """
    if uses_kernels(target) and uses_kernels(source):
        from lora_bench.engine.kernels import optimiser

        optimiser.transfer(source, target, scale)
    elif scale is None:
        target.copy_(source)
    else:
        torch.mul(source, scale.view(-1, 1, 1, 1, 1), out=target)


def attention_kernel_supports(qkv: Tensor, layout: AttentionLayout) -> bool:
    """Whether the attention kernels run on these sizes and this type.

    A program holds all keys and values of a window, hence the limit on its width; `tl.dot` wants powers of two from 16.
    In float32, exact products do not use tensor cores: there the plain implementation, with cuBLAS, is used.
    """
    head_size = qkv.shape[-1] // (3 * layout.heads)
    return layout.width <= 128 and head_size in (16, 32, 64, 128) and qkv.dtype == torch.bfloat16


def _split_heads(tensor: Tensor, layout: AttentionLayout, parts: int = 3) -> tuple[Tensor, ...]:
    """`[K, S, parts · d]` as `parts` views `[K, n, H, W, D]`."""
    cells, slots, size = tensor.shape
    shape = (cells, slots // layout.width, layout.width, parts, layout.heads, size // (parts * layout.heads))
    return tensor.view(shape).permute(3, 0, 1, 4, 2, 5).unbind(0)


def _join_heads(parts: Tensor) -> Tensor:
    """The inverse of `_split_heads`: `[parts, K, n, H, W, D]` to `[K, S, parts · H · D]`."""
    _, cells, windows, _, width, _ = parts.shape
    return parts.permute(1, 2, 4, 0, 3, 5).reshape(cells, windows * width, -1)
