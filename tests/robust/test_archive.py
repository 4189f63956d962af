"""Records put into one file while others write: nothing is removed that the archive does not hold."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from lora_bench.cell import Cell
from lora_bench.errors import DONE, MISSING, BenchError
from lora_bench.records import archive
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records, record_path, write_record
from lora_bench.run.owner import Owner
from lora_bench.run.publish import RecordStore
from tests.robust.robust_kit import assert_clear_error, lora_bench, tree
from tests.robust.stub_worker import child, grid, runner, worker_of

ARCHIVE = ("archive", "--results", "results")


def test_a_folder_in_which_another_process_trains_is_left_alone(results: Path) -> None:
    runner(results, grid(1)).run()
    with Owner(results):
        before = tree(results)
        assert_clear_error(lora_bench(*ARCHIVE), MISSING, f"is in use by process {os.getpid()} on")
        assert tree(results) == before
    assert lora_bench(*ARCHIVE).code == DONE
    assert list((results / "cells").iterdir()) == []


def test_what_changes_or_comes_while_the_archive_is_written_stays(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a writer that knows no lock, such as a copy of files from elsewhere."""
    records = runner(results, grid(2)).run()
    changed = records[0].model_copy(update={"reason": "again"})
    cell = Cell(**{**records[0].cell.model_dump(), "seed": 77})
    fresh = records[0].model_copy(update={"id": cell.id, "cell": cell})
    proper = archive.write

    def disturbed(folder: Path, lines: Iterable[bytes]) -> Path:
        path = proper(folder, lines)
        for each in (changed, fresh):
            write_record(folder, each)
        return path

    monkeypatch.setattr(archive, "write", disturbed)
    assert lora_bench(*ARCHIVE).code == DONE
    assert sorted(path.stem for path in (results / "cells").iterdir()) == sorted([changed.id, fresh.id])
    loaded = {record.id: record for record in read_records(results).records}
    assert loaded[changed.id] == changed
    assert loaded[fresh.id] == fresh
    assert len(loaded) == 5


def test_a_reader_from_before_the_archive_goes_on(results: Path) -> None:
    """A plan that was made, then the records move: they are still there, and the same objects."""
    runner(results, grid(2)).run()
    store = RecordStore(results)
    before = dict(store.records)
    assert lora_bench(*ARCHIVE).code == DONE
    store.refresh()
    assert store.broken == {}
    assert store.records.keys() == before.keys()
    assert all(store.records[cell] is record for cell, record in before.items())


def test_a_run_that_was_planned_before_the_archive_trains_nothing_twice(results: Path) -> None:
    runner(results, grid(1)).run()
    planned = runner(results, grid(2))
    assert lora_bench(*ARCHIVE).code == DONE
    assert len(planned.run()) == 4
    assert {cell.seed for cell in grid(2).cells if cell.id in worker_of(planned).trained} == {1}
    assert (results / "metrics.csv").read_text().count("\n") == 1 + 4


@pytest.mark.parametrize("round_", range(3))
def test_records_published_while_the_archive_is_tried_again_and_again_are_all_there(results: Path, round_: int) -> None:
    runner(results, grid(40, range(1, 9))).run()  # what takes a while to archive
    more = grid(30)

    def run() -> None:
        while True:
            try:
                runner(results, more).run()
            except BenchError:  # `archive` has the folder
                continue
            return

    other = child(run)
    ended, codes = 0, set[int]()
    while not ended:
        codes.add(lora_bench(*ARCHIVE).code)
        ended, status = os.waitpid(other, os.WNOHANG)
    assert os.waitstatus_to_exitcode(status) == 0
    assert codes <= {DONE, MISSING}
    wanted = {cell.id for cell in (*grid(40, range(1, 9)).cells, *more.cells)}
    loaded = read_records(results)
    assert {record.id for record in loaded.records} == wanted
    assert loaded.broken == ()
    assert lora_bench(*ARCHIVE).code == DONE
    assert {record.id for record in read_records(results).records} == wanted


def test_what_a_dead_process_had_published_is_archived_too(results: Path) -> None:
    runner(results, grid(1)).run()
    paths = [record_path(results, record.id) for record in read_records(results).records]
    pack = results / "pending" / "0123-0" / "cells"
    pack.mkdir(parents=True)
    paths[0].rename(pack / paths[0].name)
    assert lora_bench(*ARCHIVE).code == DONE
    assert len(list(archive.lines(results))) == 2
    assert not (results / "pending").exists() or list((results / "pending").iterdir()) == []


@pytest.mark.parametrize("end", [b"\r\n", b"\n\n", b" \n"])
def test_an_archive_that_was_unpacked_and_packed_elsewhere_is_read(results: Path, end: bytes) -> None:
    before: tuple[Record, ...] = tuple(sorted(runner(results, grid(1)).run(), key=lambda record: record.id))
    assert lora_bench(*ARCHIVE).code == DONE
    path = archive.path_of(results)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"\n", end)))
    assert read_records(results).records == before
