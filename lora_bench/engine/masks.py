"""Dropout masks of a step: drawn at once, shared by all cells, independent of everything but the batch.

A buffer holds, window by window, the masks of every dropout site of the encoder. A step of `n` windows draws the first
`n` windows of it, so its masks are a function of (random stream, n): neither the pack, nor padding the batch with empty
windows, nor replaying a CUDA graph changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

HEAD_SITES = 2  # the classification head has dropout before its dense layer and before its projection


class Site(NamedTuple):
    """One dropout of the encoder.

    Attributes:
        kind: Whether it is applied to hidden states or to attention weights.
        size: Features of the hidden states, or the number of attention heads.
        rate: The probability that a value is dropped.
    """

    kind: Literal["hidden", "attention"]
    size: int
    rate: float

    def values(self, width: int) -> int:
        """Mask values per window of `width` slots."""
        return self.size * width * (width if self.kind == "attention" else 1)


class DropoutMask(NamedTuple):
    """What one dropout keeps.

    Attributes:
        kept: Boolean, true for values that are kept.
        scale: What kept values are multiplied by, 1 / (1 - rate).
    """

    kept: Tensor
    scale: float

    def factor(self, dtype: torch.dtype) -> Tensor:
        """The mask as a factor: 0 or `scale`."""
        return self.kept.to(dtype).mul_(self.scale)


class Masks:
    """Buffers for the masks of batches up to a given size, and the masks in them.

    Args:
        sites: The encoder's dropouts in the order in which a forward pass comes to them.
        width: Slots per window.
        windows: The largest number of windows of a batch.
        head: The dropout of the classification head.
        rows: The largest number of sequences of a batch.
        device: Where the buffers are.
    """

    def __init__(
        self, sites: Sequence[Site], width: int, windows: int, head: Site, rows: int, device: torch.device
    ) -> None:
        self.width = width
        self.sites = tuple(sites)
        self.head = head
        # One buffer per dropout rate, so that a step draws all masks of a rate with one call. A site's masks start at
        # the same offset in every window's row of the buffer.
        totals: dict[float, int] = {}
        self._offsets: list[tuple[float, int]] = []
        for site in self.sites:
            start = totals.get(site.rate, 0)
            self._offsets.append((site.rate, start))
            totals[site.rate] = start + site.values(width)
        self._buffers = {
            rate: torch.ones(windows, total, dtype=torch.bool, device=device) for rate, total in totals.items()
        }
        self._head_buffer = torch.ones(rows, HEAD_SITES, head.size, dtype=torch.bool, device=device)
        self._stream = torch.Generator(device)

    def draw(self, generator: torch.Generator, windows: int, rows: int) -> Masks:
        """Fill the masks of the first `windows` windows and `rows` sequences from the random stream.

        `draw_mask` goes on from where the stream is then.
        """
        self._stream = generator
        for rate, buffer in self._buffers.items():
            if rate:
                _draw(buffer[:windows], rate, generator)
        if self.head.rate:
            _draw(self._head_buffer[:rows], self.head.rate, generator)
        return self

    def draw_mask(self, shape: Sequence[int], rate: float, device: torch.device) -> DropoutMask:
        """A mask of any shape, the next one of the random stream: for encoders that do not run on windows."""
        kept = torch.empty(tuple(shape), dtype=torch.bool, device=device)
        _draw(kept, rate, self._stream)
        return DropoutMask(kept, 1 / (1 - rate))

    def site_mask(self, index: int, windows: int) -> DropoutMask:
        """A site's mask: `[windows, width, d]`, or `[windows, heads, width, width]` for attention."""
        site, (rate, start) = self.sites[index], self._offsets[index]
        flat = self._buffers[rate][:windows, start : start + site.values(self.width)]
        shape = (site.size, self.width, self.width) if site.kind == "attention" else (self.width, site.size)
        return DropoutMask(flat.unflatten(1, shape), 1 / (1 - rate))

    def head_mask(self, index: int) -> DropoutMask | None:
        """One of the head's two masks, `[rows, d]`; None if the head has no dropout."""
        return DropoutMask(self._head_buffer[:, index], 1 / (1 - self.head.rate)) if self.head.rate else None


def _draw(mask: Tensor, rate: float, generator: torch.Generator) -> None:
    """Make each value true with probability 1 - `rate`, in place.

    On a CPU `bernoulli_` takes six times as long as this: each value gets 16 bits of a random 64-bit word and is kept
    if these are not among the lowest `rate` · 2¹⁶ numbers, so that the rate is exact to 2⁻¹⁷.
    """
    if mask.device.type != "cpu":
        mask.bernoulli_(1 - rate, generator=generator)
        return
    words = torch.empty(-(-mask.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    threshold = round(rate * 2**16) - 2**15  # int16 starts at -2¹⁵
    torch.ge(words.view(torch.int16)[: mask.numel()].view(mask.shape), threshold, out=mask)
