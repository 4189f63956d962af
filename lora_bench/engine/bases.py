"""Frozen bases from the pretrained weights: computed once a backbone and kept.

Signs are fixed (the entry of largest magnitude of every left vector is positive), so that a saved factor that lives
between two bases means the same after they are computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_bench.engine import targets
from lora_bench.engine.backbone import Backbone
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
    left, values, right = parts[0][:, :rank], parts[1][:rank], parts[2][:, :rank]
    if family == "root":
        return (left * values.sqrt()).mT if side == "input" else right * values.sqrt()
    if family == "common":
        return left
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
    """U, S, V of the joined weights (`common`) or of Wᵀ (`svd`), or Q, R of W (`qr`); kept."""
    if (name, family) not in backbone.bases:
        if family == "qr":
            made: tuple[Tensor, ...] = torch.linalg.qr(_weight(backbone, name))
        else:
            made = svd(_joined(backbone, name) if family == "common" else _weight(backbone, name).mT)
        backbone.bases[name, family] = made
    return backbone.bases[name, family]


def _weight(backbone: Backbone, name: str) -> Tensor:
    return backbone.linears()[name].weight.detach().to(backbone.exact)


def _joined(backbone: Backbone, name: str) -> Tensor:
    """`[out, 3 · in]`: for queries, keys and values the layer's `[Wq | Wk | Wv]`; another weight stands alone."""
    own = _weight(backbone, name)
    if not targets.is_attention_input(name):
        return own
    layer = targets.layer_of(name)
    parts = [
        _weight(backbone, other)
        for other in backbone.linears()
        if targets.layer_of(other) == layer and targets.is_attention_input(other)
    ]
    same = all(part.shape[0] == own.shape[0] for part in parts)
    return torch.cat(parts, dim=1) if same else own


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V (not Vᵀ) of `matrix`, signs fixed."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(left.dtype)
    return left * signs, values, (right * signs.mT).mT.contiguous()
