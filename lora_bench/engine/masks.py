"""Dropout masks of a step: drawn at once, shared by all cells, independent of everything but the batch.

A buffer holds, window by window, the masks of every dropout site of the encoder. A step of `n` windows draws the first
`n` windows of it, so its masks are a function of (stream, n): neither the pack, nor padding the batch with empty
windows, nor replaying a CUDA graph changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

HEAD_SITES = 2


class Site(NamedTuple):
    """One dropout of the encoder: on hidden states of `size` features, or on the attention weights of `size` heads."""

    kind: Literal["hidden", "attention"]
    size: int
    rate: float

    def values(self, width: int) -> int:
        """Mask values a window of `width` slots."""
        return self.size * width * (width if self.kind == "attention" else 1)


class Keep(NamedTuple):
    """What a dropout keeps: a boolean mask, and what the kept values are multiplied by."""

    mask: Tensor
    scale: float

    def factor(self, dtype: torch.dtype) -> Tensor:
        """The mask as a factor: 0 or `scale`."""
        return self.mask.to(dtype).mul_(self.scale)


class Masks:
    """Room for the masks of batches of at most `windows` windows of `width` slots and `rows` sequences."""

    def __init__(
        self, sites: Sequence[Site], width: int, windows: int, head: Site, rows: int, device: torch.device
    ) -> None:
        self.width = width
        self.sites = tuple(sites)
        self.head = head
        totals: dict[float, int] = {}
        self._places: list[tuple[float, int]] = []
        for site in self.sites:
            start = totals.get(site.rate, 0)
            self._places.append((site.rate, start))
            totals[site.rate] = start + site.values(width)
        self._flat = {
            rate: torch.ones(windows, total, dtype=torch.bool, device=device) for rate, total in totals.items()
        }
        self._rows = torch.ones(rows, HEAD_SITES, head.size, dtype=torch.bool, device=device)

    def draw(self, generator: torch.Generator, windows: int, rows: int) -> Masks:
        """Fill the masks of the first `windows` windows and `rows` rows from the stream."""
        for rate, buffer in self._flat.items():
            if rate:
                _keep(buffer[:windows], rate, generator)
        if self.head.rate:
            _keep(self._rows[:rows], self.head.rate, generator)
        return self

    def site(self, index: int, windows: int) -> Keep:
        """A site's mask: `[windows, width, d]`, or `[windows, heads, width, width]` for attention."""
        site, (rate, start) = self.sites[index], self._places[index]
        part = self._flat[rate][:windows, start : start + site.values(self.width)]
        shape = (site.size, self.width, self.width) if site.kind == "attention" else (self.width, site.size)
        return Keep(part.unflatten(1, shape), 1 / (1 - rate))

    def head_site(self, index: int) -> Keep | None:
        """One of the head's two masks, `[rows, d]`; None if the head drops nothing."""
        return Keep(self._rows[:, index], 1 / (1 - self.head.rate)) if self.head.rate else None


def _keep(mask: Tensor, rate: float, generator: torch.Generator) -> None:
    """Make each value true with probability 1 - `rate`.

    On a CPU, where `bernoulli_` takes six times as long, a value has 16 bits of a random word: the rate is exact to
    2⁻¹⁷.
    """
    if mask.device.type != "cpu":
        mask.bernoulli_(1 - rate, generator=generator)
        return
    words = torch.empty(-(-mask.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    drops = round(rate * 2**16) - 2**15  # of the values of int16, those below it
    torch.ge(words.view(torch.int16)[: mask.numel()].view(mask.shape), drops, out=mask)
