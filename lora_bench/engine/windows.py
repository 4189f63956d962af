"""Batches as windows: whole sequences packed without padding into rows of W tokens.

A batch lies in memory as `S = n · W` slots. Each sequence fills consecutive slots of one window; a slot that no
sequence fills has segment -1 and attends only to other such slots, so it touches no number. The layout depends on the
batch alone, never on the cells that train on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from lora_bench.data import TokenTable

Ints = NDArray[np.int64]


def window_size(longest: int) -> int:
    """W for sequences of at most `longest` tokens: the next power of two, at least 32."""
    return max(32, 1 << (longest - 1).bit_length())


def first_fit(lengths: Sequence[int], width: int) -> tuple[list[int], int]:
    """The slot where each sequence starts, and the number of windows, by first fit in falling order of length."""
    free: list[int] = []
    starts = [0] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        window = next((w for w, room in enumerate(free) if room >= length), len(free))
        if window == len(free):
            free.append(width)
        starts[index] = window * width + width - free[window]
        free[window] -= length
    return starts, len(free)


@dataclass(frozen=True)
class Batch:
    """One batch on the device. `S = windows · width` slots, `B` sequences."""

    ids: Tensor  # [S]
    positions: Tensor  # [S], from 0 within each sequence
    types: Tensor | None  # [S]
    segments: Tensor  # [S], the sequence of each slot, or -1
    first: Tensor  # [B], the slot of each sequence's first token
    labels: Tensor  # [B]
    rows: Ints  # [B], the rows of the table (on the host)
    width: int
    tokens: int


class Table:
    """A task's tokens on a device: one flat array and offsets; a batch is a gather."""

    def __init__(self, table: TokenTable, device: torch.device, pad_id: int) -> None:
        flat = np.append(table.ids, np.int32(pad_id)).astype(np.int64)
        self.ids = torch.from_numpy(flat).to(device)
        types = None if table.types is None else np.append(table.types, np.uint8(0)).astype(np.int64)
        self.types = None if types is None else torch.from_numpy(types).to(device)
        self.labels = torch.from_numpy(np.array(table.labels)).to(device)
        self.offsets: Ints = np.asarray(table.offsets, dtype=np.int64)
        self.lengths: Ints = np.diff(self.offsets)
        self.width = window_size(int(self.lengths.max()))
        self.device = device

    def __len__(self) -> int:
        return len(self.lengths)

    def batches(self, groups: Sequence[Ints]) -> Iterator[Batch]:
        """One batch for each group of rows. All index arrays travel to the device in one copy."""
        starts, sizes = self._layout(groups)
        rows = np.concatenate(groups)
        bases = np.concatenate([[0], np.cumsum(sizes)])
        lengths = self.lengths[rows]
        members = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        slots = self._slots(np.asarray(starts) + bases[members], lengths)
        local = np.concatenate([np.arange(len(group)) for group in groups])
        within = np.arange(len(slots)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        grid = np.full((3, bases[-1]), -1, dtype=np.int64)
        grid[0], grid[1] = len(self.ids) - 1, 0
        grid[0, slots] = np.repeat(self.offsets[rows], lengths) + within
        grid[1, slots] = within
        grid[2, slots] = np.repeat(local, lengths)
        sent = torch.from_numpy(grid).to(self.device)
        heads = torch.from_numpy(np.stack([np.asarray(starts), rows])).to(self.device)
        yield from self._cut(groups, bases, sent, heads)

    def _layout(self, groups: Sequence[Ints]) -> tuple[list[int], list[int]]:
        starts: list[int] = []
        sizes: list[int] = []
        for group in groups:
            begin, windows = first_fit(self.lengths[group].tolist(), self.width)
            starts += begin
            sizes.append(windows * self.width)
        return starts, sizes

    @staticmethod
    def _slots(starts: Ints, lengths: Ints) -> Ints:
        before = np.cumsum(lengths) - lengths
        slots: Ints = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
        return slots

    def _cut(self, groups: Sequence[Ints], bases: Ints, sent: Tensor, heads: Tensor) -> Iterator[Batch]:
        done = 0
        for index, group in enumerate(groups):
            source, positions, segments = sent[:, bases[index] : bases[index + 1]].unbind(0)
            first, rows = heads[:, done : done + len(group)].unbind(0)
            done += len(group)
            yield Batch(
                ids=self.ids[source], positions=positions, segments=segments, first=first, labels=self.labels[rows],
                types=None if self.types is None else self.types[source], rows=group, width=self.width,
                tokens=int(self.lengths[group].sum()),
            )  # fmt: skip

    def by_length(self, budget: int) -> list[Ints]:
        """All rows in order of length, cut into groups of at most `budget` tokens (for evaluation)."""
        order = np.argsort(self.lengths, kind="stable")
        filled = np.cumsum(self.lengths[order]) // max(budget, 1)
        return np.split(order, np.flatnonzero(np.diff(filled)) + 1)


def slices(order: Ints, size: int) -> list[Ints]:
    """`order` cut into consecutive groups of `size`; the last one may be smaller."""
    return [order[begin : begin + size] for begin in range(0, len(order), size)]
