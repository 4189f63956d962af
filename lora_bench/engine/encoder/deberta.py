"""DeBERTa v1, v2 and v3 on windows: attention scores that depend on the distance of two tokens and on their content.

He et al. 2021 (arXiv 2006.03654, section 3.1) add two terms to the scores of BERT's layer. With δ(i, j) the bucket of
the distance i − j, and one table of embeddings of buckets for all layers, projected to keys and queries in each,

    score(i, j) = (qᵢ · kⱼ + qᵢ · key(δ(i, j)) + kⱼ · query(δ(i, j))) / √(D · terms)

as transformers computes it; the paper has δ(j, i) in the last term.

The products with the table are computed once for each distance within a window, `[W, 2W - 1]`, and then shifted row by
row into `[W, W]`, which takes no gather. transformers' code computes them for all rows of the table, gathers, and calls
no attention function that could be replaced, so three of its methods are.

Adapters of the key and query weights apply to the table, too, where these weights project it (`share_att_key`): the
table is projected for each cell, through the linears of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from lora_bench.engine.encoder.attention import ForwardContext, override, windowed_attention
from lora_bench.engine.masks import Site

Projection = Callable[[Tensor], Tensor]


def attend_within_windows(model: Any, context: ForwardContext) -> None:
    """Make a model of the family run on windows."""
    # Masks and distances `[S, S]` of all slots of a batch are not needed, and would be large.
    override(model.encoder, "get_attention_mask", lambda *_: None)
    override(model.encoder, "get_rel_pos", lambda *_: None)
    attend = _attend_v1 if model.config.model_type == "deberta" else _attend_v2
    for layer in model.encoder.layer:
        override(layer.attention.self, "forward", partial(attend, layer.attention.self, context))


def _attend_v2(
    module: Any, context: ForwardContext, hidden: Tensor, *_: Any, rel_embeddings: Tensor | None = None, **__: Any
) -> tuple[Tensor, None]:
    """`DisentangledSelfAttention.forward` of DeBERTa v2 and v3."""
    query, key, value = (
        linear(hidden).unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2)
        for linear in (module.query_proj, module.key_proj, module.value_proj)
    )
    shared, kinds = module.share_att_key, module.pos_att_type
    to_key: Projection | None = None
    to_query: Projection | None = None
    if "c2p" in kinds:
        to_key = module.key_proj if shared else module.pos_key_proj
    if "p2c" in kinds:
        to_query = module.query_proj if shared else module.pos_query_proj
    terms = 1 + ("c2p" in kinds) + ("p2c" in kinds)
    return _attend(module, context, _Heads(query, key, value), rel_embeddings, to_key, to_query, terms)


def _attend_v1(
    module: Any, context: ForwardContext, hidden: Tensor, *_: Any, rel_embeddings: Tensor | None = None, **__: Any
) -> tuple[Tensor, None]:
    """`DisentangledSelfAttention.forward` of DeBERTa v1, which has one weight for queries, keys and values."""
    if module.talking_head:
        raise NotImplementedError("talking heads")  # the encoder runs on padded rows then
    joined = module.in_proj(hidden).unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2)
    query, key, value = joined.chunk(3, dim=-1)
    query, value = (
        states + bias.unflatten(-1, (module.num_attention_heads, 1, -1)).to(states.dtype)
        for states, bias in ((query, module.q_bias), (value, module.v_bias))
    )
    kinds = module.pos_att_type
    to_key = module.pos_proj if "c2p" in kinds else None
    to_query = module.pos_q_proj if "p2c" in kinds else None
    return _attend(module, context, _Heads(query, key, value), rel_embeddings, to_key, to_query, 1 + len(kinds))


class _Heads(NamedTuple):
    """Queries, keys and values of all heads, `[K, H, S, D]` each."""

    query: Tensor
    key: Tensor
    value: Tensor


def _attend(
    module: Any,
    context: ForwardContext,
    heads: _Heads,
    table: Tensor | None,
    to_key: Projection | None,
    to_query: Projection | None,
    terms: int,
) -> tuple[Tensor, None]:
    """Attention with the terms of distances; what both versions of the module return.

    Args:
        module: The attention module.
        context: The forward pass in progress.
        heads: Queries, keys and values.
        table: The embeddings of all buckets, `[buckets, d]`; None in a model without them.
        to_key: Projects the table to keys; None without that term.
        to_query: Projects the table to queries; None without that term.
        terms: How many terms the scores have, as the module counts them.
    """
    query, key, _ = heads
    scaling = 1 / float(np.sqrt(np.float32(query.shape[-1] * terms)))  # transformers takes the root in float32
    biases = None
    if table is not None and module.relative_attention:
        rows, index = _rows_of_distances(module, context, table)
        rows = rows.expand(len(query), -1, -1)
        windows_of_query, windows_of_key = (states.unflatten(2, (-1, context.width)) for states in (query, key))
        if to_key is not None:
            biases = _shift(windows_of_query @ _project(module, to_key, rows, index).flip(-2).mT)
        if to_query is not None:
            by_key = _shift(windows_of_key @ _project(module, to_query, rows, index).mT).mT
            biases = by_key if biases is None else biases + by_key
    values, _weights = windowed_attention(
        module,
        *heads,
        dropout=module.dropout.p,
        scaling=scaling,
        position_bias=None if biases is None else biases * scaling,
    )
    return values.flatten(2), None


def _rows_of_distances(module: Any, context: ForwardContext, table: Tensor) -> tuple[Tensor, Tensor]:
    """What a window needs of the table.

    Returns:
        The rows `[P, d]` of the buckets that occur within a window, with their dropout, and the index `[2W - 1]` among
        them of every distance from `1 - W` to `W - 1`.
    """
    span = getattr(module, "pos_ebd_size", module.max_relative_positions)
    distances = torch.arange(1 - context.width, context.width, device=table.device)
    if getattr(module, "position_buckets", -1) > 0:
        distances = make_log_bucket_position(distances, module.position_buckets, module.max_relative_positions).long()
    buckets = (distances + span).clamp_(0, 2 * span - 1)
    first = buckets[0].clone()
    rows = table[first : buckets[-1] + 1]
    rate = module.pos_dropout.p
    if rate > 0 and context.dropout_on:
        # All cells and windows share the mask of a row. There are at most 2W - 1 rows, so the values that a dropout of
        # 2d features has in the first window are enough.
        mask = context.next_mask(module.pos_dropout, Site("hidden", 2 * table.shape[-1], rate))
        if mask is not None:
            kept = mask._replace(kept=mask.kept[0].reshape(-1, table.shape[-1])[: len(rows)])
            rows = rows * kept.factor(rows.dtype)
    return rows, buckets - first


def _project(module: Any, projection: Projection, rows: Tensor, index: Tensor) -> Tensor:
    """Keys or queries of every distance, `[K, H, 1, 2W - 1, D]`, from rows of the table, `[K, P, d]`."""
    heads: Tensor = projection(rows).unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2)
    if len(index) != heads.shape[-2]:  # distances that share a bucket
        heads = heads[:, :, index]
    return heads[:, :, None]


def _shift(rows: Tensor) -> Tensor:
    """Move row r of `[…, W, 2W - 1]` to the left by W - 1 - r, and keep W columns.

    Entry (r, c) of the result is entry (r, c + W - 1 - r) of `rows`, so its rows begin 2W - 2 values apart in memory:
    it is a view of the flattened rows.
    """
    width = rows.shape[-2]
    if width == 1:
        return rows
    flat = rows.flatten(-2)[..., width - 1 : width - 1 + width * (2 * width - 2)]
    shifted: Tensor = flat.unflatten(-1, (width, 2 * width - 2))[..., :width]
    return shifted
