"""The encoder families that have the hand-written form of `bert`: one record each.

They share one layer. What differs between them is the names of its parts, and whether a bias that depends on the
distance of two tokens is added to the attention scores. A family of this form is added by adding a record; each load
compares the result with the model's own padded forward, so a record that is wrong is refused and not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lora_bench.data.windows import window_size
from lora_bench.engine.encoder import deberta, mpnet
from lora_bench.engine.encoder.attention import ForwardContext


@dataclass(frozen=True)
class Architecture:
    """Where a family of encoders has the parts of the layer that `bert` computes.

    Attributes:
        model_types: Their `model_type` in config.json.
        products: The matrix products of a layer by role (`qkv`, `attn_out`, `ffn_up`, `ffn_down`), and the linears
            that each computes, by their names within the layer.
        attention: The module of a layer whose dropout applies to the attention weights.
        dropouts: The modules of the dropout after `attn_out` and of that after `ffn_down`.
        norms: The modules of the layer norms that follow them.
        distance_biases: From the model's encoder and a number of slots to the biases `[heads, 2 · slots - 1]` that are
            added to attention scores by distance; None where there are none.
    """

    model_types: frozenset[str]
    products: Mapping[str, tuple[str, ...]]
    attention: str
    dropouts: tuple[str, str]
    norms: tuple[str, str]
    distance_biases: Callable[[Any, int], Tensor] | None = None

    @torch.no_grad()
    def biases_of_all_distances(self, model: Any) -> Tensor | None:
        """`distance_biases` of a model for windows of any width, in the type in which softmax is computed."""
        if self.distance_biases is None:
            return None
        biases = self.distance_biases(model.encoder, window_size(model.config.max_position_embeddings))
        return biases.to(torch.promote_types(biases.dtype, torch.float32))


BERT = Architecture(
    model_types=frozenset({"roberta", "bert", "xlm-roberta", "camembert", "electra"}),
    products=MappingProxyType({
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attn_out": ("attention.output.dense",),
        "ffn_up": ("intermediate.dense",),
        "ffn_down": ("output.dense",),
    }),
    attention="attention.self",
    dropouts=("attention.output.dropout", "output.dropout"),
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)  # fmt: skip

MPNET = Architecture(
    model_types=frozenset({"mpnet"}),
    products=MappingProxyType({
        "qkv": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        "attn_out": ("attention.attn.o",),
        "ffn_up": ("intermediate.dense",),
        "ffn_down": ("output.dense",),
    }),
    attention="attention.attn",
    dropouts=("attention.dropout", "output.dropout"),
    norms=("attention.LayerNorm", "output.LayerNorm"),
    distance_biases=mpnet.distance_biases,
)  # fmt: skip

ARCHITECTURES = (BERT, MPNET)

# By model type: what makes transformers' own modules run on windows (`attention`) where they ignore its interface of
# attention functions.
ATTEND_WITHIN_WINDOWS: Mapping[str, Callable[[Any, ForwardContext], None]] = MappingProxyType(
    {
        "mpnet": mpnet.attend_within_windows,
        "deberta": deberta.attend_within_windows,
        "deberta-v2": deberta.attend_within_windows,
    }
)


def of(model: Any) -> Architecture | None:
    """The record of a model: the one of its type, else the first whose names occur in its layers; None without one."""
    for architecture in ARCHITECTURES:
        if model.config.model_type in architecture.model_types:
            return architecture
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    if not layers:
        return None
    names = {name for name, _ in layers[0].named_modules()}
    return next((known for known in ARCHITECTURES if {known.attention, *known.norms} <= names), None)
