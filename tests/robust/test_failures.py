"""What a runner makes of errors and signals: reasons, halves, cells and runs that end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_bench.cell import Cell
from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records
from lora_bench.run import plan as plans
from lora_bench.run.executor import LocalExecutor
from lora_bench.run.interfaces import Job, Options, RunContext
from lora_bench.run.outcome import Outcome
from lora_bench.run.publish import RecordStore
from lora_bench.run.runner import Runner
from lora_bench.run.signals import Stopper
from lora_bench.testing import QuietView
from tests.robust.stub_worker import QUIET, StubWorker, grid, left, reasons, runner, statuses


def failing(results: Path, error: Exception, **options: Any) -> Callable[[], list[Record]]:
    """A run of two cells whose work fails so."""
    plan = plans.make(grid(1), results, 16)

    def work(cells: Sequence[Cell]) -> None:
        raise error

    return Runner(
        plan, Options(results, **options), QuietView(), None, LocalExecutor(StubWorker(plan, on_cells=work))
    ).run


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (ValueError(), "ValueError"),
        (BenchError("It cannot be.", "Do else.", USAGE), "BenchError: It cannot be. Do else."),
        (RuntimeError("x" * 600), "RuntimeError: " + "x" * 486),
    ],
)
def test_a_failure_is_reported_in_one_line_of_the_record(results: Path, error: Exception, reason: str) -> None:
    failing(results, error)()
    assert statuses(results) == {1: "failed", 2: "failed"}
    assert reasons(results) == [reason]
    assert {record.environment["device"] for record in read_records(results).records} == {"stub"}


def test_what_no_cell_is_to_blame_for_ends_the_run(results: Path) -> None:
    """A full disk, a model or data that are missing: no cell is recorded, and the folder is left in order."""
    full = OSError(28, "No space left on device", "values")
    for error, said in (
        (full, "No space left on device: 'values'."),
        (BenchError("None.", "Get it.", MISSING), "None."),
    ):
        with pytest.raises(BenchError) as caught:
            failing(results, error)()
        assert (caught.value.what, caught.value.code) == (said, MISSING)
        assert left(results) == ["metrics.csv"]
    with pytest.raises(OSError, match="No space left"):
        failing(results, full, debug=True)()
    with pytest.raises(ValueError, match="as it is"):
        failing(results, ValueError("as it is"), debug=True)()


def test_what_cells_have_in_common_and_cannot_be_loaded_ends_the_run(results: Path) -> None:
    """Whatever the error: no cell is at fault, so none is recorded as failed."""

    class Unprepared(StubWorker):
        def prepare(self, cells: tuple[Cell, ...]) -> None:
            raise ValueError("no encoder")

    plan = plans.make(grid(1), results, 16)
    with pytest.raises(ValueError, match="no encoder"):
        Runner(plan, Options(results), QuietView(), None, LocalExecutor(Unprepared(plan))).run()
    assert statuses(results) == {}
    assert left(results) == ["metrics.csv"]


@pytest.mark.parametrize("ended", [1, 2])
def test_what_was_published_before_an_error_counts(results: Path, ended: int) -> None:
    class Stumbling(StubWorker):
        def train(self, job: Job, context: RunContext) -> Iterator[list[Outcome]]:
            (outcomes,) = super().train(job, context)
            yield outcomes[:ended]
            raise ValueError("too late")

    plan, view = plans.make(grid(1), results, 16), QuietView()
    Runner(plan, Options(results), view, None, LocalExecutor(Stumbling(plan))).run()
    assert statuses(results) == ({1: "done", 2: "failed"} if ended == 1 else {1: "done", 2: "done"})
    assert view.warnings == []


def test_only_memory_counts_as_halved_and_what_failed_is_given_back(results: Path) -> None:
    jobs: list[tuple[int, int]] = []

    class Watched(StubWorker):
        forgotten = 0

        def train(self, job: Job, context: RunContext) -> Iterator[list[Outcome]]:
            jobs.append((len(job.cells), job.halved))
            if len(job.cells) > 2:
                raise MemoryError("all of it")
            if len(job.cells) == 2:
                raise ValueError(f"of {job.cells[0].rank}")
            yield from super().train(job, context)

        def forget(self) -> None:
            self.forgotten += 1

    plan = plans.make(grid(1, range(1, 6)), results, 16)
    worker, view = Watched(plan), QuietView()
    Runner(plan, Options(results), view, None, LocalExecutor(worker)).run()
    assert jobs == [(5, 0), (2, 1), (1, 1), (1, 1), (3, 1), (1, 2), (2, 2), (1, 2), (1, 2)]
    assert worker.forgotten == 4
    assert set(statuses(results).values()) == {"done"}
    assert sorted(view.ended) == sorted(cell.id for cell in plan.grid.cells)
    assert [warning.split(";")[0] for warning in view.warnings] == [
        "A pack of 5 cells failed (MemoryError: all of it)", "A pack of 2 cells failed (ValueError: of 1)",
        "A pack of 3 cells failed (MemoryError: all of it)", "A pack of 2 cells failed (ValueError: of 4)",
    ]  # fmt: skip


def test_memory_that_lacks_in_single_cells_does_not_give_the_pack_up(results: Path) -> None:
    """Failing alike is for errors; cells that lack memory are each tried, as each needs its own."""

    def work(cells: Sequence[Cell]) -> None:
        if len(cells) > 1:
            raise ValueError("some error")
        raise MemoryError("alike")

    plan = plans.make(grid(1, range(1, 7)), results, 16)
    Runner(plan, Options(results), QuietView(), None, LocalExecutor(StubWorker(plan, on_cells=work))).run()
    assert set(statuses(results).values()) == {"oom"}
    assert reasons(results) == ["MemoryError: alike"]


@pytest.mark.parametrize(("fails", "done"), [(False, 2), (True, 0)])
def test_a_signal_ends_the_run_when_the_pack_has_ended(results: Path, fails: bool, done: int) -> None:
    """Well or not: nothing of a pack that failed is tried again."""
    stopper, made = Stopper(), grid(2)

    def work(cells: Sequence[Cell]) -> None:
        stopper.hold()
        stopper.asked = True
        if fails:
            raise ValueError("as it ends")

    running = runner(results, made, on_cells=work, stopper=stopper)
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert len(read_records(results).records) == done
    assert set(left(results)) <= set(QUIET)


def test_a_signal_ends_the_run_between_parts_of_a_pack(results: Path) -> None:
    """The first part is published, the second not trained."""
    stopper, begun = Stopper(), list[int]()

    class Parts(StubWorker):
        def train(self, job: Job, context: RunContext) -> Iterator[list[Outcome]]:
            (outcomes,) = super().train(job, context)
            for part, outcome in enumerate(outcomes):
                begun.append(part)
                stopper.asked = True
                yield [outcome]

    plan = plans.make(grid(1), results, 16)
    with pytest.raises(KeyboardInterrupt):
        Runner(plan, Options(results), QuietView(), stopper, LocalExecutor(Parts(plan))).run()
    assert begun == [0]
    assert statuses(results) == {1: "done"}


@pytest.mark.parametrize("when", ["before", "while loading"])
def test_a_signal_that_was_swallowed_ends_the_run_before_the_pack_trains(results: Path, when: str) -> None:
    """A library may have caught what the signal raised; that one has come is still known."""
    stopper, loaded = Stopper(), list[int]()

    class Loading(StubWorker):
        def prepare(self, cells: tuple[Cell, ...]) -> None:
            loaded.append(len(cells))
            stopper.asked = True

    stopper.asked = when == "before"
    plan = plans.make(grid(1), results, 16)
    worker = Loading(plan)
    with pytest.raises(KeyboardInterrupt):
        Runner(plan, Options(results), QuietView(), stopper, LocalExecutor(worker)).run()
    assert loaded == ([] if when == "before" else [2])
    assert worker.trained == []


def sizes_of(results: Path, fails: Callable[[Sequence[Cell]], Exception]) -> list[int]:
    """The sizes of the packs that were tried, of twelve cells that all fail so."""
    sizes: list[int] = []

    def work(cells: Sequence[Cell]) -> None:
        sizes.append(len(cells))
        raise fails(cells)

    runner(results, grid(1, range(1, 13)), on_cells=work).run()
    return sizes


def test_a_pack_is_looked_into_once_and_its_parts_are_not(results: Path) -> None:
    sizes = sizes_of(results, lambda cells: ValueError(f"of {cells[0].rank}"))
    assert [size for size in sizes if size > 1] == [12, 4, 2, 2, 5, 2, 3, 2]
    assert sizes.count(1) == 12


def test_the_halves_of_a_pack_that_lacked_memory_are_looked_into(results: Path) -> None:
    sizes = sizes_of(results, lambda cells: MemoryError() if len(cells) > 6 else ValueError("alike"))
    assert sizes == [12, 6, 1, 1, 1, 6, 1, 1, 1]


def test_a_pack_is_not_given_up_when_one_of_those_tried_fails_otherwise(results: Path) -> None:
    sizes = sizes_of(results, lambda cells: ValueError("odd" if cells[0].rank == 7 else "even"))
    assert sizes.count(1) == 12
    assert reasons(results) == ["ValueError: even", "ValueError: odd"]


def test_a_disk_that_is_full_when_a_pack_is_published_ends_the_run(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordStore, "publish", full)
    running = runner(results, grid(1))
    with pytest.raises(BenchError, match="No space left"):
        running.run()
    assert statuses(results) == {}
    assert running.view.ended == []  # type: ignore[attr-defined]
    assert not (results / "pending").exists()
