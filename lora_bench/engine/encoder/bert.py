"""The BERT family's encoder, forward and backward written out.

RoBERTa, BERT, XLM-R, CamemBERT and ELECTRA share one layer. With frozen weights its backward is short, so it is
written by hand: queries, keys and values are one product, their adapters share one down-projection, every gradient is
accumulated by the product that makes it, activations are kept once, and the last layer computes what the head reads,
the first token of each sequence, and no more. The embeddings, and the first layer up to its adapters, are the same for
all cells and computed once. Encoders of another form run through transformers' own code (`attention`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from lora_bench.engine.encoder.attention import Step
from lora_bench.engine.encoder.families import Family
from lora_bench.engine.encoder.product import Adapter, Inside, Operands, Product, outer, unstretch
from lora_bench.engine.kernels import ops
from lora_bench.engine.kernels.types import Norm, Normed, Windows
from lora_bench.engine.masks import Keep

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
    inside: dict[str, Inside]


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


class Part(NamedTuple):
    """Which linears of a product have adapters, and which operands these consist of."""

    columns: tuple[int, ...]
    fields: tuple[str, ...]


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
        inside: dict[str, Inside] = {}

        def project(name: str, values: Tensor) -> Tensor:
            out, own = self.products[name].forward(values, adapters.get(name))
            if own is not None:
                inside[name] = own
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
        kept = attended if "attended" in inside else None
        return out, Tape(
            inputs, mixed, weights, kept, normed, middle if "widened" in inside else None, wide, again, inside
        )

    def _keeps(self, run: Pass, last: bool) -> tuple[Keep | None, Keep | None]:
        first, second = (run.step.site(module) for module in self.drops)
        return (run.picked(first), run.picked(second)) if last else (first, second)

    def backward(
        self, gradient: Tensor, tape: Tape, run: Pass, adapters: dict[str, Adapter], into: dict[str, Adapter],
        last: bool, further: bool,
    ) -> Tensor | None:  # fmt: skip
        """Write the adapters' gradients to `into`; the gradient of the layer's input if a layer before needs it."""

        def down(name: str, values: Tensor) -> tuple[Tensor, Tensor | None]:
            if name not in adapters:
                return values, None
            product, inside = self.products[name], tape.inside[name]
            values = product.undress(values, inside, adapters[name], into[name])
            return values, product.inner_backward(values, inside.inner, adapters[name], into[name])

        def back(name: str, values: Tensor, onto: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            values, below = down(name, values)
            if name in adapters and adapters[name].stretch is not None:
                made = self.products[name].backward(values, below, adapters[name], None)
                made = unstretch(made, self._read(name, tape), adapters[name], into[name])
                return made if onto is None else onto.add_(made), below
            return self.products[name].backward(values, below, adapters.get(name), onto), below

        def outwards(name: str, below: Tensor | None, inputs: Tensor | None) -> None:
            if below is not None and inputs is not None:
                outer(below, inputs, adapters[name], into[name])

        first, second = self._keeps(run, last)
        onto, values = ops.add_norm_backward(gradient, tape.second, second, self.norms[1])
        wide, below = back("narrowed", values)
        outwards("narrowed", below, ops.gelu_backward(wide, tape.wide, again=below is not None))
        middle, below = back("widened", wide, onto)
        outwards("widened", below, tape.middle)
        onto, values = ops.add_norm_backward(middle, tape.first, first, self.norms[0])
        attended, below = back("attended", values)
        outwards("attended", below, tape.attended)
        if last and run.rows is not None:
            attended, onto = _spread(attended, run.rows, tape.inputs), _spread(onto, run.rows, tape.inputs)
        keep = run.step.site(self.attention)
        mixed = ops.attention_backward(attended, tape.mixed, tape.weights, run.windows, keep)
        inputs, below = back("mixed", mixed, onto) if further else (None, down("mixed", mixed)[1])
        outwards("mixed", below, tape.inputs)
        return inputs

    @staticmethod
    def _read(name: str, tape: Tape) -> Tensor:
        """What a product that can be stretched has read."""
        kept = {"attended": tape.attended, "widened": tape.middle}.get(name)
        return gelu(tape.wide) if kept is None else kept


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
        self, hidden: Tensor, segments: Tensor, width: int, updates: Mapping[Family, Operands], rows: Tensor | None
    ) -> Tensor:
        """`[K, S, d]` embeddings to the hidden states `[K, rows, d]` of the last layer, differentiable in the updates.

        All slots if `rows` is None.
        """
        windows = Windows(segments, width, self.heads, self.scale)
        run = Pass(windows, self.step, self.step.bias(None, hidden.dtype), rows)
        parts = {family.name: self._part(family, own) for family, own in updates.items()}
        flat = (value for own in updates.values() for value in own if value is not None)
        made: Tensor = _Encode.apply(self, hidden, run, parts, *flat)
        return made

    def _part(self, family: Family, own: Operands) -> Part:
        names = self.names[family.name][0]
        fields = tuple(field for field, value in own._asdict().items() if value is not None)
        if own.stretch is not None and len(names) > 1:
            raise ValueError(f"{', '.join(names)} read one input: it cannot be stretched for one of them")
        return Part(tuple(names.index(name) for name in family.slots[0]), fields)

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


def split(parts: Mapping[str, Part], flat: Sequence[Tensor], layers: int) -> list[dict[str, Adapter]]:
    """The flat tensors by layer and product."""
    left = iter(flat)
    whole = {name: {field: next(left) for field in part.fields} for name, part in parts.items()}
    return [
        {name: Adapter(parts[name].columns, **{f: value[i] for f, value in own.items()}) for name, own in whole.items()}
        for i in range(layers)
    ]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, encoder: Encoder, hidden: Tensor, run: Pass, parts: dict[str, Part], *flat: Tensor) -> Tensor:
        ctx.encoder, ctx.run, ctx.parts, ctx.flat = encoder, run, parts, flat
        ctx.tapes = [] if any(ctx.needs_input_grad) else None
        return encoder.forward(hidden, run, split(parts, flat, len(encoder.layers)), ctx.tapes)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        encoder, tapes = ctx.encoder, ctx.tapes
        count = len(encoder.layers)
        into = [torch.empty_like(tensor) for tensor in ctx.flat]
        adapters = split(ctx.parts, ctx.flat, count)
        slopes = split(ctx.parts, into, count)
        gradient = above[0].contiguous()
        for index in reversed(range(count)):
            gradient = encoder.layers[index].backward(
                gradient, tapes.pop(), ctx.run, adapters[index], slopes[index], index == count - 1, index > 0
            )
        return None, None, None, None, *into
