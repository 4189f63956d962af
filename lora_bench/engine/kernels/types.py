"""What the operations of an encoder layer take: frozen norms, what their backward needs, and how slots attend."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Norm(NamedTuple):
    """A frozen layer norm."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: nn.Module) -> Norm:
        """The norm of a module."""
        if not isinstance(module, nn.LayerNorm):
            raise AttributeError("not a layer norm")
        return cls(module.weight, module.bias, module.eps)


class Normed(NamedTuple):
    """What a norm's backward needs: its input `[K, S, d]`, and mean and reciprocal deviation `[K, S, 1]`."""

    summed: Tensor
    mean: Tensor
    rstd: Tensor


class Windows(NamedTuple):
    """How slots attend: `[S]` segments in windows of `width`, over `heads` heads, scores times `scale`."""

    segments: Tensor
    width: int
    heads: int
    scale: float
