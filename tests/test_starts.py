"""Cells that continue from cells of another task: what they begin with, in which packs, and what is kept for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lora_bench import methods, provenance
from lora_bench.cell import Cell
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.pack import State
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records
from lora_bench.run import checkpointing, checkpoints
from lora_bench.run.interfaces import Job, Options
from lora_bench.run.pack_run import build_trainer
from lora_bench.run.runner import Runner
from lora_bench.run.worker import Training
from lora_bench.testing import QuietView, TinyBench, assert_same_numbers, by_cell, make_cell
from lora_bench.testing.cells import SIZES
from tests.robust.stub_worker import save_checkpoint

SETTINGS: dict[str, Any] = {"task": "rte", "start": {"rte": "mnli"}, "lr": 4e-3, "epochs": 2, **SIZES}


def block(method: str) -> dict[str, Any]:
    """A block of a config for a method, with sizes that it does not refuse."""
    cell = make_cell(method)
    return {"method": method} | {name: getattr(cell, name) for name in SIZES if getattr(cell, name) is not None}


ALL = [block(name) for name in methods.RECIPES]
WHOLE = [name for name, recipe in methods.RECIPES.items() if recipe.trains_backbone]
FEW: list[dict[str, Any]] = [{"method": name} for name in ("lora", "full", "head")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TinyBench:
    """MNLI, then RTE, with every method."""
    bench = TinyBench.create(tmp_path_factory.mktemp("starts"), "mnli", "rte")
    records = bench.run(ALL, **SETTINGS)
    assert {(record.cell.method, record.cell.task) for record in records} == {
        (name, task) for name in methods.RECIPES for task in ("mnli", "rte")
    }
    assert {record.status for record in records} == {"done"}
    return bench


def test_a_checkpoint_that_began_from_another_training_is_not_continued(tmp_path: Path) -> None:
    cell = make_cell("lora", task="rte", start="0" * 12)
    entry = checkpoints.CellEntry(
        id=cell.id, position=0, code=provenance.code("lora"), record_time=0, steps=3, steps_taken=3, start="before"
    )
    save_checkpoint(tmp_path, "pack", [entry], safetensors.torch.save({"values": torch.zeros(1)}))
    for trained_with, resumed in (("before", {cell.id}), ("now", set())):
        starts = {str(cell.start): trained_with}
        job = Job(1, (cell,), checkpoints=checkpoints.read_all(tmp_path), trained_with=starts)
        assert set(checkpointing.find(job, {})) == resumed


def another(bench: TinyBench, folder: Path) -> TinyBench:
    """The same encoder and rows with another results folder."""
    return TinyBench(bench.model, bench.rows, folder)


def state_of(bench: TinyBench, cell_id: str) -> State:
    return saved.read(bench.results / "adapters" / cell_id)[2]


def test_a_cell_begins_with_what_the_earlier_one_trained_to_the_bit(trained: TinyBench) -> None:
    """All methods in one pack; the head's output layer is that of a cell without a start."""
    plan = trained.plan(ALL, **SETTINGS)
    cells = [cell for cell in plan.grid.cells if cell.start is not None and cell.method not in WHOLE]
    worker = Training(plan.setup(Options(trained.results, offline=True)), QuietView())
    backbone = worker.loader.backbone(cells[0])
    prepared = worker.loader.tables(cells[0], backbone)
    starts = {str(cell.start): state_of(trained, str(cell.start)) for cell in cells}
    trainer = build_trainer(cells, backbone, prepared, starts)
    fresh = build_trainer([cells[0].model_copy(update={"start": None})], backbone, prepared, {}).pack.state(0)
    assert len(cells) == len(methods.RECIPES) - len(WHOLE)
    for position, cell in enumerate(trainer.pack.cells):
        state, earlier = trainer.pack.state(position), starts[str(cell.start)]
        assert state.adapter.keys() == earlier.adapter.keys()
        assert all(torch.equal(state.adapter[name], earlier.adapter[name]) for name in state.adapter)
        for name, value in state.head.items():
            assert torch.equal(value, (fresh if name.startswith("out_proj") else earlier).head[name])


@pytest.mark.parametrize("method", WHOLE)
def test_a_whole_encoder_begins_with_all_weights_of_the_earlier_one(
    method: str, trained: TinyBench, tmp_path: Path
) -> None:
    bench = another(trained, tmp_path)
    (mnli,) = bench.run([block(method)], **SETTINGS | {"task": "mnli", "start": None})
    plan = bench.plan([block(method)], **SETTINGS)
    (cell,) = [cell for cell in plan.grid.cells if cell.task == "rte"]
    assert cell.start == mnli.id
    worker = Training(plan.setup(Options(tmp_path, offline=True)), QuietView())
    backbone = worker.loader.backbone(cell)
    trainer = build_trainer([mnli.cell], backbone, worker.loader.tables(mnli.cell, backbone), {})
    trainer.run()
    earlier = trainer.progress[0].state
    assert earlier is not None
    begun = build_trainer([cell], backbone, worker.loader.tables(cell, backbone), {mnli.id: earlier})
    state = begun.pack.state(0)
    assert all(torch.equal(state.adapter[name], value) for name, value in earlier.adapter.items())
    (record,) = [record for record in bench.run([block(method)], **SETTINGS) if record.cell == cell]
    begun.run()
    assert [epoch.metrics for epoch in record.epochs] == begun.progress[0].metrics


def test_a_start_is_worth_something(trained: TinyBench) -> None:
    """The values are used: a cell that continues has other losses than one that does not."""
    bench = another(trained, trained.results.parent / "without")
    alone = {r.cell.method: r for r in bench.run(ALL, **SETTINGS | {"start": None})}
    continued = {r.cell.method: r for r in read_records(trained.results).records if r.cell.start is not None}
    assert continued.keys() == alone.keys()
    for method, record in continued.items():
        assert record.epochs[0].loss != alone[method].epochs[0].loss, method


def test_the_result_does_not_depend_on_the_pack(trained: TinyBench, tmp_path: Path) -> None:
    """Cells with different starts in one pack, and each alone."""
    bench = another(trained, tmp_path)
    for folder in ("cells", "adapters"):
        (tmp_path / folder).mkdir()
    for record in read_records(trained.results).records:
        if record.cell.task == "mnli" and record.cell.method not in WHOLE:
            shutil.copy(trained.results / "cells" / f"{record.id}.json", tmp_path / "cells")
            shutil.copytree(trained.results / "adapters" / record.id, tmp_path / "adapters" / record.id)
    blocks = [block(name) for name in methods.RECIPES if name not in WHOLE]
    alone = by_cell(bench.run(blocks, limit=1, **SETTINGS))
    together = by_cell(list(read_records(trained.results).records))
    for cell, record in alone.items():
        if cell.task == "rte":
            assert_same_numbers(record, together[cell])
            one, other = state_of(bench, cell.id), state_of(trained, cell.id)
            for name, value in one.adapter.items():
                torch.testing.assert_close(value, other.adapter[name], rtol=0, atol=1e-8)


def test_records_and_table_keep_the_start(trained: TinyBench) -> None:
    records = {record.id: record for record in read_records(trained.results).records}
    for record in records.values():
        start = record.cell.start
        assert (start is None) == (record.cell.task == "mnli")
        assert record.protocol.start == ("pretrained" if start is None else "mnli")
        assert start is None or records[start].cell.method == record.cell.method
    assert {row["id"]: row["start"] for row in trained.csv()} == {i: r.cell.start or "" for i, r in records.items()}


# ---- what is kept


def kept(bench: TinyBench) -> set[tuple[str, str]]:
    records = {record.id: record for record in read_records(bench.results).records}
    folders = (bench.results / "adapters").iterdir()
    return {(records[folder.name].cell.method, records[folder.name].cell.task) for folder in folders}


def test_weights_of_full_are_kept_until_nothing_waits_for_them(trained: TinyBench) -> None:
    assert kept(trained) == {(name, task) for name in methods.RECIPES if name not in WHOLE for task in ("mnli", "rte")}


def test_a_run_that_keeps_nothing_keeps_what_others_wait_for(trained: TinyBench, tmp_path: Path) -> None:
    bench = another(trained, tmp_path)
    records = Runner(bench.plan(FEW, **SETTINGS), Options(tmp_path, offline=True, save=False), QuietView()).run()
    assert {record.status for record in records} == {"done"}
    assert kept(bench) == set()


def test_a_start_whose_values_are_gone_trains_again(trained: TinyBench, tmp_path: Path) -> None:
    """A damaged adapter, one that was removed, and full's, which is never kept, for another seed of the later task."""
    bench = another(trained, tmp_path)
    first = by_cell(bench.run(FEW, **SETTINGS | {"start": None, "task": "mnli"}))
    lora = next(record for cell, record in first.items() if cell.method == "lora")
    (tmp_path / "adapters" / lora.id / "adapter.safetensors").write_bytes(b"damaged")
    plan = bench.plan(FEW, **SETTINGS)
    again = {cell.method for cell in plan.todo if cell.task == "mnli"}
    assert again == {"lora", "full"}
    assert all(
        "what it trained is not there" in plan.statuses[cell.id].reason for cell in plan.todo if cell.task == "mnli"
    )
    records = by_cell(bench.run(FEW, **SETTINGS))
    assert {record.status for record in records.values()} == {"done"}
    for cell, record in first.items():
        assert_same_numbers(records[cell], record)
    assert bench.plan(FEW, **SETTINGS).todo == ()


def test_values_of_another_cell_are_refused(trained: TinyBench) -> None:
    plan = trained.plan(ALL, **SETTINGS)
    cells = {cell.method: cell for cell in plan.grid.cells if cell.start is not None}
    worker = Training(plan.setup(Options(trained.results, offline=True)), QuietView())
    backbone = worker.loader.backbone(cells["lora"])
    prepared = worker.loader.tables(cells["lora"], backbone)
    other = state_of(trained, str(cells["xs"].start))
    with pytest.raises(Exception, match=f"What cell {cells['lora'].start} has trained does not fit"):
        build_trainer([cells["lora"]], backbone, prepared, {str(cells["lora"].start): other})


# ---- failures


def test_a_failed_start_blocks_only_what_continues_from_it(trained: TinyBench, tmp_path: Path) -> None:
    bench = another(trained, tmp_path)
    blocks: list[dict[str, Any]] = [{"method": "lora", "lr": {"mnli": 1e300, "default": 4e-3}}, {"method": "head"}]
    runner = Runner(bench.plan(blocks, **SETTINGS), Options(tmp_path, offline=True), QuietView())
    records = runner.run()
    ended: dict[tuple[str, str], Record] = {(r.cell.method, r.cell.task): r for r in records}
    assert {key: record.status for key, record in ended.items()} == {
        ("lora", "mnli"): "diverged", ("head", "mnli"): "done", ("head", "rte"): "done",
    }  # fmt: skip
    blocked = [entry for entry in runner.plan.grid.entries if entry.state == "blocked"]
    assert [entry.reason for entry in blocked] == [
        f"the mnli cell {ended['lora', 'mnli'].id}, from which it would continue, diverged"
    ]
    plan = bench.plan(blocks, **SETTINGS)
    assert plan.todo == ()
    assert {status.state for status in plan.statuses.values()} == {"done", "diverged", "blocked"}


def test_a_cell_without_a_start_keeps_its_id(trained: TinyBench) -> None:
    cells: list[Cell] = [record.cell for record in read_records(trained.results).records if record.cell.start is None]
    assert all('"start"' not in cell.canonical() for cell in cells)
