"""What makes an unmodified transformers encoder run on windows: its attention function and its dropout.

`register()` registers our attention function with transformers' `AttentionInterface`, and a mask function that builds
no mask. The attention function reads the current `ForwardContext`, which `attach` puts on every module. Attention
biases and dropout masks are made once per step and shared by all cells of the pack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from lora_bench.engine.masks import DropoutMask, Masks, Site

NAME = "lora_bench_windows"
_OVERRIDDEN = "lora_bench_overridden"  # of a module: the methods that `override` has replaced


@dataclass
class ForwardContext:
    """The state of the forward pass in progress: its windows and, while training, its dropout masks.

    Attributes:
        width: Slots per window.
        segments: The sequence of each slot, `[S]`; -1 for an empty slot.
        masks: The masks of this step; None outside of training.
        recorded_sites: While the dropout sites of a model are being recorded, those so far; else None.
    """

    width: int = 1
    segments: Tensor | None = None
    masks: Masks | None = None
    recorded_sites: list[Site] | None = None
    _biases: dict[int | None, Tensor] = field(default_factory=dict)
    _site_indices: dict[nn.Module, list[int]] = field(default_factory=dict)
    _calls: dict[nn.Module, int] = field(default_factory=dict)

    def begin(self, segments: Tensor, width: int, masks: Masks | None) -> None:
        """Start a forward pass over the slots of these segments."""
        self.segments, self.width, self.masks = segments, width, masks
        self._biases.clear()
        self._calls.clear()

    @property
    def dropout_on(self) -> bool:
        """Whether dropout is applied, or its sites are being recorded."""
        return self.masks is not None or self.recorded_sites is not None

    def attention_bias(self, reach: int | None, dtype: torch.dtype) -> Tensor:
        """The bias added to attention scores, `[n, W, W]`: 0 where a slot attends to another, -inf elsewhere.

        Args:
            reach: Slots of one sequence attend to each other if they lie less than `reach` apart (a sliding window);
                None for any distance.
            dtype: The type of the scores.
        """
        if reach not in self._biases:
            self._biases[reach] = self._make_bias(reach, dtype)
        return self._biases[reach]

    def _make_bias(self, reach: int | None, dtype: torch.dtype) -> Tensor:
        if self.segments is None:
            raise RuntimeError("the encoder runs inside Backbone.encode only")
        segments = self.segments.view(-1, self.width)
        hidden = segments[:, :, None] != segments[:, None, :]
        if reach is not None:
            slots = torch.arange(self.width, device=hidden.device)  # a sequence fills consecutive slots
            hidden = hidden | ((slots[:, None] - slots[None, :]).abs() >= reach)
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))

    def next_mask(self, module: nn.Module, site: Site) -> DropoutMask | None:
        """The mask of a module's dropout; None while sites are recorded.

        A module that runs several times per step, as ALBERT's shared layer does, gets a mask of its own in each call.
        """
        if self.recorded_sites is not None:
            self._site_indices.setdefault(module, []).append(len(self.recorded_sites))
            self.recorded_sites.append(site)
            return None
        call = self._calls.get(module, 0)
        self._calls[module] = call + 1
        return self.mask_of(module, call)

    def mask_of(self, module: nn.Module, call: int = 0) -> DropoutMask | None:
        """The mask of the `call`-th dropout of a module in this step; None if there is none."""
        if self.masks is None or self.segments is None or module not in self._site_indices:
            return None
        return self.masks.site_mask(self._site_indices[module][call], len(self.segments) // self.width)


class SharedDropout(nn.Module):
    """Dropout with one mask for all cells: `[K, S, d]` is multiplied by a mask `[S, d]`."""

    def __init__(self, p: float, context: ForwardContext) -> None:
        super().__init__()
        self.p = p
        self.context = context

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply dropout while the context has masks; otherwise return the input."""
        if self.p == 0 or not self.context.dropout_on:
            return hidden
        mask = self.context.next_mask(self, Site("hidden", hidden.shape[-1], self.p))
        return hidden if mask is None else hidden * mask.factor(hidden.dtype).view(hidden.shape[1:])


def windowed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,  # noqa: ARG001  (transformers' signature)
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within windows, with the signature that transformers calls.

    Args:
        module: The attention module; it carries the `ForwardContext`.
        query: `[K, H, S, D]`, as `key` and `value`.
        key: See `query`.
        value: See `query`.
        attention_mask: Ignored; the context's segments say what attends to what.
        dropout: The module's rate of dropout on the attention weights.
        scaling: What scores are multiplied by; 1 / √D by default.
        sliding_window: See `reach` of `ForwardContext.attention_bias`.
        position_bias: What is added to the scaled scores, `[H, 1, W, W]` for every cell and window, or
            `[K, H, n, W, W]`.

    Returns:
        The outputs `[K, S, H, D]`, and None in place of the attention weights.
    """
    context: ForwardContext = module.lora_bench_context  # type: ignore[assignment]  # set by attach()
    shape = query.shape
    query, key, value = (heads.unflatten(2, (-1, context.width)) for heads in (query, key, value))
    scores = query @ key.mT * (shape[-1] ** -0.5 if scaling is None else scaling)
    exact = torch.promote_types(scores.dtype, torch.float32)  # softmax never in bfloat16
    scores = scores + context.attention_bias(sliding_window, scores.dtype)
    scores = scores if position_bias is None else scores + position_bias
    weights = scores.softmax(-1, dtype=exact).to(value.dtype)
    if dropout > 0 and context.dropout_on:
        mask = context.next_mask(module, Site("attention", shape[1], dropout))
        weights = weights if mask is None else weights * mask.factor(weights.dtype).transpose(0, 1)
    return (weights @ value).reshape(shape).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def register() -> None:
    """Register the attention function with transformers under `NAME`."""
    AttentionInterface.register(NAME, windowed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def attach(model: nn.Module, context: ForwardContext) -> None:
    """Give every module of the encoder the context, and replace its dropout by dropout that all cells share."""
    for module in model.modules():
        module.lora_bench_context = context  # type: ignore[assignment]
    replace_dropout(model, lambda dropout: SharedDropout(dropout.p, context))


def override(module: nn.Module, method: str, function: Callable[..., Any]) -> None:
    """Replace a method of one module, until `detach`."""
    module.__dict__.setdefault(_OVERRIDDEN, set()).add(method)
    setattr(module, method, function)


def detach(model: nn.Module) -> None:
    """Give the encoder its own dropout and methods again."""
    for name, module in list(model.named_modules()):
        for method in module.__dict__.pop(_OVERRIDDEN, ()):
            delattr(module, method)
        if isinstance(module, SharedDropout):
            model.set_submodule(name, nn.Dropout(module.p))


def replace_dropout(model: nn.Module, make: Callable[[nn.Dropout], nn.Module]) -> None:
    """Replace every `nn.Dropout` of the model by what `make` returns for it."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, make(module))
