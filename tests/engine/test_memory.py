"""How many cells fit follows from two measured packs; the card's counters are stood in for, the steps are real."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest
import torch

from lora_bench.cell import Cell
from lora_bench.engine import device_memory, memory
from lora_bench.engine.trainer import Trainer
from lora_bench.testing import make_cell
from tests.engine.engine_factory import CPU, backbone, trainer

BASE, EACH = 1000, 70


class Card:
    """A card whose memory holds what the packs that are probed take."""

    def __init__(self, free: int, patch: pytest.MonkeyPatch) -> None:
        self.peak, self.packs = 0, list[int]()
        patch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
        for name in ("memory_reserved", "memory_allocated"):
            patch.setattr(torch.cuda, name, lambda _: 0)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.peak)
        patch.setattr(torch.cuda, "empty_cache", lambda: None)

    def make(self, cells: Sequence[Cell]) -> Trainer:
        """A trainer whose probe fills the card."""
        self.packs.append(len(cells))
        self.peak = BASE + EACH * len(cells)
        return trainer(cells, backbone())


@pytest.mark.parametrize(("free", "room"), [(10_000, 107), (2000, 10), (1200, 1), (10, 1)])
def test_room_is_what_is_free_over_what_a_cell_takes(free: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(free, monkeypatch)
    cells = [make_cell("lora", rank=rank) for rank in range(1, 9)]
    assert memory.cells_that_fit(cells, card.make, CPU) == room
    assert card.packs == list(memory.SAMPLES)


def test_a_probe_trains_nothing() -> None:
    made = trainer([make_cell("lora"), make_cell("head")], backbone())
    before = [block.matrix.clone() for block in made.blocks]
    made.probe_memory()
    assert all(torch.equal(block.matrix, old) for block, old in zip(made.blocks, before, strict=True))
    assert made.steps == 0
    assert int(made.optimiser.count) == 0


def test_a_processor_has_no_peak() -> None:
    device_memory.forget_peak(CPU)
    assert device_memory.peak_bytes(CPU) is None


def test_what_a_done_pack_took_is_free_at_once() -> None:
    """Without waiting for Python to look for cycles: the next pack needs the memory."""
    gc.collect()
    gc.disable()
    try:
        made = trainer([make_cell("lora"), make_cell("mini")], backbone())
        made.run()
        pack = weakref.ref(made.pack)
        del made
        assert pack() is None
    finally:
        gc.enable()
