"""A frozen matrix product with adapters, one set per cell, forward and backward.

A *product* is one matrix product of a layer: a linear layer, or several that read the same input (queries, keys and
values), whose weights are concatenated so that one call computes all of them. For each linear and cell

    z   = x + x ⊙ stretch
    y₀  = W z + b + B (A z)          B includes the method's scale s
    y   = y₀ + y₀ ⊙ gain + shift

With dy the gradient of y, the backward pass is

    dshift = Σₛ dy,   dgain = Σₛ dy ⊙ y₀,   dy₀ = dy + dy ⊙ gain
    dB = dy₀ᵀ (A z),  d(A z) = dy₀ B
    dA = d(A z)ᵀ z,   dz = dy₀ W + d(A z) A
    dstretch = Σₛ dz ⊙ x,   dx = dz + dz ⊙ stretch

with sums over the slots s. W and b are frozen and get no gradient.

Shapes: K cells, S slots, J adapted linears of the product, R the rank to which their adapters are padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from lora_bench.engine.kernels import ops


class Operands(NamedTuple):
    """The updates of a family of weights in the form that the encoder reads; rank 0 where there is no A.

    B includes the method's scale. Gain and stretch are stored as their difference from 1, so that 0 changes nothing
    and a small change keeps its digits in bfloat16. None for what no cell has.
    """

    A: Tensor
    B: Tensor
    gain: Tensor | None = None
    stretch: Tensor | None = None
    shift: Tensor | None = None


class Adapter(NamedTuple):
    """The adapters of one product of one layer. The gradients of an adapter have the same form.

    Attributes:
        linears: The index of each of the J adapted linears within the product.
        A: `[K, J · R, in]`: the linears read the same input, so one product computes A z for all of them.
        B: `[J, K, out, R]`.
        gain: `[J, K, 1, out]`, less 1.
        stretch: `[K, 1, in]`, less 1.
        shift: `[J, K, 1, out]`.
    """

    linears: tuple[int, ...]
    A: Tensor
    B: Tensor
    gain: Tensor | None = None
    stretch: Tensor | None = None
    shift: Tensor | None = None


class AdapterSaved(NamedTuple):
    """What the backward pass of an adapter needs.

    Attributes:
        low_rank: A z, `[K, S, J · R]`: the gradient of B needs it.
        before_gain: y₀, `[J, K, S, out]`: the gradient of the gain needs it. None without a gain.
    """

    low_rank: Tensor
    before_gain: Tensor | None


class Product:
    """A frozen linear layer, or several of one output size that read the same input, with adapters.

    The concatenated weights replace those of the modules, which become views of them, so that they lie in memory once.
    """

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        weight = torch.cat([module.weight.detach() for module in modules])
        bias = torch.cat([module.bias.detach() for module in modules])
        self.modules = list(modules)
        self.size = modules[0].out_features  # of one linear
        for index, module in enumerate(modules):
            rows = slice(index * self.size, (index + 1) * self.size)
            module.weight.data, module.bias.data = weight[rows], bias[rows]
        self.weight, self.bias = weight, bias

    def forward(self, inputs: Tensor, adapter: Adapter | None) -> tuple[Tensor, AdapterSaved | None]:
        """Compute y.

        Args:
            inputs: x, `[K, S, in]`. With stride 0 over the cells (all have the same input, as in the first layer) W z
                is computed once.
            adapter: The adapters, if any.

        Returns:
            y, `[K, S, out of all linears]`, a tensor of its own; and what the adapters' backward needs.
        """
        out, _, saved = self._forward(inputs, adapter, with_gelu=False)
        return out, saved

    def forward_with_gelu(self, inputs: Tensor, adapter: Adapter | None) -> tuple[Tensor, Tensor, AdapterSaved | None]:
        """Compute y and gelu(y), as `forward` otherwise."""
        out, activation, saved = self._forward(inputs, adapter, with_gelu=True)
        return out, gelu(out) if activation is None else activation, saved

    def _forward(
        self, inputs: Tensor, adapter: Adapter | None, with_gelu: bool
    ) -> tuple[Tensor, Tensor | None, AdapterSaved | None]:
        """y; gelu(y) if it is wanted and y₀ is y; what backward needs."""
        if adapter is None:
            return *ops.product(inputs, self.weight, self.bias, None, None, (), with_gelu), None
        if adapter.stretch is not None:
            inputs = torch.addcmul(inputs, inputs, adapter.stretch)
        with_gelu = with_gelu and adapter.gain is None and adapter.shift is None
        low_rank = torch.bmm(inputs, adapter.A.mT)
        out, activation = ops.product(inputs, self.weight, self.bias, low_rank, adapter.B, adapter.linears, with_gelu)
        return out, activation, AdapterSaved(low_rank, self._apply_gain_shift(out, adapter))

    def _adapted(self, values: Tensor, adapter: Adapter) -> Iterator[tuple[int, Tensor]]:
        """For each adapted linear its index among the J, and a view `[K, S, out]` of its part of `values`."""
        for index, position in enumerate(adapter.linears):
            yield index, values[:, :, position * self.size : (position + 1) * self.size]

    def _apply_gain_shift(self, out: Tensor, adapter: Adapter) -> Tensor | None:
        """Turn y₀ into y, in place; a copy of y₀ if there is a gain."""
        before_gain = None
        if adapter.gain is not None:
            before_gain = torch.stack([values for _, values in self._adapted(out, adapter)])
            for index, values in self._adapted(out, adapter):
                values.addcmul_(before_gain[index], adapter.gain[index])
        if adapter.shift is not None:
            for index, values in self._adapted(out, adapter):
                values.add_(adapter.shift[index])
        return before_gain

    def gain_shift_backward(self, grad: Tensor, saved: AdapterSaved, adapter: Adapter, grads: Adapter) -> Tensor:
        """Write the gradients of gain and shift to `grads`, and return dy₀.

        Args:
            grad: dy. Not changed: where there is a gain, dy₀ is a copy, since the caller may still need dy.
            saved: What forward saved.
            adapter: The adapters.
            grads: Where their gradients are written.
        """
        if grads.shift is not None:
            for index, values in self._adapted(grad, adapter):
                grads.shift[index].copy_(values.sum(1, keepdim=True))
        if grads.gain is None or adapter.gain is None or saved.before_gain is None:
            return grad
        grad = grad.clone()
        for index, values in self._adapted(grad, adapter):
            grads.gain[index].copy_((values * saved.before_gain[index]).sum(1, keepdim=True))
            values.addcmul_(values, adapter.gain[index])
        return grad

    def up_backward(self, grad: Tensor, low_rank: Tensor, adapter: Adapter, grads: Adapter) -> Tensor:
        """Write dB to `grads`, and return d(A z), `[K, S, J · R]`, given dy₀ and A z."""
        rank = adapter.B.shape[-1]
        low_rank_grad = torch.empty_like(low_rank)
        for index, values in self._adapted(grad, adapter):
            columns = slice(index * rank, (index + 1) * rank)
            if rank:
                torch.bmm(values.mT, low_rank[:, :, columns], out=grads.B[index])
                torch.bmm(values, adapter.B[index], out=low_rank_grad[:, :, columns])
        return low_rank_grad

    def input_backward(
        self, grad: Tensor, low_rank_grad: Tensor | None, adapter: Adapter | None, accumulate: Tensor | None
    ) -> Tensor:
        """Compute dz = dy₀ W + d(A z) A.

        Args:
            grad: dy₀.
            low_rank_grad: d(A z), None without adapters.
            adapter: The adapters, if any.
            accumulate: A gradient `[K, S, in]` that dz is added to in place.

        Returns:
            dz, or `accumulate` with dz added.
        """
        down = None if adapter is None else adapter.A
        return ops.product_backward(grad, self.weight, low_rank_grad, down, accumulate)

    def gelu_input_backward(
        self, grad: Tensor, low_rank_grad: Tensor | None, adapter: Adapter | None, pre_activation: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the gradient of p where gelu(p) is the input; with adapters also gelu(p) again, for that of A."""
        down = None if adapter is None else adapter.A
        return ops.gelu_product_backward(
            grad, self.weight, low_rank_grad, down, pre_activation, recompute=low_rank_grad is not None
        )


def stretch_backward(grad: Tensor, inputs: Tensor, adapter: Adapter, grads: Adapter) -> Tensor:
    """Write dstretch to `grads`, and turn dz into dx, in place; `inputs` is x."""
    if adapter.stretch is None or grads.stretch is None:
        return grad
    grads.stretch.copy_((grad * inputs).sum(1, keepdim=True))
    return grad.addcmul_(grad, adapter.stretch)


def down_backward(low_rank_grad: Tensor, inputs: Tensor, adapter: Adapter, grads: Adapter) -> None:
    """Write dA to `grads`; `inputs` is x.

    dA = d(A z)ᵀ (x + x ⊙ stretch) = G + G ⊙ stretch with G = d(A z)ᵀ x, so z is not needed again.
    """
    if not low_rank_grad.shape[-1]:
        return
    torch.bmm(low_rank_grad.mT, inputs, out=grads.A)
    if adapter.stretch is not None:
        grads.A.addcmul_(grads.A, adapter.stretch)
