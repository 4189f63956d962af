"""MPNet: BERT's layer with a bias on the attention scores that depends on the distance of two tokens.

One table `[buckets, heads]` serves all layers. Distances up to 7 in each direction have a bucket of their own, larger
ones share buckets that grow with the logarithm (Raffel et al. 2020, arXiv 1910.10683, section 2.1; the same as T5's,
with 128 as the largest distance). Within a window a sequence fills consecutive slots, so the distance of two tokens is
that of their slots, and the bias of a window is a Toeplitz matrix.

transformers' code of this family does not call an attention function that could be replaced, so two of its methods are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lora_bench.engine.encoder.attention import ForwardContext, override, windowed_attention
from lora_bench.engine.kernels.ops import toeplitz


def distance_biases(encoder: Any, longest: int) -> Tensor:
    """The bias of every distance, `[heads, 2 · longest - 1]`: of a key that is `longest - 1` slots before the query
    first, of one that is as many after it last."""
    weight = encoder.relative_attention_bias.weight
    distances = torch.arange(1 - longest, longest, device=weight.device)
    biases: Tensor = encoder.relative_attention_bias(encoder.relative_position_bucket(distances))
    return biases.T.contiguous()


def attend_within_windows(model: Any, context: ForwardContext) -> None:
    """Make a model of the family run on windows: its biases are those of a window, its attention ours."""
    encoder = model.encoder
    override(encoder, "compute_position_bias", partial(_window_biases, encoder, context))
    for layer in encoder.layer:
        override(layer.attention.attn, "forward", partial(_attend, layer.attention.attn))


def _window_biases(encoder: Any, context: ForwardContext, _: Tensor) -> Tensor:
    """The biases `[heads, 1, width, width]`, the same for all windows; differentiable, for full fine-tuning."""
    return toeplitz(distance_biases(encoder, context.width), context.width)[:, None]


def _attend(
    module: Any, hidden: Tensor, attention_mask: Tensor | None = None, position_bias: Tensor | None = None, **_: Any
) -> tuple[Tensor]:
    """`MPNetSelfAttention.forward`, with our attention."""
    query, key, value = (
        linear(hidden).unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2)
        for linear in (module.q, module.k, module.v)
    )
    rate = module.dropout.p
    values, _weights = windowed_attention(
        module, query, key, value, attention_mask, dropout=rate, position_bias=position_bias
    )
    return (module.o(values.flatten(2)),)
