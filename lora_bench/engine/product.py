"""A frozen matrix product with low-rank adapters, one set a cell, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Adapter(NamedTuple):
    """The adapters of one product of one layer: `A [K, J R, in]`, `B [J, K, out, R]` for J linears side by side."""

    A: Tensor
    B: Tensor
    columns: tuple[int, ...]  # which of the product's linears each of the J is


class Product:
    """A frozen linear, or several that read the same input, with adapters."""

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        weight = torch.cat([module.weight.detach() for module in modules])
        bias = torch.cat([module.bias.detach() for module in modules])
        self.modules = list(modules)
        self.size = modules[0].out_features
        for index, module in enumerate(modules):  # one copy of the weights, shared with the model
            own = slice(index * self.size, (index + 1) * self.size)
            module.weight.data, module.bias.data = weight[own], bias[own]
        self.weight, self.bias = weight, bias

    def forward(self, inputs: Tensor, adapter: Adapter | None) -> tuple[Tensor, Tensor | None]:
        """`[K, S, in]` to `[K, S, out]`, and the adapters' inner values `[K, S, J R]`."""
        shared = inputs.shape[0] > 1 and inputs.stride(0) == 0
        out = linear(inputs[:1] if shared else inputs, self.weight, self.bias)
        out = out.expand(len(inputs), -1, -1).contiguous() if shared else out
        if adapter is None:
            return out, None
        inner = torch.bmm(inputs, adapter.A.mT)
        rank = adapter.B.shape[-1]
        for place, column in enumerate(adapter.columns):
            part = out[:, :, column * self.size : (column + 1) * self.size]
            part.baddbmm_(inner[:, :, place * rank : (place + 1) * rank], adapter.B[place].mT)
        return out, inner

    def inner_backward(self, gradient: Tensor, inner: Tensor, adapter: Adapter, into: Adapter) -> Tensor:
        """Write the gradient of B to `into`; the gradient of the inner values `[K, S, J R]`."""
        rank = adapter.B.shape[-1]
        below = torch.empty_like(inner)
        for place, column in enumerate(adapter.columns):
            part = gradient[:, :, column * self.size : (column + 1) * self.size]
            own = slice(place * rank, (place + 1) * rank)
            torch.bmm(part.mT, inner[:, :, own], out=into.B[place])
            torch.bmm(part, adapter.B[place], out=below[:, :, own])
        return below

    def backward(self, gradient: Tensor, below: Tensor | None, adapter: Adapter | None, onto: Tensor | None) -> Tensor:
        """The gradient of the input `[K, S, in]`, added onto `onto` in place if there is one."""
        flat = gradient.flatten(0, 1)
        if below is None or adapter is None:
            if onto is None:
                return (flat @ self.weight).view(*gradient.shape[:2], -1)
            onto.flatten(0, 1).addmm_(flat, self.weight)
            return onto
        made = torch.bmm(below, adapter.A) if onto is None else onto.baddbmm_(below, adapter.A)
        made.flatten(0, 1).addmm_(flat, self.weight)
        return made
