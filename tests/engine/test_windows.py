"""Packing into windows: every sequence whole, once, and unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_bench.data.tokens import TokenTable
from lora_bench.data.windows import window_size
from lora_bench.engine.encoder.windows import Batch, Table, first_fit, slices
from tests.engine.engine_factory import CPU, table

LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=40)


def made(lengths: Sequence[int], types: bool = True) -> TokenTable:
    """A table in which every token is a number of its own, so that a token in the wrong place is seen."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    ids = np.arange(1000, 1000 + total, dtype=np.int32)
    kinds = (np.arange(total) % 3).astype(np.uint8) if types else None
    return TokenTable(ids, kinds, offsets, np.arange(len(lengths), dtype=np.int64) * 7)


@pytest.mark.parametrize(
    ("longest", "width"),
    [(1, 32), (31, 32), (32, 32), (33, 64), (64, 64), (65, 128), (128, 128), (200, 256), (512, 512)],
)
def test_window_size(longest: int, width: int) -> None:
    assert window_size(longest) == width


@given(LENGTHS)
def test_first_fit_places_every_sequence_once_and_whole(lengths: list[int]) -> None:
    width = window_size(max(lengths))
    starts, windows = first_fit(lengths, width)
    assert len(starts) == len(lengths)
    taken = np.zeros(windows * width, dtype=int)
    for start, length in zip(starts, lengths, strict=True):
        assert start // width == (start + length - 1) // width
        taken[start : start + length] += 1
    assert taken.max() == 1
    assert taken.sum() == sum(lengths)
    assert taken.reshape(windows, width)[:, 0].all()


@given(LENGTHS)
def test_first_fit_wastes_less_than_half(lengths: list[int]) -> None:
    """No two windows would fit into one: all but one are more than half full, taken in pairs."""
    width = window_size(max(lengths))
    starts, windows = first_fit(lengths, width)
    filled = np.zeros(windows, dtype=int)
    for start, length in zip(starts, lengths, strict=True):
        filled[start // width] += length
    ordered = np.sort(filled)
    assert windows == 1 or ordered[0] + ordered[1] > width


def assert_holds(batch: Batch, source: TokenTable, group: Sequence[int]) -> None:
    """The batch holds the sequences of the group, each as it is in the table, and padding in between."""
    assert batch.rows.tolist() == list(group)
    assert len(batch.ids) % batch.width == 0
    assert batch.tokens == sum(source.lengths[list(group)])
    assert batch.labels.tolist() == source.labels[list(group)].tolist()
    for place, row in enumerate(group):
        own = batch.segments == place
        low, high = source.offsets[row], source.offsets[row + 1]
        assert batch.ids[own].tolist() == source.ids[low:high].tolist()
        assert batch.positions[own].tolist() == list(range(high - low))
        assert int(own.nonzero()[0]) == int(batch.first[place])
        if source.types is not None:
            assert batch.types is not None
            assert batch.types[own].tolist() == source.types[low:high].tolist()
    empty = batch.segments == -1
    assert int((~empty).sum()) == batch.tokens
    assert set(batch.ids[empty].tolist()) <= {0}
    assert set(batch.positions[empty].tolist()) <= {0}


@given(LENGTHS, st.integers(1, 9), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_a_batch_gives_back_the_tables_rows(lengths: list[int], size: int, types: bool, random: Random) -> None:
    source = made(lengths, types)
    order = list(range(len(lengths)))
    random.shuffle(order)
    groups = slices(np.array(order), size)
    batches = list(Table(source, CPU, padding_idx=None).batches(groups))
    assert len(batches) == len(groups)
    for batch, group in zip(batches, groups, strict=True):
        assert (batch.types is None) == (not types)
        assert_holds(batch, source, group.tolist())


def test_the_layout_depends_on_the_batch_alone() -> None:
    """The same rows lie the same way whatever batch comes before."""
    one = table(made([5, 40, 17, 33, 8, 20]))
    (alone,) = one.batches([np.array([3, 1, 4])])
    *_, after = one.batches([np.array([0, 2]), np.array([5]), np.array([3, 1, 4])])
    for name in ("ids", "positions", "segments", "first", "labels", "types"):
        assert torch.equal(getattr(alone, name), getattr(after, name))


def test_positions_on_windows_and_on_padded_rows_have_the_same_sequences() -> None:
    (batch,) = table(made([3, 1, 2])).batches([np.array([0, 1, 2])], lambda form: form._replace(rows=4))
    on_windows, on_padded_rows = batch.sequences_at((1, 32)), batch.sequences_at((4, 3))
    assert on_windows is not None
    assert on_windows.tolist() == batch.segments.tolist()
    assert sorted(batch.segments[batch.segments >= 0].tolist()) == [0, 0, 0, 1, 2, 2]
    assert on_padded_rows is not None
    assert on_padded_rows.view(4, 3).tolist() == [[0, 0, 0], [1, -1, -1], [2, 2, -1], [-1, -1, -1]]
    assert batch.sequences_at((1, 512)) is None


@given(LENGTHS, st.integers(0, 200))
def test_what_is_evaluated_is_every_row_once(lengths: list[int], budget: int) -> None:
    one = Table(made(lengths), CPU, padding_idx=None)
    batches = one.evaluated(budget)
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(len(lengths)))
    assert all(len(batch.rows) for batch in batches)
    assert one.evaluated(budget) is batches


@given(LENGTHS, st.integers(1, 600))
def test_evaluated_batches_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    """A batch's windows have at most `budget` slots, padding counted, unless it is one sequence."""
    one = Table(made(lengths), CPU, padding_idx=None)
    for batch in one.evaluated(budget):
        assert batch.slots.shape[1] <= budget or len(batch.rows) == 1


def test_a_long_row_widens_no_other_rows_windows() -> None:
    one = Table(made([*[20] * 99, 100]), CPU, padding_idx=None)
    assert [(batch.width, len(batch.rows)) for batch in one.evaluated(10**6)] == [(32, 99), (128, 1)]


@given(st.integers(0, 50), st.integers(1, 9))
def test_slices_cut_in_order(count: int, size: int) -> None:
    cut = slices(np.arange(count), size)
    assert [row for part in cut for row in part] == list(range(count))
    assert all(len(part) == size for part in cut[:-1])
    assert len(cut) == -(-count // size)
