"""What makes an unmodified transformers encoder run on windows: its attention function and its dropout.

`register()` names our attention function to transformers' `AttentionInterface` (and a mask function that makes no
mask). The function reads the current `Step` that `attach` put on every attention module. Masks, for attention and for
dropout, are drawn once a step and shared by all cells of the pack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "lora_bench_windows"


@dataclass
class Step:
    """What the forward pass in progress needs to know: the windows, and the dropout stream while training."""

    width: int = 1
    segments: Tensor | None = None  # [S]
    positions: Tensor | None = None  # [S]
    generator: torch.Generator | None = None
    _bias: dict[int | None, Tensor] = field(default_factory=dict)

    def begin(self, segments: Tensor, positions: Tensor, width: int, generator: torch.Generator | None) -> None:
        """Start a forward pass over the slots of these segments."""
        self.segments, self.positions, self.width, self.generator = segments, positions, width, generator
        self._bias.clear()

    def bias(self, reach: int | None, dtype: torch.dtype) -> Tensor:
        """`[n, W, W]`: 0 where two slots belong to one sequence (and lie nearer than `reach`), else -inf."""
        if reach not in self._bias:
            self._bias[reach] = self._make_bias(reach, dtype)
        return self._bias[reach]

    def _make_bias(self, reach: int | None, dtype: torch.dtype) -> Tensor:
        if self.segments is None or self.positions is None:
            raise RuntimeError("the encoder runs inside Backbone.encode only")
        segments = self.segments.view(-1, self.width)
        far = segments[:, :, None] != segments[:, None, :]
        if reach is not None:
            positions = self.positions.view(-1, self.width)
            far = far | ((positions[:, :, None] - positions[:, None, :]).abs() >= reach)
        return torch.zeros(far.shape, dtype=dtype, device=far.device).masked_fill_(far, float("-inf"))

    def keep(self, shape: torch.Size | tuple[int, ...], rate: float, like: Tensor) -> Tensor:
        """A dropout mask of that shape, already divided by the rate of keeping."""
        if self.generator is None:
            raise RuntimeError("no dropout stream outside training")
        drawn = torch.rand(shape, generator=self.generator, device=like.device)
        return (drawn >= rate).to(like.dtype).div_(1 - rate)


class SharedDropout(nn.Module):
    """Dropout with one mask for all cells: `[K, S, d]` is multiplied by a mask `[S, d]`."""

    def __init__(self, p: float, step: Step) -> None:
        super().__init__()
        self.p = p
        self.step = step

    def forward(self, hidden: Tensor) -> Tensor:
        """Drop while the step has a dropout stream; otherwise pass through."""
        if self.p == 0 or self.step.generator is None:
            return hidden
        return hidden * self.step.keep(hidden.shape[1:], self.p, hidden)


def windowed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,  # noqa: ARG001  (transformers' signature)
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within windows. Heads come as `[K, H, S, D]`; the result is `[K, S, H, D]`."""
    step: Step = module.lora_bench_step  # type: ignore[assignment]  # put there by attach()
    shape = query.shape
    query, key, value = (heads.unflatten(2, (-1, step.width)) for heads in (query, key, value))
    scores = query @ key.mT * (shape[-1] ** -0.5 if scaling is None else scaling)
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = (scores + step.bias(sliding_window, scores.dtype)).softmax(-1, dtype=exact).to(value.dtype)
    if dropout > 0 and step.generator is not None:
        weights = weights * step.keep(weights.shape[1:], dropout, weights)
    return (weights @ value).reshape(shape).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def register() -> None:
    """Make the attention function known to transformers under `NAME`."""
    AttentionInterface.register(NAME, windowed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def attach(model: nn.Module, step: Step) -> None:
    """Give every module of the encoder the step, and put shared dropout in the place of its own."""
    for module in model.modules():
        module.lora_bench_step = step  # type: ignore[assignment]
    replace_dropout(model, lambda dropout: SharedDropout(dropout.p, step))


def replace_dropout(model: nn.Module, make: Callable[[nn.Dropout], nn.Module]) -> None:
    """Replace every `nn.Dropout` of the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, make(module))
