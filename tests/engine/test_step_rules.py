"""Penalties and rank schedules in a pack: a cell that has diverged is left alone, and memory knows no padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_bench.cell import Cell
from lora_bench.contracts.kit import Workbench, cell_of, trainer_of
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.trainer import Trainer
from lora_bench.methods import RECIPES
from lora_bench.methods.scalabl import ScalaBL
from lora_bench.tasks import get

RULED = tuple(name for name, recipe in RECIPES.items() if recipe.gate or recipe.has_penalty)
REMEMBERING = tuple(name for name in RULED if RECIPES[name].memory)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """The tiny encoder."""
    return Workbench(tmp_path_factory.mktemp("encoder"))


def made_of(bench: Workbench, *cells: Cell) -> Trainer:
    """A trainer of cells as one pack."""
    return trainer_of(Pack(cells, bench.load("float64"), 2), get("cola"))


def small(method: str, **sizes: Any) -> Cell:
    """A cell of four epochs of three steps, without warm-up."""
    return cell_of(method, precision="float64", batch_size=8, epochs=4, warmup=0.0, **sizes)


def train(trainer: Trainer, epochs: range) -> None:
    """Train whole epochs."""
    with trainer.pack:
        for epoch in epochs:
            trainer.train(trainer.batch_rows(epoch))


@pytest.mark.parametrize("method", RULED)
def test_a_cell_that_has_diverged_keeps_its_values_and_what_it_remembers(
    method: str, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cuts of a rank schedule come after the first epoch here."""
    monkeypatch.setattr(ScalaBL, "penalty_weight", lambda *_: 1e-3)  # its steps are tiny at first
    trainer = made_of(bench, small(method), small("lora"))
    position = next(k for k, cell in enumerate(trainer.pack.cells) if cell.method == method)
    train(trainer, range(1, 2))
    trainer.optimiser.active[position] = False
    before, memory = trainer.pack.state(position), trainer.memory(position)
    other = trainer.pack.state(1 - position)
    train(trainer, range(2, 5))
    assert torch.equal(trainer.pack.state(position).flat(), before.flat())
    assert memory.keys() == trainer.memory(position).keys()
    assert all(torch.equal(value, memory[name]) for name, value in trainer.memory(position).items())
    assert not torch.equal(trainer.pack.state(1 - position).flat(), other.flat())


@pytest.mark.parametrize("method", REMEMBERING)
def test_what_a_cell_remembers_is_the_same_alone_and_beside_larger_ones(method: str, bench: Workbench) -> None:
    cells = [small(method, rank=2), small(method, rank=5)]
    alone, among = made_of(bench, cells[0]), made_of(bench, *reversed(cells))
    position = among.pack.cells.index(cells[0])
    for trainer in (alone, among):
        train(trainer, range(1, 3))
    (name,) = alone.memory(0)
    expected, found = alone.memory(0)[name], among.memory(position)[name]
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)

    # Taken over into another company, it goes on as it would have here.
    resumed = made_of(bench, *cells)
    row = resumed.pack.cells.index(cells[0])
    resumed.load_memory(row, {name: found})
    assert torch.equal(resumed.memory(row)[name], found)
    assert not resumed.memory(1 - row)[name].any()


def test_these_are_all_methods_with_rules() -> None:
    assert set(RULED) == {"adalora", "clora", "dora-dyn", "kasa", "scalabl", "sora"}
    assert set(REMEMBERING) == {"adalora", "dora-dyn"}
