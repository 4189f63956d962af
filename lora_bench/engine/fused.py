"""The BERT family's encoder, forward and backward written out.

RoBERTa, BERT, XLM-R, CamemBERT and ELECTRA share one layer. With frozen weights its backward is short, so it is
written by hand: queries, keys and values are one product, their adapters share one down-projection, every gradient is
accumulated by the product that makes it, activations are kept once, and the last layer computes what the head reads,
the first token of each sequence, and no more. The embeddings, and the first layer up to its adapters, are the same for
all cells and computed once. Encoders of another form run through transformers' own code (`attention`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from lora_bench.engine import ops
from lora_bench.engine.attention import Step
from lora_bench.engine.families import Family
from lora_bench.engine.masks import Keep
from lora_bench.engine.ops import Norm, Normed, Windows
from lora_bench.engine.product import Adapter, Product
from lora_bench.methods.recipe import Update

PLACES = {
    "mixed": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attended": ("attention.output.dense",),
    "widened": ("intermediate.dense",),
    "narrowed": ("output.dense",),
}
"""The products of a layer, by what they make, and the linears in each."""


@dataclass
class Tape:
    """What a layer's backward needs."""

    inputs: Tensor
    mixed: Tensor
    weights: Tensor | None
    attended: Tensor | None
    first: Normed
    middle: Tensor | None
    wide: Tensor
    second: Normed
    inner: dict[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """One forward pass: its windows, its masks by layer, and the rows that the last layer is to give."""

    windows: Windows
    step: Step
    bias: Tensor
    rows: Tensor | None

    def picked(self, keep: Keep | None) -> Keep | None:
        """The mask of the wanted rows alone."""
        if keep is None or self.rows is None:
            return keep
        width = self.windows.width
        return Keep(keep.mask[self.rows // width, self.rows % width][None], keep.scale)


class Layer:
    """One layer of the family."""

    def __init__(self, module: nn.Module) -> None:
        get = module.get_submodule
        self.products = {name: Product([_linear(get(part)) for part in parts]) for name, parts in PLACES.items()}
        self.attention = get("attention.self")
        self.drops = get("attention.output.dropout"), get("output.dropout")
        self.norms = Norm.of(get("attention.output.LayerNorm")), Norm.of(get("output.LayerNorm"))

    def forward(self, inputs: Tensor, run: Pass, adapters: dict[str, Adapter], last: bool) -> tuple[Tensor, Tape]:
        """`[K, S, d]` to `[K, S, d]`, or to the pass's rows in the last layer."""
        inner: dict[str, Tensor] = {}

        def project(name: str, values: Tensor) -> Tensor:
            out, inside = self.products[name].forward(values, adapters.get(name))
            if inside is not None:
                inner[name] = inside
            return out

        mixed = project("mixed", inputs)
        attended, weights = ops.attention(mixed, run.windows, run.step.site(self.attention), run.bias)
        residual = inputs
        if last and run.rows is not None:
            attended, residual = attended[:, run.rows], inputs[:, run.rows]
        first, second = self._keeps(run, last)
        middle, normed = ops.add_norm(project("attended", attended), residual, first, self.norms[0])
        wide = project("widened", middle)
        out, again = ops.add_norm(project("narrowed", gelu(wide)), middle, second, self.norms[1])
        kept = attended if "attended" in inner else None
        return out, Tape(
            inputs, mixed, weights, kept, normed, middle if "widened" in inner else None, wide, again, inner
        )

    def _keeps(self, run: Pass, last: bool) -> tuple[Keep | None, Keep | None]:
        first, second = (run.step.site(module) for module in self.drops)
        return (run.picked(first), run.picked(second)) if last else (first, second)

    def backward(
        self, gradient: Tensor, tape: Tape, run: Pass, adapters: dict[str, Adapter], into: dict[str, Adapter],
        last: bool, further: bool,
    ) -> Tensor | None:  # fmt: skip
        """Write the adapters' gradients to `into`; the gradient of the layer's input if a layer before needs it."""

        def back(name: str, values: Tensor, onto: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            adapter, product = adapters.get(name), self.products[name]
            below = None if adapter is None else product.inner_backward(values, tape.inner[name], adapter, into[name])
            return product.backward(values, below, adapter, onto), below

        def outer(name: str, below: Tensor | None, inputs: Tensor | None) -> None:
            if below is not None and inputs is not None:
                torch.bmm(below.mT, inputs, out=into[name].A)

        first, second = self._keeps(run, last)
        onto, values = ops.add_norm_backward(gradient, tape.second, second, self.norms[1])
        wide, below = back("narrowed", values)
        outer("narrowed", below, ops.gelu_backward(wide, tape.wide, again=below is not None))
        middle, below = back("widened", wide, onto)
        outer("widened", below, tape.middle)
        onto, values = ops.add_norm_backward(middle, tape.first, first, self.norms[0])
        attended, below = back("attended", values)
        outer("attended", below, tape.attended)
        if last and run.rows is not None:
            attended, onto = _spread(attended, run.rows, tape.inputs), _spread(onto, run.rows, tape.inputs)
        keep = run.step.site(self.attention)
        mixed = ops.attention_backward(attended, tape.mixed, tape.weights, run.windows, keep)
        if further:
            inputs, below = back("mixed", mixed, onto)
            outer("mixed", below, tape.inputs)
            return inputs
        if "mixed" in adapters:
            below = self.products["mixed"].inner_backward(mixed, tape.inner["mixed"], adapters["mixed"], into["mixed"])
            outer("mixed", below, tape.inputs)
        return None


def _spread(values: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """`[K, B, d]` at their places in `[K, S, d]`; empty places, which all lie at slot 0, add nothing."""
    return values.new_zeros(like.shape).index_add_(1, rows, values)


def _linear(module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear) or module.bias is None:
        raise AttributeError("not a linear layer with a bias")
    return module


class Encoder:
    """All layers. `names`: the linears of each product, layer by layer."""

    def __init__(self, model: Any, step: Step) -> None:
        self.model, self.step = model, step
        heads = int(model.config.num_attention_heads)
        self.scale = (int(model.config.hidden_size) // heads) ** -0.5
        self.heads = heads
        self.layers = [Layer(module) for module in model.encoder.layer]
        known = {id(module): name for name, module in model.named_modules()}
        self.names = {
            product: [[known[id(module)] for module in layer.products[product].modules] for layer in self.layers]
            for product in PLACES
        }

    @classmethod
    def of(cls, model: Any, step: Step) -> Encoder | None:
        """The encoder of a model of the family, None if it is of another form."""
        config = model.config
        if getattr(config, "hidden_act", None) != "gelu" or getattr(config, "is_decoder", False):
            return None
        if not {"embeddings", "encoder"} <= {name for name, _ in model.named_children()}:
            return None
        try:
            return cls(model, step)
        except AttributeError:
            return None

    def embed(self, ids: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        """`[1, S, d]`."""
        given = {} if types is None else {"token_type_ids": types[None]}
        hidden: Tensor = self.model.embeddings(input_ids=ids[None], position_ids=positions[None], **given)
        project = getattr(self.model, "embeddings_project", None)
        return hidden if project is None else project(hidden)

    def encode(
        self, hidden: Tensor, segments: Tensor, width: int, updates: Mapping[Family, Update], rows: Tensor | None
    ) -> Tensor:
        """`[K, S, d]` embeddings to the hidden states `[K, rows, d]` of the last layer, differentiable in the updates.

        All slots if `rows` is None.
        """
        windows = Windows(segments, width, self.heads, self.scale)
        run = Pass(windows, self.step, self.step.bias(None, hidden.dtype), rows)
        columns = self._columns(updates)
        flat = itertools.chain.from_iterable(updates.values())
        made: Tensor = _Encode.apply(self, hidden, run, columns, *flat)
        return made

    def _columns(self, updates: Mapping[Family, Update]) -> dict[str, tuple[int, ...]]:
        """By product, which of its linears have adapters."""
        return {f.name: tuple(self.names[f.name][0].index(name) for name in f.slots[0]) for f in updates}

    def forward(
        self, hidden: Tensor, run: Pass, by_layer: list[dict[str, Adapter]], tapes: list[Tape] | None
    ) -> Tensor:
        """The layers in order; what backward needs is put on `tapes`."""
        for index, layer in enumerate(self.layers):
            hidden, tape = layer.forward(hidden, run, by_layer[index], index == len(self.layers) - 1)
            if tapes is not None:
                tapes.append(tape)
            del tape  # without backward it would hold a layer's activations while the next one runs
        return hidden


def split(columns: dict[str, tuple[int, ...]], flat: Sequence[Tensor], layers: int) -> list[dict[str, Adapter]]:
    """The flat tensors by layer and product."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    whole = [(name, A, B) for name, (A, B) in zip(columns, pairs, strict=True)]
    return [{name: Adapter(A[i], B[i], columns[name]) for name, A, B in whole} for i in range(layers)]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, encoder: Encoder, hidden: Tensor, run: Pass, columns: dict[str, tuple[int, ...]], *flat: Tensor
    ) -> Tensor:
        ctx.encoder, ctx.run, ctx.columns, ctx.flat = encoder, run, columns, flat
        ctx.tapes = [] if any(ctx.needs_input_grad) else None
        return encoder.forward(hidden, run, split(columns, flat, len(encoder.layers)), ctx.tapes)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        encoder, tapes = ctx.encoder, ctx.tapes
        count = len(encoder.layers)
        into = [torch.empty_like(tensor) for tensor in ctx.flat]
        adapters = split(ctx.columns, ctx.flat, count)
        slopes = split(ctx.columns, into, count)
        gradient = above[0].contiguous()
        for index in reversed(range(count)):
            gradient = encoder.layers[index].backward(
                gradient, tapes.pop(), ctx.run, adapters[index], slopes[index], index == count - 1, index > 0
            )
        return None, None, None, None, *into
