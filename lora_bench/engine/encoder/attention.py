"""What makes an unmodified transformers encoder run on windows: its attention function and its dropout.

`register()` names our attention function to transformers' `AttentionInterface` (and a mask function that makes no
mask). The function reads the current `Step` that `attach` put on every attention module. Masks, for attention and for
dropout, are made once a step and shared by all cells of the pack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from lora_bench.engine.masks import Keep, Masks, Site

NAME = "lora_bench_windows"


@dataclass
class Step:
    """What the forward pass in progress needs to know: the windows, and the dropout masks while training."""

    width: int = 1
    segments: Tensor | None = None  # [S]
    masks: Masks | None = None
    found: list[Site] | None = None  # while the sites are being found
    _bias: dict[int | None, Tensor] = field(default_factory=dict)
    _index: dict[nn.Module, list[int]] = field(default_factory=dict)
    _calls: dict[nn.Module, int] = field(default_factory=dict)

    def begin(self, segments: Tensor, width: int, masks: Masks | None) -> None:
        """Start a forward pass over the slots of these segments."""
        self.segments, self.width, self.masks = segments, width, masks
        self._bias.clear()
        self._calls.clear()

    @property
    def drops(self) -> bool:
        """Whether dropout is on."""
        return self.masks is not None or self.found is not None

    def bias(self, reach: int | None, dtype: torch.dtype) -> Tensor:
        """`[n, W, W]`: 0 where two slots belong to one sequence (and lie nearer than `reach`), else -inf."""
        if reach not in self._bias:
            self._bias[reach] = self._make_bias(reach, dtype)
        return self._bias[reach]

    def _make_bias(self, reach: int | None, dtype: torch.dtype) -> Tensor:
        if self.segments is None:
            raise RuntimeError("the encoder runs inside Backbone.encode only")
        segments = self.segments.view(-1, self.width)
        far = segments[:, :, None] != segments[:, None, :]
        if reach is not None:
            slots = torch.arange(self.width, device=far.device)  # a sequence fills consecutive slots
            far = far | ((slots[:, None] - slots[None, :]).abs() >= reach)
        return torch.zeros(far.shape, dtype=dtype, device=far.device).masked_fill_(far, float("-inf"))

    def keep(self, module: nn.Module, site: Site) -> Keep | None:
        """The mask of a module's dropout; a module that runs several times a step (ALBERT's) has one for each."""
        if self.found is not None:
            self._index.setdefault(module, []).append(len(self.found))
            self.found.append(site)
            return None
        call = self._calls.get(module, 0)
        self._calls[module] = call + 1
        return self.site(module, call)

    def site(self, module: nn.Module, call: int = 0) -> Keep | None:
        """The mask of the module's `call`-th dropout of this step; None if there is none."""
        if self.masks is None or self.segments is None or module not in self._index:
            return None
        return self.masks.site(self._index[module][call], len(self.segments) // self.width)


class SharedDropout(nn.Module):
    """Dropout with one mask for all cells: `[K, S, d]` is multiplied by a mask `[S, d]`."""

    def __init__(self, p: float, step: Step) -> None:
        super().__init__()
        self.p = p
        self.step = step

    def forward(self, hidden: Tensor) -> Tensor:
        """Drop while the step has masks; otherwise pass through."""
        if self.p == 0 or not self.step.drops:
            return hidden
        keep = self.step.keep(self, Site("hidden", hidden.shape[-1], self.p))
        return hidden if keep is None else hidden * keep.factor(hidden.dtype).view(hidden.shape[1:])


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
    if dropout > 0 and step.drops:
        keep = step.keep(module, Site("attention", shape[1], dropout))
        weights = weights if keep is None else weights * keep.factor(weights.dtype).transpose(0, 1)
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
