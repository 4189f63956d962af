"""A frozen matrix product with adapters, one set a cell, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Operands(NamedTuple):
    """An update as the encoder reads it; where there is no A, its rank is 0.

    B is multiplied by the method's scale. Gain and stretch are kept less one, so that 0 changes nothing and a small
    change keeps its digits in bfloat16. None where no cell has them.
    """

    A: Tensor
    B: Tensor
    gain: Tensor | None = None
    stretch: Tensor | None = None
    shift: Tensor | None = None


class Adapter(NamedTuple):
    """The adapters of one product of one layer, for J linears side by side.

    `A [K, J R, in]`, `B [J, K, out, R]`, gain and shift `[J, K, 1, out]`, stretch `[K, 1, in]`.
    """

    columns: tuple[int, ...]  # which of the product's linears each of the J is
    A: Tensor
    B: Tensor
    gain: Tensor | None = None
    stretch: Tensor | None = None
    shift: Tensor | None = None


class Inside(NamedTuple):
    """What an adapter's backward needs: inner values `[K, S, J R]`, outputs before the gain `[J, K, S, out]`."""

    inner: Tensor
    plain: Tensor | None


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

    def forward(self, inputs: Tensor, adapter: Adapter | None) -> tuple[Tensor, Inside | None]:
        """`[K, S, in]` to `[K, S, out]`, and what the adapters' backward needs."""
        if adapter is not None and adapter.stretch is not None:
            inputs = torch.addcmul(inputs, inputs, adapter.stretch)
        shared = inputs.shape[0] > 1 and inputs.stride(0) == 0
        out = linear(inputs[:1] if shared else inputs, self.weight, self.bias)
        out = out.expand(len(inputs), -1, -1).contiguous() if shared else out
        if adapter is None:
            return out, None
        inner = torch.bmm(inputs, adapter.A.mT)
        rank = adapter.B.shape[-1]
        for place, part in self._parts(out, adapter):
            if rank:
                part.baddbmm_(inner[:, :, place * rank : (place + 1) * rank], adapter.B[place].mT)
        return out, Inside(inner, self._dress(out, adapter))

    def _parts(self, values: Tensor, adapter: Adapter) -> Iterator[tuple[int, Tensor]]:
        """The adapted linears' places among the J, and their own values."""
        for place, column in enumerate(adapter.columns):
            yield place, values[:, :, column * self.size : (column + 1) * self.size]

    def _dress(self, out: Tensor, adapter: Adapter) -> Tensor | None:
        """Apply gain and shift in place; the outputs before the gain."""
        plain = None
        if adapter.gain is not None:
            plain = torch.stack([part for _, part in self._parts(out, adapter)])
            for place, part in self._parts(out, adapter):
                part.addcmul_(plain[place], adapter.gain[place])
        if adapter.shift is not None:
            for place, part in self._parts(out, adapter):
                part.add_(adapter.shift[place])
        return plain

    def undress(self, gradient: Tensor, inside: Inside, adapter: Adapter, into: Adapter) -> Tensor:
        """Write the gradients of gain and shift to `into`; the gradient of the outputs before them."""
        if into.shift is not None:
            for place, part in self._parts(gradient, adapter):
                into.shift[place].copy_(part.sum(1, keepdim=True))
        if into.gain is None or adapter.gain is None or inside.plain is None:
            return gradient
        gradient = gradient.clone()
        for place, part in self._parts(gradient, adapter):
            into.gain[place].copy_((part * inside.plain[place]).sum(1, keepdim=True))
            part.addcmul_(part, adapter.gain[place])
        return gradient

    def inner_backward(self, gradient: Tensor, inner: Tensor, adapter: Adapter, into: Adapter) -> Tensor:
        """Write the gradient of B to `into`; the gradient of the inner values `[K, S, J R]`."""
        rank = adapter.B.shape[-1]
        below = torch.empty_like(inner)
        for place, part in self._parts(gradient, adapter):
            own = slice(place * rank, (place + 1) * rank)
            if rank:
                torch.bmm(part.mT, inner[:, :, own], out=into.B[place])
                torch.bmm(part, adapter.B[place], out=below[:, :, own])
        return below

    def backward(self, gradient: Tensor, below: Tensor | None, adapter: Adapter | None, onto: Tensor | None) -> Tensor:
        """The gradient of the input `[K, S, in]`, added onto `onto` in place if there is one."""
        flat = gradient.flatten(0, 1)
        if below is None or adapter is None or not below.shape[-1]:
            if onto is None:
                return (flat @ self.weight).view(*gradient.shape[:2], -1)
            onto.flatten(0, 1).addmm_(flat, self.weight)
            return onto
        made = torch.bmm(below, adapter.A) if onto is None else onto.baddbmm_(below, adapter.A)
        made.flatten(0, 1).addmm_(flat, self.weight)
        return made


def unstretch(gradient: Tensor, inputs: Tensor, adapter: Adapter, into: Adapter) -> Tensor:
    """Write the gradient of the stretch to `into`, given that of the stretched inputs; the gradient of the inputs."""
    if adapter.stretch is None or into.stretch is None:
        return gradient
    into.stretch.copy_((gradient * inputs).sum(1, keepdim=True))
    return gradient.addcmul_(gradient, adapter.stretch)


def outer(below: Tensor, inputs: Tensor, adapter: Adapter, into: Adapter) -> None:
    """Write the gradient of A to `into`; `inputs` before the stretch."""
    if not below.shape[-1]:
        return
    torch.bmm(below.mT, inputs, out=into.A)
    if adapter.stretch is not None:
        into.A.addcmul_(into.A, adapter.stretch)
