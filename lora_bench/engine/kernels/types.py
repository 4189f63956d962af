"""The arguments of an encoder layer's operations: frozen layer norms, what their backward needs, attention layouts."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Norm(NamedTuple):
    """The frozen parameters of a layer norm."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    @classmethod
    def from_module(cls, module: nn.Module) -> Norm:
        """The parameters of an `nn.LayerNorm`.

        Raises:
            AttributeError: The module is not a layer norm.
        """
        if not isinstance(module, nn.LayerNorm):
            raise AttributeError("not a layer norm")
        return cls(module.weight, module.bias, module.eps)


class NormSaved(NamedTuple):
    """What the backward pass of a layer norm needs.

    Attributes:
        summed: The norm's input `[K, S, d]`, the sum of hidden states and residual.
        mean: The mean of each row, `[K, S, 1]`.
        rstd: The reciprocal standard deviation of each row, `[K, S, 1]`.
    """

    summed: Tensor
    mean: Tensor
    rstd: Tensor


class AttentionLayout(NamedTuple):
    """Which slots attend to which: those of the same window and the same segment.

    Attributes:
        segments: The sequence of each slot, `[S]`; -1 for an empty slot.
        width: Slots per window; S is a multiple of it.
        heads: The number of attention heads.
        scale: What scores are multiplied by, 1 / √(head size).
        distance_biases: What is added to the scores by the distance of key and query, `[heads, 2 L - 1]` for distances
            from 1 - L to L - 1 with L ≥ W; None for nothing.
    """

    segments: Tensor
    width: int
    heads: int
    scale: float
    distance_biases: Tensor | None = None
