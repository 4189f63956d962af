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


class Site(NamedTuple):
    """One dropout of the encoder, or of the classification head.

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


class _Buffers:
    """Room for the masks of some sites, a row for each window or sequence.

    There is one buffer per dropout rate, so that a step draws all masks of a rate with one call. A site's masks start
    at the same offset in every row of its buffer.

    Args:
        sizes: The rate of each site, and its mask values per row.
        rows: The number of rows.
        device: Where the buffers are.
    """

    def __init__(self, sizes: Sequence[tuple[float, int]], rows: int, device: torch.device) -> None:
        self._sizes = tuple(sizes)
        self._offsets: list[int] = []
        totals: dict[float, int] = {}
        for rate, size in self._sizes:
            self._offsets.append(totals.get(rate, 0))
            totals[rate] = self._offsets[-1] + size
        self._values = {rate: torch.ones(rows, size, dtype=torch.bool, device=device) for rate, size in totals.items()}

    def draw(self, generator: torch.Generator, rows: int) -> None:
        """Fill the first `rows` rows."""
        for rate, values in self._values.items():
            if rate:
                _draw(values[:rows], rate, generator)

    def part(self, index: int, rows: int) -> Tensor:
        """A site's values in the first `rows` rows, `[rows, size]`."""
        (rate, size), offset = self._sizes[index], self._offsets[index]
        return self._values[rate][:rows, offset : offset + size]


class Masks:
    """Buffers for the masks of batches up to a given size, and the masks in them.

    Args:
        sites: The encoder's dropouts in the order in which a forward pass comes to them.
        width: Slots per window.
        windows: The largest number of windows of a batch.
        head: The dropouts of the classification head, all of one size, in the order in which it applies them.
        rows: The largest number of sequences of a batch.
        device: Where the buffers are.
    """

    def __init__(
        self, sites: Sequence[Site], width: int, windows: int, head: Sequence[Site], rows: int, device: torch.device
    ) -> None:
        self.width = width
        self.sites = tuple(sites)
        self.head = tuple(head)
        self._encoder = _Buffers([(site.rate, site.values(width)) for site in self.sites], windows, device)
        self._head = _Buffers([(site.rate, site.size) for site in self.head], rows, device)
        self._stream = torch.Generator(device)

    def draw(self, generator: torch.Generator, windows: int, rows: int) -> Masks:
        """Fill the masks of the first `windows` windows and `rows` sequences from the random stream.

        `draw_mask` continues the stream after them.
        """
        self._stream = generator
        self._encoder.draw(generator, windows)
        self._head.draw(generator, rows)
        return self

    def draw_mask(self, shape: Sequence[int], rate: float, device: torch.device) -> DropoutMask:
        """A mask of any shape, the next one of the random stream: for encoders that do not run on windows."""
        kept = torch.empty(tuple(shape), dtype=torch.bool, device=device)
        _draw(kept, rate, self._stream)
        return DropoutMask(kept, 1 / (1 - rate))

    def site_mask(self, index: int, windows: int) -> DropoutMask:
        """A site's mask: `[windows, width, d]`, or `[windows, heads, width, width]` for attention."""
        site = self.sites[index]
        shape = (site.size, self.width, self.width) if site.kind == "attention" else (self.width, site.size)
        return DropoutMask(self._encoder.part(index, windows).unflatten(1, shape), 1 / (1 - site.rate))

    def head_mask(self, index: int, rows: int) -> DropoutMask | None:
        """The mask of one of the head's dropouts, `[rows, d]`; None if its rate is 0."""
        rate = self.head[index].rate
        return DropoutMask(self._head.part(index, rows), 1 / (1 - rate)) if rate else None


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
