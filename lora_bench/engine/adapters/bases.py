"""Frozen bases from the pretrained weights, computed once per backbone and cached there.

Singular vectors are unique up to their sign only. Here the sign is fixed (the entry of largest magnitude of every left
vector is positive), so that a saved factor that was trained between two bases still fits when they are recomputed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_bench.engine.encoder import targets
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.errors import BenchError
from lora_bench.methods.recipe import Decomposition, Side

ONLY_SIDE: dict[Decomposition, Side] = {"row-norms": "output", "column-norms": "input", "joint-svd": "output"}


def basis(backbone: Backbone, name: str, decomposition: Decomposition, side: Side, rank: int) -> Tensor:
    """The leading `rank` directions of a weight, as `recipe.Basis` defines them.

    Args:
        backbone: The encoder; its `bases` caches the decompositions.
        name: The linear layer.
        decomposition: How the weight is decomposed.
        side: `input` for rows `[rank, in]`, `output` for columns `[out, rank]`.
        rank: How many directions.

    Raises:
        BenchError: The weight has fewer directions than `rank`.
        ValueError: This decomposition has no such side.
    """
    if ONLY_SIDE.get(decomposition, side) != side:
        raise ValueError(f"there is no {decomposition} basis on the {side} side")
    if decomposition in ("row-norms", "column-norms"):
        over = 1 if decomposition == "row-norms" else 0
        norms: Tensor = _weight(backbone, name).square().sum(over, keepdim=True).sqrt()
        return norms
    if decomposition == "qr":
        q, r = _decomposition(backbone, name, "qr")
        require_directions(rank, q.shape[1], name)
        return r[:rank] if side == "input" else q[:, :rank]
    if decomposition == "joint-svd":
        (vectors,) = _decomposition(backbone, name, "joint")
        require_directions(rank, vectors.shape[1], name)
        return vectors[:, :rank]
    left, values, right = _decomposition(backbone, name, "svd")
    require_directions(rank, left.shape[1], name)
    chosen = slice(len(values) - rank, None) if decomposition in ("minor-vectors", "minor-svd") else slice(rank)
    left, values, right = left[:, chosen], values[chosen], right[:, chosen]
    if decomposition == "balanced-svd":
        return (left * values.sqrt()).mT if side == "input" else right * values.sqrt()
    if side == "output":
        return right
    return (left * values).mT if decomposition in ("svd", "minor-svd") else left.mT


def require_directions(rank: int, available: int, name: str) -> None:
    """Refuse more directions than a weight has.

    Raises:
        BenchError: `rank` is larger than `available`.
    """
    if rank > available:
        raise BenchError(
            f"{rank} directions are more than {name} has ({available}).", "Use a smaller --rank (or --a and --b)."
        )


def _decomposition(backbone: Backbone, name: str, kind: str) -> tuple[Tensor, ...]:
    """`svd`: U, S, V of Wᵀ. `qr`: Q, R of W. `joint`: left singular vectors of [Wq, Wk, Wv]. Cached in the backbone."""
    if (name, kind) not in backbone.bases:
        names = _joined_with(backbone, name) if kind == "joint" else [name]
        parts = _decompose(backbone, names, kind)
        backbone.bases.update({(other, kind): parts for other in names})
    return backbone.bases[name, kind]


def _decompose(backbone: Backbone, names: list[str], kind: str) -> tuple[Tensor, ...]:
    weights = [_weight(backbone, name) for name in names]
    if kind == "qr":
        return tuple(torch.linalg.qr(weights[0]))
    if kind == "svd":
        return svd(weights[0].mT)
    # V of (the joined W)ᵀ = U S Vᵀ are the left singular vectors of W. A weight that is not joined has them already.
    left = (svd(torch.cat(weights, dim=1).mT) if len(names) > 1 else _decomposition(backbone, names[0], "svd"))[2]
    return (left * _signs(left),)


def _weight(backbone: Backbone, name: str) -> Tensor:
    return backbone.linears()[name].weight.detach().to(backbone.exact)


def _joined_with(backbone: Backbone, name: str) -> list[str]:
    """For a query, key or value weight, the layer's three; for any other weight, itself alone."""
    if not targets.is_attention_input(name):
        return [name]
    linears, layer = backbone.linears(), targets.layer_of(name)
    inputs = [other for other in linears if targets.layer_of(other) == layer and targets.is_attention_input(other)]
    return inputs if len({linears[other].out_features for other in inputs}) == 1 else [name]


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V (not Vᵀ) of `matrix`, with the signs fixed."""
    # LAPACK takes three times as long for a wide matrix as for a tall one, so a wide one is transposed first.
    wide = matrix.shape[0] < matrix.shape[1]
    left, values, right = torch.linalg.svd(matrix.mT if wide else matrix, full_matrices=False)
    left, right = (right.mT, left) if wide else (left, right.mT)
    signs = _signs(left)
    return (left * signs).contiguous(), values, (right * signs).contiguous()


def _signs(left: Tensor) -> Tensor:
    """`[1, n]`: the factors ±1 that make the entry of largest magnitude of every column positive."""
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(left.dtype)
