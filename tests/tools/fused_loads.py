"""The products that `fused_products` measures, as packs of RoBERTa-base's shape meet them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lora_bench.engine.encoder.product import Adapter, Product
from lora_bench.engine.kernels.tiles import ProductKind

DEVICE = torch.device("cuda")
HIDDEN, WIDE = 768, 3072


@dataclass(frozen=True)
class Site:
    """A product of RoBERTa-base's layer.

    Attributes:
        name: Its name.
        linears: How many linears it consists of.
        inputs: Of the product.
        size: Outputs of one linear.
        gelu_after: Whether GELU reads its outputs.
        gelu_before: Whether its inputs are gelu of something.
        accumulates: Whether its inputs' gradient is added to another.
    """

    name: str
    linears: int
    inputs: int
    size: int
    gelu_after: bool = False
    gelu_before: bool = False
    accumulates: bool = False


QKV = Site("qkv", 3, HIDDEN, HIDDEN, accumulates=True)
OUT = Site("attn_out", 1, HIDDEN, HIDDEN)
UP = Site("ffn_up", 1, HIDDEN, WIDE, gelu_after=True, accumulates=True)
DOWN = Site("ffn_down", 1, WIDE, HIDDEN, gelu_before=True)


@dataclass(frozen=True)
class Load:
    """A product as a pack's step meets it: `adapted` are the positions of the linears with adapters."""

    name: str
    site: Site
    cells: int
    slots: int
    rank: int
    adapted: tuple[int, ...]

    @property
    def kind(self) -> ProductKind:
        """The product's entry in the tables."""
        return ProductKind(self.site.size * self.site.linears, self.site.inputs, self.rank > 0)


def loads() -> Iterator[Load]:
    """The products of two large packs, then those of others."""
    sites = (QKV, OUT, UP, DOWN)
    for site in sites:
        yield Load("MRPC", site, 32, 1792, 64, tuple(range(site.linears)))
    yield Load("SST-2", QKV, 64, 448, 64, (0, 2))
    for site in (UP, DOWN):
        yield Load("SST-2", site, 64, 448, 0, ())
    for cells, rank in ((1, 16), (32, 16), (4, 16)):
        for site in sites:
            yield Load("MRPC", site, cells, 1792, rank, tuple(range(site.linears)))
    yield Load("SST-2", QKV, 64, 448, 16, (0, 2))


@dataclass
class Tensors:
    """What a product reads in both directions; `scratch` is added to while the time is taken."""

    product: Product
    inputs: Tensor
    grad: Tensor
    pre_activation: Tensor
    residual: Tensor
    scratch: Tensor
    low_rank_grad: Tensor | None
    adapter: Adapter | None

    def of_cells(self, cells: list[int]) -> Tensors:
        """The same for a pack of these cells."""
        return Tensors(
            self.product,
            self.inputs[cells],
            self.grad[cells],
            self.pre_activation[cells],
            self.residual[cells],
            self.scratch[cells],
            None if self.low_rank_grad is None else self.low_rank_grad[cells],
            self.adapter and Adapter(self.adapter.linears, self.adapter.A[cells], self.adapter.B[:, cells]),
        )


def draw(load: Load) -> Tensors:
    """Fresh random tensors."""
    site, cells, slots = load.site, load.cells, load.slots
    random = partial(torch.randn, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        product = Product([nn.Linear(site.inputs, site.size, device=DEVICE).bfloat16() for _ in range(site.linears)])
    grad, adapter, low_rank_grad = random(cells, slots, site.size * site.linears), None, None
    if load.rank:
        ranks = load.rank * len(load.adapted)
        down = random(cells, ranks, site.inputs) / site.inputs**0.5
        adapter = Adapter(load.adapted, down, random(len(load.adapted), cells, site.size, load.rank) / 4)
        low_rank_grad = random(cells, slots, ranks)
    inputs, pre_activation, residual, scratch = (random(cells, slots, site.inputs) for _ in range(4))
    return Tensors(product, inputs, grad, pre_activation, residual, scratch, low_rank_grad, adapter)


def forward(load: Load, t: Tensors) -> list[Tensor]:
    """The product as the engine computes it, the down-projection and GELU included."""
    if load.site.gelu_after:
        return list(t.product.forward_with_gelu(t.inputs, t.adapter)[:2])
    return [t.product.forward(t.inputs, t.adapter)[0]]


def backward(load: Load, t: Tensors, residual: Tensor | None = None) -> list[Tensor]:
    """The gradient of its inputs. Without a `residual` it is added to the scratch tensor, again and again."""
    if load.site.gelu_before:
        results = t.product.gelu_input_backward(t.grad, t.low_rank_grad, t.adapter, t.pre_activation)
        return [result for result in results if result is not None]
    accumulate = (t.scratch if residual is None else residual) if load.site.accumulates else None
    return [t.product.input_backward(t.grad, t.low_rank_grad, t.adapter, accumulate)]


def results(load: Load, t: Tensors, is_forward: bool) -> list[Tensor]:
    """The results, over memory that held NaN before."""
    like = t.grad if is_forward else t.inputs
    poison = [torch.full_like(like, math.nan) for _ in range(2)]
    residual = t.residual.clone()
    del poison
    return forward(load, t) if is_forward else backward(load, t, residual)


def exact(load: Load, t: Tensors, is_forward: bool) -> list[Tensor]:
    """The results in float64."""
    weight, gelu = t.product.weight.double(), nn.functional.gelu
    size = load.site.size
    if is_forward:
        out = t.inputs.double() @ weight.T + t.product.bias.double()
        if t.adapter is not None:
            inner = torch.bmm(t.inputs, t.adapter.A.mT).double()  # rounded as in the engine
            for index, position in enumerate(load.adapted):
                columns = slice(index * load.rank, (index + 1) * load.rank)
                out[:, :, position * size : (position + 1) * size] += (
                    inner[:, :, columns] @ t.adapter.B[index].mT.double()
                )
        return [out, gelu(out)] if load.site.gelu_after else [out]
    out = t.grad.double() @ weight
    if t.adapter is not None and t.low_rank_grad is not None:
        out += t.low_rank_grad.double() @ t.adapter.A.double()
    if load.site.gelu_before:
        value = t.pre_activation.double()
        slope = 0.5 * (1 + torch.erf(value / 2**0.5)) + value * torch.exp(-value * value / 2) / (2 * math.pi) ** 0.5
        return [out * slope, gelu(value)][: 1 if t.adapter is None else 2]
    return [out + t.residual.double()] if load.site.accumulates else [out]
