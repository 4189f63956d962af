"""Frozen bases from the pretrained weights: computed once a backbone and kept.

Signs are fixed (the entry of largest magnitude of every left vector is positive), so that a saved factor that lives
between two bases means the same after they are computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_bench.engine.encoder import targets
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.errors import BenchError


def basis(backbone: Backbone, name: str, kind: str, rank: int) -> Tensor:
    """The leading `rank` directions of a linear: `[rank, in]` for the input kinds, `[out, rank]` for the output kinds.

    Raises:
        BenchError: the weight has fewer directions than `rank`.
    """
    family, _, side = kind.partition("-")
    if family == "length":
        lengths: Tensor = _weight(backbone, name).square().sum(1, keepdim=True).sqrt()
        return lengths
    parts = _parts(backbone, name, {"root": "svd", "unit": "svd"}.get(family, family))
    available = parts[0].shape[1]
    require(rank, available, name)
    if family == "qr":
        return parts[1][:rank] if side == "input" else parts[0][:, :rank]
    if family == "common":
        return parts[0][:, :rank]
    left, values, right = parts[0][:, :rank], parts[1][:rank], parts[2][:, :rank]
    if family == "root":
        return (left * values.sqrt()).mT if side == "input" else right * values.sqrt()
    if family == "unit":
        return left.mT
    return (left * values).mT if side == "input" else right


def require(rank: int, available: int, name: str) -> None:
    """Refuse more directions than a weight has."""
    if rank > available:
        raise BenchError(
            f"{rank} directions are more than {name} has ({available}).", "Use a smaller --rank (or --a and --b)."
        )


def _parts(backbone: Backbone, name: str, family: str) -> tuple[Tensor, ...]:
    """U, S, V of Wᵀ (`svd`), Q, R of W (`qr`), or the left vectors of the joined weights (`common`); kept."""
    if (name, family) not in backbone.bases:
        together = _together(backbone, name) if family == "common" else [name]
        made = _decomposed(backbone, together, family)
        backbone.bases.update({(other, family): made for other in together})
    return backbone.bases[name, family]


def _decomposed(backbone: Backbone, names: list[str], family: str) -> tuple[Tensor, ...]:
    weights = [_weight(backbone, name) for name in names]
    if family == "qr":
        return tuple(torch.linalg.qr(weights[0]))
    if family == "svd":
        return svd(weights[0].mT)
    left = (svd(torch.cat(weights, dim=1).mT) if len(names) > 1 else _parts(backbone, names[0], "svd"))[2]
    return (left * _signs(left),)


def _weight(backbone: Backbone, name: str) -> Tensor:
    return backbone.linears()[name].weight.detach().to(backbone.exact)


def _together(backbone: Backbone, name: str) -> list[str]:
    """The weights of the layer's `[Wq | Wk | Wv]` for queries, keys and values; another weight stands alone."""
    if not targets.is_attention_input(name):
        return [name]
    linears, layer = backbone.linears(), targets.layer_of(name)
    own = [other for other in linears if targets.layer_of(other) == layer and targets.is_attention_input(other)]
    return own if len({linears[other].out_features for other in own}) == 1 else [name]


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V (not Vᵀ) of `matrix`, signs fixed."""
    wide = matrix.shape[0] < matrix.shape[1]  # LAPACK takes three times as long for a wide matrix as for a tall one
    left, values, right = torch.linalg.svd(matrix.mT if wide else matrix, full_matrices=False)
    left, right = (right.mT, left) if wide else (left, right.mT)
    signs = _signs(left)
    return (left * signs).contiguous(), values, (right * signs).contiguous()


def _signs(left: Tensor) -> Tensor:
    """`[1, n]`: what makes the entry of largest magnitude of every column positive."""
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(left.dtype)
