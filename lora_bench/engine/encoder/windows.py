"""Batches as windows: whole sequences packed without padding into rows of W tokens.

A batch lies in memory as `S = n · W` slots. Each sequence fills consecutive slots of one window; a slot that no
sequence fills has segment -1 and attends only to other such slots, so it affects no result. The layout depends on the
batch alone, never on the cells that train on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_bench.data.windows import window_size

Ints = NDArray[np.int64]
CHUNK = 512  # batches whose indices are copied to the device at once (chosen)
# Windows are usually made for this quantile of the lengths (chosen): about half of all batches of 32 have no longer
# sequence, as 0.98³² = 0.52.
USUAL = 0.98


def first_fit(lengths: Sequence[int], width: int) -> tuple[list[int], int]:
    """The slot where each sequence starts, and the number of windows: first-fit decreasing bin packing."""
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
    """One batch on the device: `S` slots in windows of `width`, `B` entries for sequences.

    The last windows and entries may be empty: the batch is then padded to a shape that several batches share. `windows`
    counts those that hold something; `rows` has one row number for each sequence.
    """

    slots: Tensor  # [3 or 4, S]: ids, positions (see `positions`), segments (or -1), types
    first: Tensor  # [B], the slot of each sequence's first token
    labels: Tensor  # [B]
    weights: Tensor  # [B], the weight of each row's loss: 1 / rows, 0 for an empty entry
    rows: Ints  # the rows of the table (on the host)
    width: int
    windows: int
    tokens: int  # of all sequences
    longest: int  # tokens of the longest sequence

    @property
    def ids(self) -> Tensor:
        """`[S]`."""
        return self.slots[0]

    @property
    def positions(self) -> Tensor:
        """`[S]`, from 0 within each sequence by the model's rule; -1 for a padding id that the rule does not count."""
        return self.slots[1]

    @property
    def segments(self) -> Tensor:
        """`[S]`, the sequence of each slot, or -1."""
        return self.slots[2]

    @property
    def types(self) -> Tensor | None:
        """`[S]`, if the tokenizer makes token types."""
        return self.slots[3] if len(self.slots) > 3 else None

    @property
    def shape(self) -> Form:
        """How large the batch is, empty windows and entries counted."""
        return Form(self.width, self.slots.shape[1] // self.width, len(self.first))

    def sequences_at(self, positions: tuple[int, ...]) -> Tensor | None:
        """The sequence at each position of what a layer reads, flattened; -1 where there is no token.

        Args:
            positions: The axes before the features: `(1, S)` on windows, `(B, L)` on padded rows.

        Returns:
            None for other axes: what the layer reads there are not tokens, but such as DeBERTa's table of distances.
        """
        if positions == (1, len(self.segments)):
            return self.segments
        if positions != (len(self.first), self.longest):
            return None
        lengths = torch.bincount(self.segments[self.segments >= 0], minlength=positions[0])[: positions[0], None]
        sequences, columns = (torch.arange(size, device=self.segments.device) for size in positions)
        return torch.where(columns < lengths, sequences[:, None], -1).flatten()


class Form(NamedTuple):
    """The shape of a batch: the width of its windows, how many there are, and entries for sequences (`rows`)."""

    width: int
    windows: int
    rows: int

    @property
    def slots(self) -> int:
        """S."""
        return self.width * self.windows


@dataclass(frozen=True)
class Layout:
    """Where each sequence of a group goes."""

    starts: list[int]
    form: Form


def positions_of(ids: Ints, lengths: Ints, padding_idx: int | None) -> Ints:
    """The position of every token of sequences that lie end to end, counted from 0 in each.

    With a `padding_idx` this is RoBERTa's rule less its offset of `padding_idx + 1`: that id, wherever it stands, is
    not counted, and has the position -1 itself.
    """
    counted = np.ones(len(ids), dtype=bool) if padding_idx is None else ids != padding_idx
    running = np.cumsum(counted)
    first = np.cumsum(lengths) - lengths
    before = running[first] - counted[first] if len(ids) else running
    return np.where(counted, running - np.repeat(before, lengths), 0).astype(np.int64) - 1


class Tokens(Protocol):
    """Sequences that lie end to end, with their labels: a `TokenTable`."""

    @property
    def ids(self) -> NDArray[np.int32]:
        """`[T]`."""

    @property
    def types(self) -> NDArray[np.uint8] | None:
        """`[T]`, or None where the tokenizer has no token types."""

    @property
    def offsets(self) -> Ints:
        """`[N + 1]`."""

    @property
    def labels(self) -> NDArray[Any]:
        """`[N]`."""


class Table:
    """A task's tokens on a device: one flat array and offsets, from which one indexing operation gathers a batch.

    Args:
        table: The tokens.
        device: The device.
        padding_idx: The id that the model's positions do not count; None where they count every id
            (`Backbone.padding_idx`).

    Attributes:
        flat: Token ids and token types, `[2, T + 1]`; the last token fills empty slots.
        typed: Whether the tokenizer has token types.
        labels: `[N]`.
        offsets: Where each sequence begins in `flat`, and where the last one ends, `[N + 1]`, on the host.
        lengths: The tokens of each sequence, `[N]`, on the host.
        positions: The position of each token, `[T]`, on the host; see `positions_of`.
        usual: The width of most windows.
    """

    def __init__(self, table: Tokens, device: torch.device, *, padding_idx: int | None) -> None:
        flat = np.append(table.ids, np.int32(0)).astype(np.int64)  # the last one fills empty slots; any id would do
        types = np.zeros_like(flat) if table.types is None else np.append(table.types, np.uint8(0)).astype(np.int64)
        self.typed = table.types is not None
        self.flat = torch.from_numpy(np.stack([flat, types])).to(device)
        self.labels = torch.from_numpy(np.array(table.labels)).to(device)
        self.offsets: Ints = np.asarray(table.offsets, dtype=np.int64)
        self.lengths: Ints = np.diff(self.offsets)
        self.positions = positions_of(flat[:-1], self.lengths, padding_idx)
        self.usual = window_size(int(np.quantile(self.lengths, USUAL)))
        self.device = device
        self._evaluated: dict[int, list[Batch]] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def layout(self, group: Ints) -> Layout:
        """The windows of a group of rows: as wide as batches of this table mostly need, wider if this one must be."""
        lengths = self.lengths[group].tolist()
        width = max(self.usual, window_size(max(lengths)))
        starts, windows = first_fit(lengths, width)
        return Layout(starts, Form(width, windows, len(group)))

    def batches(self, groups: Sequence[Ints], fit: Callable[[Form], Form] | None = None) -> Iterator[Batch]:
        """One batch for each group of rows, padded to the shape that `fit` gives its shape.

        The index arrays of many batches travel to the device in one copy.
        """
        for begin in range(0, len(groups), CHUNK):
            part = groups[begin : begin + CHUNK]
            layouts = [self.layout(group) for group in part]
            forms = [fit(layout.form) if fit else layout.form for layout in layouts]
            yield from self._cut(part, layouts, forms, *self._index_tensors(part, layouts, forms))

    def _index_tensors(self, groups: Sequence[Ints], layouts: list[Layout], forms: list[Form]) -> tuple[Tensor, Tensor]:
        """The indices of batches that lie end to end, on the device.

        Returns:
            `[3, slots]`: for each slot its token in `flat`, its position, and its sequence within the batch. `[2,
            entries]`: for each sequence, and each empty entry of a padded batch, its first slot and its row.
        """
        rows, sizes = np.concatenate(groups), [form.width * form.windows for form in forms]
        lengths, members = self.lengths[rows], np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        bases = np.concatenate([[0], np.cumsum(sizes)])
        starts = np.concatenate([layout.starts for layout in layouts])
        before = np.cumsum(lengths) - lengths
        within = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
        slots = np.repeat(starts + bases[members], lengths) + within
        local = np.concatenate([np.arange(len(group)) for group in groups])
        grid = np.empty((3, bases[-1]), dtype=np.int64)
        grid[0], grid[1], grid[2] = self.flat.shape[1] - 1, 0, -1
        source = np.repeat(self.offsets[rows], lengths) + within
        grid[0, slots] = source
        grid[1, slots] = self.positions[source]
        grid[2, slots] = np.repeat(local, lengths)
        entries = np.zeros((2, sum(form.rows for form in forms)), dtype=np.int64)
        ends = np.cumsum([0] + [form.rows for form in forms])
        entries[:, ends[members] + local] = np.stack([starts, rows])
        return self._to_device(grid), self._to_device(entries)

    def _to_device(self, values: Ints) -> Tensor:
        on_host = torch.from_numpy(values)
        return on_host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else on_host

    def _cut(
        self, groups: Sequence[Ints], layouts: list[Layout], forms: list[Form], grid: Tensor, entries: Tensor
    ) -> Iterator[Batch]:
        """Cut what `_index_tensors` returns into batches."""
        slots = torch.cat([self.flat[:1, grid[0]], grid[1:], self.flat[1:, grid[0]]][: 3 if self.typed else 2])
        labels, slot, entry = self.labels[entries[1]], 0, 0  # where the next batch begins
        for group, layout, form in zip(groups, layouts, forms, strict=True):
            size = form.width * form.windows
            members = slice(entry, entry + form.rows)
            yield Batch(
                slots=slots[:, slot : slot + size],
                first=entries[0, members],
                labels=labels[members],
                weights=_weights(len(group), form.rows, self.device),
                rows=group,
                width=form.width,
                windows=layout.form.windows,
                tokens=int(self.lengths[group].sum()),
                longest=int(self.lengths[group].max()),
            )
            slot, entry = slot + size, entry + form.rows

    def evaluated(self, budget: int) -> list[Batch]:
        """All rows in batches of one row or of at most `budget` slots; computed once, as every epoch evaluates them."""
        if budget not in self._evaluated:
            self._evaluated = {budget: list(self.batches(self.groups(budget)))}
        return self._evaluated[budget]

    def groups(self, budget: int) -> list[Ints]:
        """The rows of `evaluated`'s batches. Those that need wider windows than most come last, by themselves."""
        widths = np.array([max(self.usual, window_size(length)) for length in self.lengths.tolist()])
        order = np.argsort(widths, kind="stable")
        groups = []
        for alike in np.split(order, np.flatnonzero(np.diff(widths[order])) + 1):
            while len(alike):
                count = self._fitting(alike, budget)
                groups.append(alike[:count])
                alike = alike[count:]
        return groups

    def _fitting(self, rows: Ints, budget: int) -> int:
        """How many of the rows, in this order, need at most `budget` slots; at least one."""
        count = max(1, int(np.searchsorted(np.cumsum(self.lengths[rows]), budget, "right")))
        while count > 1 and self.layout(rows[:count]).form.slots > budget:
            count = count * 31 // 32  # at least one less
        return count


@lru_cache(maxsize=64)
def _weights(rows: int, entries: int, device: torch.device) -> Tensor:
    """`[entries]`: 1 / rows for each sequence, 0 for an empty entry of a padded batch."""
    return torch.tensor([1 / rows] * rows + [0.0] * (entries - rows), dtype=torch.float64).to(device)


def slices(order: Ints, size: int) -> list[Ints]:
    """`order` cut into consecutive groups of `size`; the last one may be smaller."""
    return [order[begin : begin + size] for begin in range(0, len(order), size)]
