"""The encoder of the BERT family, with forward and backward written by hand.

RoBERTa, BERT, XLM-R, CamemBERT, ELECTRA and MPNet share one layer (`architectures` has their names for its parts). Its
weights are frozen, so the backward pass is short, and writing it by hand saves what autograd cannot:

- queries, keys and values are one matrix product, and their adapters share one down-projection;
- every gradient is accumulated by the matrix product that computes it;
- each activation is saved once, and the widest one (of the feed-forward network) is recomputed;
- the last layer computes the rows that the head reads, the first token of each sequence, and no others;
- the embeddings, and the first layer up to its adapters, are the same for all cells and computed once.

A layer with input x computes, with dropout D, LayerNorm LN and the products of its architecture (see `product`):

    c = attention(qkv(x))
    h = LN(x + D(attn_out(c)))
    y = LN(h + D(ffn_down(gelu(ffn_up(h)))))

Encoders of another form run through transformers' own code (`attention`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_bench.engine.encoder import architectures
from lora_bench.engine.encoder.architectures import Architecture
from lora_bench.engine.encoder.attention import ForwardContext
from lora_bench.engine.encoder.backward import LayerSaved, ProductsBackward
from lora_bench.engine.encoder.families import Family
from lora_bench.engine.encoder.product import Adapter, AdapterSaved, Operands, Product
from lora_bench.engine.kernels import ops
from lora_bench.engine.kernels.types import AttentionLayout, Norm
from lora_bench.engine.masks import DropoutMask


@dataclass(frozen=True)
class EncoderPass:
    """The settings of one forward pass.

    Attributes:
        layout: Which slots attend to which.
        context: The dropout masks, by module.
        bias: The attention bias `[n, W, W]`.
        rows: The slots whose hidden states the last layer returns; None for all.
    """

    layout: AttentionLayout
    context: ForwardContext
    bias: Tensor
    rows: Tensor | None

    def mask_of_rows(self, mask: DropoutMask | None) -> DropoutMask | None:
        """The part `[1, rows, d]` of a mask `[n, W, d]` that belongs to the rows of the last layer."""
        if mask is None or self.rows is None:
            return mask
        width = self.layout.width
        return DropoutMask(mask.kept[self.rows // width, self.rows % width][None], mask.scale)


class AdapterSpec(NamedTuple):
    """Which linears of a product have adapters, and which operands these consist of."""

    linears: tuple[int, ...]
    fields: tuple[str, ...]


class Layer:
    """One layer of the family."""

    def __init__(self, module: nn.Module, architecture: Architecture) -> None:
        get = module.get_submodule
        self.products = {
            name: Product([_linear(get(part)) for part in parts]) for name, parts in architecture.products.items()
        }
        self.attention = get(architecture.attention)
        self.dropouts = [get(name) for name in architecture.dropouts]
        self.norms = [Norm.from_module(get(name)) for name in architecture.norms]

    def forward(
        self, inputs: Tensor, run: EncoderPass, adapters: dict[str, Adapter], is_last: bool
    ) -> tuple[Tensor, LayerSaved]:
        """The layer's output `[K, S, d]`, in the last layer `[K, rows, d]`, and what backward needs."""
        saved: dict[str, AdapterSaved] = {}

        def apply(name: str, values: Tensor) -> Tensor:
            out, adapter_saved = self.products[name].forward(values, adapters.get(name))
            if adapter_saved is not None:
                saved[name] = adapter_saved
            return out

        qkv = apply("qkv", inputs)
        attn_values, attn_weights = ops.attention(qkv, run.layout, run.context.mask_of(self.attention), run.bias)
        residual = inputs
        if is_last and run.rows is not None:
            # Every slot is a key and a value for the rows, but past the attention only the rows are needed.
            attn_values, residual = attn_values[:, run.rows], inputs[:, run.rows]
        attn_mask, ffn_mask = self._dropout_masks(run, is_last)
        hidden, attn_norm = ops.add_norm(apply("attn_out", attn_values), residual, attn_mask, self.norms[0])
        pre_activation, activation, up_saved = self.products["ffn_up"].forward_with_gelu(hidden, adapters.get("ffn_up"))
        if up_saved is not None:
            saved["ffn_up"] = up_saved
        branch = apply("ffn_down", activation)
        del activation  # the widest tensor of a layer; freed before the norm allocates
        out, ffn_norm = ops.add_norm(branch, hidden, ffn_mask, self.norms[1])
        return out, LayerSaved(
            inputs=inputs,
            qkv=qkv,
            attn_weights=attn_weights,
            attn_values=attn_values if "attn_out" in saved else None,
            attn_norm=attn_norm,
            ffn_inputs=hidden if "ffn_up" in saved else None,
            pre_activation=pre_activation,
            ffn_norm=ffn_norm,
            adapters=saved,
        )

    def _dropout_masks(self, run: EncoderPass, is_last: bool) -> tuple[DropoutMask | None, DropoutMask | None]:
        """The masks after `attn_out` and after `ffn_down`."""
        first, second = (run.context.mask_of(module) for module in self.dropouts)
        return (run.mask_of_rows(first), run.mask_of_rows(second)) if is_last else (first, second)

    def backward(
        self,
        grad: Tensor,
        saved: LayerSaved,
        run: EncoderPass,
        adapters: dict[str, Adapter],
        grads: dict[str, Adapter],
        is_last: bool,
        needs_input_grad: bool,
    ) -> Tensor | None:
        """Write the adapters' gradients to `grads`.

        The steps of `forward` in reverse. A residual connection sends the gradient of its sum two ways: as
        `residual_grad` past the branch, and through the branch. The branch's last product adds its input gradient to
        `residual_grad` in place. Without dropout both are one tensor, which the branch does not read any more by then.

        Args:
            grad: The gradient of the layer's output.
            saved: What forward saved.
            run: The same pass as in forward.
            adapters: The adapters of each product.
            grads: Where their gradients are written.
            is_last: Whether this is the last layer, which returns only the rows of `run`.
            needs_input_grad: Whether a layer below needs the gradient of this one's input.

        Returns:
            The gradient of the layer's input, None if it is not needed.
        """
        products = ProductsBackward(self.products, saved, adapters, grads)
        attn_mask, ffn_mask = self._dropout_masks(run, is_last)

        residual_grad, branch_grad = ops.add_norm_backward(grad, saved.ffn_norm, ffn_mask, self.norms[1])
        wide_grad, low_rank_grad, activation = products.through_gelu("ffn_down", branch_grad, saved.pre_activation)
        products.down("ffn_down", low_rank_grad, activation)
        del activation  # the widest tensor of a layer
        hidden_grad, low_rank_grad = products.through("ffn_up", wide_grad, accumulate=residual_grad)
        products.down("ffn_up", low_rank_grad, saved.ffn_inputs)

        residual_grad, branch_grad = ops.add_norm_backward(hidden_grad, saved.attn_norm, attn_mask, self.norms[0])
        attn_values_grad, low_rank_grad = products.through("attn_out", branch_grad)
        products.down("attn_out", low_rank_grad, saved.attn_values)
        if is_last and run.rows is not None:
            attn_values_grad = _scatter(attn_values_grad, run.rows, saved.inputs)
            residual_grad = _scatter(residual_grad, run.rows, saved.inputs)

        mask = run.context.mask_of(self.attention)
        qkv_grad = ops.attention_backward(attn_values_grad, saved.qkv, saved.attn_weights, run.layout, mask)
        if needs_input_grad:
            input_grad, low_rank_grad = products.through("qkv", qkv_grad, accumulate=residual_grad)
        else:
            input_grad, low_rank_grad = None, products.outputs("qkv", qkv_grad)[1]
        products.down("qkv", low_rank_grad, saved.inputs)
        return input_grad


def _scatter(values: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """The rows' gradients `[K, B, d]` at their slots in `[K, S, d]`, zero elsewhere.

    A padded batch has entries without a sequence: their row is slot 0 and their gradient is zero, so they add nothing.
    """
    return values.new_zeros(like.shape).index_add_(1, rows, values)


def _linear(module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear) or module.bias is None:
        raise AttributeError("not a linear layer with a bias")
    return module


class Encoder:
    """All layers of a model of the family.

    Attributes:
        module_names: For each product its linears, layer by layer, by their names in the model.
    """

    def __init__(self, model: Any, context: ForwardContext, architecture: Architecture) -> None:
        self.model, self.context = model, context
        self.heads = int(model.config.num_attention_heads)
        self.scale = (int(model.config.hidden_size) // self.heads) ** -0.5
        self.layers = [Layer(module, architecture) for module in model.encoder.layer]
        self.distance_biases = architecture.biases_of_all_distances(model)
        names = {id(module): name for name, module in model.named_modules()}
        self.module_names = {
            product: [[names[id(module)] for module in layer.products[product].modules] for layer in self.layers]
            for product in architecture.products
        }

    @classmethod
    def from_model(cls, model: Any, context: ForwardContext) -> Encoder | None:
        """The encoder of a model of the family; None if the model is of another form."""
        config = model.config
        if getattr(config, "hidden_act", None) != "gelu" or getattr(config, "is_decoder", False):
            return None
        if not {"embeddings", "encoder"} <= {name for name, _ in model.named_children()}:
            return None
        architecture = architectures.of(model)
        if architecture is None:
            return None
        try:
            return cls(model, context, architecture)
        except AttributeError:
            return None

    def embed(self, ids: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        """The embeddings `[1, S, d]`, which are the same for all cells."""
        type_ids = {} if types is None else {"token_type_ids": types[None]}
        hidden: Tensor = self.model.embeddings(input_ids=ids[None], position_ids=positions[None], **type_ids)
        project = getattr(self.model, "embeddings_project", None)  # ELECTRA's, where embeddings are narrower
        return hidden if project is None else project(hidden)

    def encode(
        self, hidden: Tensor, segments: Tensor, width: int, updates: Mapping[Family, Operands], rows: Tensor | None
    ) -> Tensor:
        """Run all layers; differentiable with respect to the updates.

        Args:
            hidden: The embeddings `[K, S, d]`.
            segments: The sequence of each slot, `[S]`.
            width: Slots per window.
            updates: The adapters of all layers, by family.
            rows: The slots whose hidden states are needed; None for all.

        Returns:
            The hidden states `[K, rows, d]` of the last layer.
        """
        layout = AttentionLayout(segments, width, self.heads, self.scale, self.distance_biases)
        run = EncoderPass(layout, self.context, self.context.attention_bias(None, hidden.dtype), rows)
        specs = {family.name: self._spec(family, operands) for family, operands in updates.items()}
        flat = (value for operands in updates.values() for value in operands if value is not None)
        encoded: Tensor = _Encode.apply(self, hidden, run, specs, *flat)
        return encoded

    def _spec(self, family: Family, operands: Operands) -> AdapterSpec:
        names = self.module_names[family.name][0]
        fields = tuple(field for field, value in operands._asdict().items() if value is not None)
        if operands.stretch is not None and len(names) > 1:
            raise ValueError(f"{', '.join(names)} read one input: it cannot be stretched for one of them")
        return AdapterSpec(tuple(names.index(name) for name in family.products[0]), fields)

    def forward(
        self, hidden: Tensor, run: EncoderPass, adapters: list[dict[str, Adapter]], saved: list[LayerSaved] | None
    ) -> Tensor:
        """Run the layers in order. What each one's backward needs is appended to `saved`, if there is one."""
        for index, layer in enumerate(self.layers):
            hidden, layer_saved = layer.forward(hidden, run, adapters[index], index == len(self.layers) - 1)
            if saved is not None:
                saved.append(layer_saved)
            del layer_saved  # without a backward pass it would hold this layer's activations while the next one runs
        return hidden


def split_by_layer(specs: Mapping[str, AdapterSpec], flat: Sequence[Tensor], layers: int) -> list[dict[str, Adapter]]:
    """The adapters by layer and product, as views of the stacked operands that `Encoder.encode` flattens."""
    tensors = iter(flat)
    stacked = {name: {field: next(tensors) for field in spec.fields} for name, spec in specs.items()}
    return [
        {
            name: Adapter(specs[name].linears, **{field: value[layer] for field, value in operands.items()})
            for name, operands in stacked.items()
        }
        for layer in range(layers)
    ]


class _Encode(torch.autograd.Function):
    """`Encoder.encode` for autograd, whose function takes and returns a flat list of tensors."""

    @staticmethod
    def forward(
        ctx: Any, encoder: Encoder, hidden: Tensor, run: EncoderPass, specs: dict[str, AdapterSpec], *flat: Tensor
    ) -> Tensor:
        ctx.encoder, ctx.run, ctx.specs, ctx.flat = encoder, run, specs, flat
        ctx.layers_saved = [] if any(ctx.needs_input_grad) else None
        return encoder.forward(hidden, run, split_by_layer(specs, flat, len(encoder.layers)), ctx.layers_saved)

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        encoder, layers_saved = ctx.encoder, ctx.layers_saved
        count = len(encoder.layers)
        # Each layer writes its part of the stacked gradients, so nothing has to be joined at the end.
        flat_grads = [torch.empty_like(tensor) for tensor in ctx.flat]
        adapters = split_by_layer(ctx.specs, ctx.flat, count)
        grads = split_by_layer(ctx.specs, flat_grads, count)
        grad = output_grads[0].contiguous()
        for index in reversed(range(count)):
            # pop() frees a layer's activations as soon as its backward is done; the embeddings need no gradient.
            grad = encoder.layers[index].backward(
                grad,
                layers_saved.pop(),
                ctx.run,
                adapters[index],
                grads[index],
                is_last=index == count - 1,
                needs_input_grad=index > 0,
            )
        return None, None, None, None, *flat_grads
