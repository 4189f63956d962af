"""From a grid to records through the runner, on a tiny encoder: skip, resume, retry, halve, fail."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from lora_bench.cli.progress import ProgressView
from lora_bench.engine.progress import Progress
from lora_bench.engine.trainer import Trainer
from lora_bench.errors import MISSING, BenchError
from lora_bench.records.store import read_records
from lora_bench.run.interfaces import Options
from lora_bench.run.runner import Runner
from lora_bench.testing import Blocks, QuietView, TinyBench, assert_same_numbers, by_cell, make_model

HEAD = 32 * 32 + 32 + 2 * 32 + 2
MODULES = 2 * 3  # layers, and query, key and value in each
MIXED: Blocks = (
    {"method": "head"},
    {"method": "lora", "rank": 4},
    {"method": "mini", "rank": [2, 4], "a": 8, "b": 6},
    {"method": "xs", "rank": 3},
)


def test_a_grid_becomes_records_a_table_and_adapters(bench: TinyBench) -> None:
    records = bench.run(MIXED)
    assert [record.status for record in records] == ["done"] * 5
    assert read_records(bench.results).records == tuple(sorted(records, key=lambda record: record.id))
    table = {row["id"]: row for row in bench.csv()}
    assert table.keys() == {record.id for record in records}
    expected = {
        ("head", None): 0, ("lora", 4): 4 * 64 * MODULES, ("mini", 2): 2 * 14 * MODULES, ("mini", 4): 4 * 14 * MODULES,
        ("xs", 3): 9 * MODULES,
    }  # fmt: skip
    for record in records:
        row, cell = table[record.id], record.cell
        assert int(row["adapter_params"]) == expected[cell.method, cell.rank]
        assert int(row["head_params"]) == HEAD
        assert int(row["modules"]) == (MODULES if cell.rank else 0)
        assert row["score"] == row["best"] == str(record.score)
        assert len(record.epochs) == 2
        assert len(record.predictions) == 24
        file = bench.results / "adapters" / record.id / "adapter.safetensors"
        assert file.exists() == (cell.method != "head")
        assert int(row["adapter_bytes"]) == (file.stat().st_size if file.exists() else 0)


def test_the_timing_is_the_cells_share(bench: TinyBench) -> None:
    (first, *others) = bench.run(MIXED)
    assert first.timing is not None
    assert first.timing.pack_size == 5
    assert first.timing.seconds * 5 == pytest.approx(first.timing.pack_seconds)
    assert all(record.timing == first.timing for record in others)


def test_a_second_run_runs_nothing(bench: TinyBench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench.run(MIXED)
    before = bench.files()
    assert bench.plan(MIXED).packs == ()
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("it trained again"))
    assert bench.run(MIXED) == first
    assert bench.files() == before


def test_a_wider_grid_runs_what_is_new_only(bench: TinyBench) -> None:
    bench.run(MIXED[:2])
    plan = bench.plan(MIXED)
    assert {cell.method for cell in plan.todo} == {"mini", "xs"}
    assert {record.cell.method for record in plan.recorded} == {"head", "lora"}
    assert len(bench.follow(plan, QuietView())) == 5
    assert len(bench.csv()) == 5


def test_a_cell_at_fault_is_recorded_and_the_others_are_done(bench: TinyBench) -> None:
    """A weight of 32 × 32 has no 40 directions."""
    blocks = (*MIXED, {"method": "xs", "rank": 40})
    view = QuietView()
    records = by_cell(bench.follow(bench.plan(blocks), view))
    assert len(records) == 6
    bad = {cell: record for cell, record in records.items() if record.status != "done"}
    (record,) = bad.values()
    assert (record.cell.method, record.cell.rank, record.status) == ("xs", 40, "failed")
    assert record.reason is not None
    assert record.reason.startswith("BenchError: 40 directions are more than")
    assert record.counts is None
    assert view.warnings
    assert {row["id"]: row["status"] for row in bench.csv()} == {r.id: r.status for r in records.values()}


def test_retry_runs_what_was_asked_for(bench: TinyBench) -> None:
    blocks: Blocks = ({"method": "xs", "rank": [3, 40]},)
    bench.run(blocks)
    assert bench.plan(blocks).todo == ()
    assert bench.plan(blocks, retry=("diverged",)).todo == ()
    again = bench.plan(blocks, retry=("failed",))
    assert [cell.rank for cell in again.todo] == [40]
    assert again.statuses[again.todo[0].id].reason == "was failed"
    with pytest.raises(BenchError, match="--retry takes failed, diverged"):
        bench.plan(blocks, retry=("done",))


def test_a_retry_that_goes_well_takes_the_place_of_the_failure(
    bench: TinyBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", no_memory(above=0))
        assert [record.status for record in bench.run(MIXED[:2])] == ["oom", "oom"]
    assert bench.plan(MIXED[:2], retry=("failed",)).todo == ()
    assert [record.status for record in bench.run(MIXED[:2], retry=("oom",))] == ["done", "done"]
    assert [row["status"] for row in bench.csv()] == ["done", "done"]


def no_memory(above: int) -> Callable[..., list[Progress]]:
    """A `Trainer.run` that fails as a GPU does, for packs of more than `above` cells."""
    proper = Trainer.run

    def run(self: Trainer, *rest: Any) -> list[Progress]:
        if len(self.pack.cells) > above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return proper(self, *rest)

    return run


@pytest.mark.parametrize("above", [1, 2, 3])
def test_out_of_memory_halves_the_pack_and_changes_no_number(
    bench: TinyBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: int
) -> None:
    whole = by_cell(bench.run(MIXED))
    halved = TinyBench(bench.model, bench.rows, tmp_path / "halved")
    monkeypatch.setattr(Trainer, "run", no_memory(above))
    view = QuietView()
    found = by_cell(halved.follow(halved.plan(MIXED), view))
    assert found.keys() == whole.keys()
    assert all(record.timing is not None and record.timing.pack_size <= above for record in found.values())
    assert "OutOfMemoryError" in view.warnings[0]
    assert {record.timing.halved for record in found.values() if record.timing} <= {1, 2, 3}
    assert {record.timing.halved for record in whole.values() if record.timing} == {0}
    for cell, record in found.items():
        assert_same_numbers(record, whole[cell])


def test_a_pack_that_failed_holds_no_memory_while_its_halves_train(
    bench: TinyBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what ran out of memory would still be there, and the halves would run out of it too."""
    proper = Trainer.run
    failed: list[weakref.ref[Trainer]] = []

    def run(self: Trainer, *rest: Any) -> list[Progress]:
        gc.collect()
        assert [trainer() for trainer in failed] == [None] * len(failed)
        if len(self.pack.cells) > 2:
            failed.append(weakref.ref(self))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return proper(self, *rest)

    monkeypatch.setattr(Trainer, "run", run)
    assert [record.reason for record in bench.run(MIXED, epochs=1)] == [None] * 5
    assert len(failed) == 2


def test_an_interruption_keeps_what_has_ended(bench: TinyBench) -> None:
    class Impatient(QuietView):
        def on_step_issued(self, epoch: int, step: int) -> None:
            if self.packs == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.follow(bench.plan(MIXED, limit=3), Impatient())
    assert len(read_records(bench.results).records) == len(bench.csv()) == 2
    assert len(bench.plan(MIXED).todo) == 3
    assert [record.status for record in bench.run(MIXED)] == ["done"] * 5


def test_a_pack_that_thins_out_keeps_its_number_in_the_progress(bench: TinyBench) -> None:
    """Three of five cells diverge in the first epoch, which is said: two train on, and the time left is theirs."""
    blocks = [{"method": "lora", "rank": 4, "lr": [1e30, 2e30, 4e30, 1e-2, 3e-3]}, {"method": "head", "seed": 1}]
    plan, output = bench.plan(blocks, precision="float32", epochs=3), io.StringIO()
    with ProgressView(Console(file=output, width=200), plan) as view:
        Runner(plan, Options(bench.results, offline=True), view).run()
    assert "3 cells of lora on SST-2: diverged (loss or gradient not finite in epoch 1, step" in output.getvalue()
    lines = [line.partition(", best")[0] for line in output.getvalue().splitlines() if line.startswith("pack")]
    first = next(number for number in (1, 2) if f"pack {number}: SST-2, 5 cells, seed 0, epoch 1/3" in lines)
    assert sorted(lines) == sorted(
        [
            f"pack {first}: SST-2, 5 cells, seed 0, epoch 1/3",
            *(f"pack {first}: SST-2, 2 cells, seed 0, epoch {epoch}/3" for epoch in (2, 3)),
            *(f"pack {3 - first}: SST-2, 1 cell, seed 1, epoch {epoch}/3" for epoch in (1, 2, 3)),
        ]
    )
    assert output.getvalue().count(" s to go") == 6


def test_an_error_is_raised_where_it_was_asked_for(bench: TinyBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "run", no_memory(above=0))
    options = Options(bench.results, offline=True, debug=True)
    with pytest.raises(torch.OutOfMemoryError):
        Runner(bench.plan(MIXED), options, QuietView()).run()


def test_a_model_that_is_not_there_ends_the_run(bench: TinyBench, tmp_path: Path) -> None:
    plan = bench.plan(MIXED, model=str(make_model(tmp_path / "gone")))
    for path in (tmp_path / "gone").iterdir():
        path.unlink()
    with pytest.raises(BenchError) as error:
        bench.follow(plan, QuietView())
    assert error.value.code == MISSING
    assert bench.csv() == []


def test_cells_that_can_have_no_posterior_fail_while_the_others_train_as_one_pack(tmp_path: Path) -> None:
    bench = TinyBench.create(tmp_path, "sst2", family="albert")
    records = bench.run([{"method": ["lora", "laplace-lora"], "rank": [1, 2, 3, 4], "targets": "attention"}])
    trained = [record for record in records if record.cell.method == "lora"]
    refused = [record for record in records if record.cell.method == "laplace-lora"]
    assert all("query is read more than once" in str(record.reason) for record in refused)
    assert [record.timing.pack_size for record in trained if record.timing is not None] == [4] * 4
