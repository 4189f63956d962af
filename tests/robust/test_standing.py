"""Where cells stand and why they run or not, as `plan` tells it; what is tried when cells fail."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lora_bench import provenance
from lora_bench.cell import Cell
from lora_bench.cli.options import Selection
from lora_bench.cli.tables import status_table
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records, write_record
from lora_bench.run import checkpoints
from lora_bench.run import plan as plans
from lora_bench.run.owner import Owner, current
from lora_bench.run.publish import RecordStore
from lora_bench.run.status import CellStatus
from lora_bench.testing import QuietView
from tests.robust.stub_worker import grid, runner, save_checkpoint


def status_of_one(results: Path, retry: Sequence[str] = ()) -> CellStatus:
    """Of the one cell."""
    (status,) = plans.make(grid(1, (1,)), results, 16, retry).statuses.values()
    return status


def change(results: Path, **fields: Any) -> Record:
    """The one record with other fields."""
    (record,) = read_records(results).records
    made = record.model_copy(update=fields)
    write_record(results, made)
    return made


def test_a_cell_is_planned_then_done(tmp_path: Path) -> None:
    assert status_of_one(tmp_path) == CellStatus("planned", "no record", True)
    runner(tmp_path, grid(1, (1,))).run()
    assert status_of_one(tmp_path) == CellStatus("done", "has a record", False)


@pytest.mark.parametrize("status", ["failed", "diverged", "oom"])
def test_what_went_wrong_runs_when_it_is_asked_for(tmp_path: Path, status: str) -> None:
    runner(tmp_path, grid(1, (1,))).run()
    change(tmp_path, status=status, reason="so it was")
    assert status_of_one(tmp_path) == CellStatus(status, f"so it was (--retry {status})", False)
    assert status_of_one(tmp_path, ["stale"]).will_run is False
    assert status_of_one(tmp_path, [status]) == CellStatus(status, f"was {status}", True)


@pytest.mark.parametrize("field", ["code", "torch", "transformers", "tokenizers"])
def test_a_changed_fingerprint_is_stale_and_names_the_field(tmp_path: Path, field: str) -> None:
    runner(tmp_path, grid(1, (1,))).run()
    record = read_records(tmp_path).records[0]
    now = provenance.current("lora")[field]
    change(tmp_path, environment=record.environment | {field: f"{now}+other"})  # another build of the same version
    assert status_of_one(tmp_path).state == "done"
    change(tmp_path, environment=record.environment | {field: "0.1"})
    assert status_of_one(tmp_path) == CellStatus("stale", f"{field} 0.1, now {now} (--retry stale)", False)
    assert status_of_one(tmp_path, ["failed", "stale"]).will_run is True
    change(tmp_path, environment={name: text for name, text in record.environment.items() if name != field})
    assert status_of_one(tmp_path).state == "done"  # a record of before the field


def test_newer_records_on_other_tokens_make_older_ones_stale(tmp_path: Path) -> None:
    runner(tmp_path, grid(1, (1, 2))).run()
    older, newer = read_records(tmp_path).records
    assert newer.data is not None
    write_record(tmp_path, newer.model_copy(update={"data": newer.data.model_copy(update={"fingerprint": "other"})}))
    found = plans.make(grid(1, (1, 2)), tmp_path, 16).statuses
    assert (found[older.id].state, found[newer.id].state) == ("stale", "done")
    assert "data" in found[older.id].reason


def test_a_cell_in_training_is_running_and_then_interrupted(tmp_path: Path) -> None:
    made = grid(1, (1,))
    (cell,) = made.cells
    with Owner(tmp_path) as owner:
        owner.note_training([cell.id])
        found = status_of_one(tmp_path)
        assert (found.state, found.reason) == ("running", f"by {current(tmp_path)}")
    entry = checkpoints.CellEntry(
        id=cell.id, position=0, code=provenance.code("lora"), record_time=0, steps=7, steps_taken=7, metrics=[{}, {}]
    )
    save_checkpoint(tmp_path, "pack", [entry], steps=7)
    assert status_of_one(tmp_path) == CellStatus("interrupted", "saved after 2 of 10 epochs, 7 steps", True)
    save_checkpoint(tmp_path, "pack", [entry], steps=7, fingerprint={"torch": "0.1"})
    assert status_of_one(tmp_path).reason.startswith("saved, but begins again: torch 0.1, now ")


def test_a_damaged_record_is_reported_and_trained_again(tmp_path: Path) -> None:
    runner(tmp_path, grid(1, (1,))).run()
    (path,) = (tmp_path / "cells").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    found = status_of_one(tmp_path)
    assert found.will_run
    assert found.reason.startswith("its record is damaged (")


def test_the_table_counts_cells_by_why_they_run(tmp_path: Path) -> None:
    runner(tmp_path, grid(1)).run()
    table = status_table(plans.make(grid(3), tmp_path, 16))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    rows = [line.split("│")[1:5] for line in text.splitlines() if line.startswith("│")]
    assert [[part.strip() for part in row] for row in rows] == [
        ["planned", "4", "yes", "no record"], ["done", "2", "no", "has a record"],
    ]  # fmt: skip


def test_retry_takes_commas_and_repetitions() -> None:
    assert Selection(retry=["failed, oom", "stale"]).states_to_retry() == ("failed", "oom", "stale")
    assert Selection().states_to_retry() == ()


def tried(tmp_path: Path, fails: Callable[[Sequence[Cell]], str | None], cells: int = 12) -> tuple[list[int], Any]:
    """The sizes of the packs that were tried, and the runner."""
    sizes: list[int] = []

    def work(pack: Sequence[Cell]) -> None:
        sizes.append(len(pack))
        if reason := fails(pack):
            raise ValueError(reason)

    running = runner(tmp_path, grid(1, range(1, cells + 1)), on_cells=work)
    running.run()
    return sizes, running


def test_a_pack_whose_cells_fail_alike_is_given_up_with_one_message(tmp_path: Path) -> None:
    sizes, running = tried(tmp_path, lambda pack: "the same")
    assert sizes == [12, 1, 1, 1]
    assert isinstance(running.view, QuietView)
    assert len(running.view.warnings) == 2
    records = read_records(tmp_path).records
    assert [record.status for record in records] == ["failed"] * 12
    given_up = [record for record in records if "given up" in (record.reason or "")]
    assert len(given_up) == 9
    assert all((record.reason or "").endswith("ValueError: the same") for record in records)


def test_cells_that_fail_each_in_its_way_are_all_tried(tmp_path: Path) -> None:
    sizes, _ = tried(tmp_path, lambda pack: f"of {pack[0].rank}")
    assert sizes.count(1) == 12
    assert len({record.reason for record in read_records(tmp_path).records}) == 12


def test_one_bad_cell_harms_no_other(tmp_path: Path) -> None:
    tried(tmp_path, lambda pack: "bad" if any(cell.rank == 5 for cell in pack) else None)
    status = {record.cell.rank: record.status for record in read_records(tmp_path).records}
    assert [rank for rank, ended in status.items() if ended != "done"] == [5]
    assert len(status) == 12


def test_an_interrupted_pack_comes_again_as_it_was(tmp_path: Path) -> None:
    """Packs of which nothing is done are those of the whole grid; what is left of others is grouped anew."""
    made = grid(2, range(1, 21))
    whole = plans.make(made, tmp_path, 16).packs
    assert [len(pack) for pack in whole] == [10, 10, 10, 10]
    store = RecordStore(tmp_path)
    running = runner(tmp_path, made)
    running.run()
    for cell in (*whole[1], whole[0][0], *whole[2][:4]):
        (tmp_path / "cells" / f"{cell.id}.json").unlink()
    assert store.records == {}
    again = plans.make(made, tmp_path, 16).packs
    assert again[0] == whole[1]
    assert sorted(len(pack) for pack in again[1:]) == [1, 4]
