"""What a runner does beside others and when things fail: claims, lost leases, halves, reasons, what ends a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from stub_worker import Silent, StubWorker, grid, runner

from lora_bench import files
from lora_bench import plan as plans
from lora_bench.cell import Cell
from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.leases import Holder, Lease
from lora_bench.runner import Runner
from lora_bench.signals import Stopper
from lora_bench.states import Place
from lora_bench.store import Record, read_records
from lora_bench.work import Options

QUIET = ["adapters", "cells", "leases", "metrics.csv"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder that is not there yet."""
    return tmp_path / "results"


def statuses(results: Path) -> dict[int | None, str]:
    """How the cells ended, by rank."""
    return {record.cell.rank: record.status for record in read_records(results).records}


def reasons(results: Path) -> list[str | None]:
    """Why cells failed."""
    return sorted({record.reason for record in read_records(results).records}, key=str)


def left(results: Path) -> list[str]:
    """What lies in the folder."""
    return sorted(path.name for path in results.iterdir())


class Claimed:
    """Another process, which holds cells until it is told to let go."""

    def __init__(self, results: Path, cells: Sequence[Cell]) -> None:
        self.lease = Lease(results)
        self.lease.__enter__()
        with self.lease.locked():
            self.lease.claim([cell.id for cell in cells])

    def let_go(self) -> None:
        """Its lease ends."""
        self.lease.__exit__(None, None, None)


def test_what_another_holds_is_left_to_it(results: Path) -> None:
    made = grid(2)
    first, second = plans.make(made, results, 16).packs
    other = Claimed(results, first[:1])
    running = runner(results, made)
    records = running.run()
    assert {record.id for record in records} == {cell.id for cell in (*first[1:], *second)}
    assert {cell: holder.token for cell, holder in running.held.items()} == {first[0].id: other.lease.token}
    other.let_go()
    again = runner(results, made)
    assert [record.cell for record in again.run()] == list(made.cells)
    assert again.worker.trained == [first[0].id]  # type: ignore[attr-defined]
    assert again.held == {}


def test_what_another_lets_go_while_a_pack_trains_is_trained_too(results: Path) -> None:
    made = grid(2)
    first, _ = plans.make(made, results, 16).packs
    other = Claimed(results, first)

    def work(cells: Sequence[Cell]) -> None:
        if not set(cells) & set(first):
            other.let_go()

    running = runner(results, made, on_cells=work)
    assert len(running.run()) == 4
    assert running.held == {}


def test_what_another_has_recorded_since_the_plan_is_not_trained(results: Path) -> None:
    made = grid(2)
    late = runner(results, made)
    early = runner(results, made, "early")
    early.run()
    assert len(late.run()) == 4
    assert late.worker.trained == []  # type: ignore[attr-defined]
    assert {record.environment["device"] for record in read_records(results).records} == {"early"}


def test_a_lost_lease_publishes_nothing_and_the_run_goes_on_under_another(results: Path) -> None:
    """Another process takes the cells over while the first stands still; what the first then has does not count."""
    made = grid(2)
    started: list[Sequence[Cell]] = []

    def standing_still(cells: Sequence[Cell]) -> None:
        started.append(cells)
        if len(started) == 1:
            (lease,) = (results / "leases").glob("*.json")
            lease.unlink()
            runner(results, grid(1), "other").run()

    running = runner(results, made, "first", standing_still)
    records = running.run()
    assert [record.cell for record in records] == list(made.cells)
    makers = {record.cell.seed: record.environment["device"] for record in records}
    assert makers == {0: "other", 1: "first"}
    assert isinstance(running.view, Silent)
    assert [warning.split(" for so long")[0] for warning in running.view.warnings] == ["This process stood still"]
    assert left(results) == QUIET


def failing(results: Path, error: Exception, **options: Any) -> Callable[[], list[Record]]:
    """A run of two cells whose work fails so."""
    plan = plans.make(grid(1), results, 16)

    def work(cells: Sequence[Cell]) -> None:
        raise error

    return Runner(plan, Options(results, **options), Silent(), None, StubWorker(plan, on_cells=work)).run


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (ValueError(), "ValueError"),
        (BenchError("It cannot be.", "Do else.", USAGE), "BenchError: It cannot be. Do else."),
        (RuntimeError("x" * 600), "RuntimeError: " + "x" * 486),
    ],
)
def test_a_failure_is_told_in_one_line_of_the_record(results: Path, error: Exception, reason: str) -> None:
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
        assert left(results) == ["leases", "metrics.csv"]
    with pytest.raises(OSError, match="No space left"):
        failing(results, full, debug=True)()
    with pytest.raises(ValueError, match="as it is"):
        failing(results, ValueError("as it is"), debug=True)()


def test_only_memory_counts_as_halved_and_what_failed_is_given_back(results: Path) -> None:
    told: list[tuple[int, int]] = []

    class Watched(StubWorker):
        forgotten = 0

        def train(self, cells: tuple[Cell, ...], halved: int, place: Any) -> Any:
            told.append((len(cells), halved))
            if len(cells) > 2:
                raise MemoryError("all of it")
            if len(cells) == 2:
                raise ValueError(f"of {cells[0].rank}")
            yield from super().train(cells, halved, place)

        def forget(self) -> None:
            self.forgotten += 1

    plan = plans.make(grid(1, range(1, 6)), results, 16)
    worker, view = Watched(plan), Silent()
    Runner(plan, Options(results), view, None, worker).run()
    assert told == [(5, 0), (2, 1), (1, 1), (1, 1), (3, 1), (1, 2), (2, 2), (1, 2), (1, 2)]
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
    Runner(plan, Options(results), Silent(), None, StubWorker(plan, on_cells=work)).run()
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
    assert list((results / "leases").glob("*.json")) == []


def test_what_a_killed_process_left_is_tidied_unless_another_is_alive(results: Path) -> None:
    made = grid(2)
    other = Claimed(results, plans.make(made, results, 16).packs[0])
    unfinished = results / "cells" / ".x.json.0123.tmp"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    runner(results, made).run()
    assert unfinished.exists()  # it may be the other's
    other.let_go()
    late = runner(results, made, on_cells=lambda cells: None if not unfinished.exists() else pytest.fail("it is there"))
    late.run()
    assert not unfinished.exists()
    assert left(results) == QUIET


def test_a_lease_lost_at_the_very_end_is_noticed(results: Path) -> None:
    """What was published counts; what others have done since is looked at again."""

    class StandingStill(Silent):
        def done(self, records: Sequence[Record]) -> None:
            super().done(records)
            (lease,) = (results / "leases").glob("*.json")
            lease.unlink()

    plan, view = plans.make(grid(1), results, 16), StandingStill()
    assert len(Runner(plan, Options(results), view, None, StubWorker(plan)).run()) == 2
    assert len(view.ended) == 2
    assert len(view.warnings) == 1


def test_what_dead_processes_left_is_seen_to_though_nothing_is_to_train(results: Path) -> None:
    """A pack that was published and not brought to its place, a lease that has run out, a file half written."""
    made, more = grid(1), grid(2)
    runner(results, made).run()
    plan = plans.make(more, results, 16)
    (outcomes,) = StubWorker(plan, "dead").train(plan.packs[0], 0, place_of(results))
    files.place(plan.shelf.stage("0123-0", outcomes), results / "pending" / "0123-0")
    lease = results / "leases" / "0123.json"
    lease.write_text(Holder(token="0123", host="elsewhere", boot="then", pid=1).model_dump_json())
    os.utime(lease, (1, 1))
    (results / "cells" / ".half.json.0123.tmp").touch()
    last = runner(results, made)
    assert len(last.run()) == 2
    assert last.worker.trained == []  # type: ignore[attr-defined]
    assert {record.environment["device"] for record in read_records(results).records} == {"stub", "dead"}
    assert (results / "metrics.csv").read_text().count("\n") == 1 + 4
    assert left(results) == QUIET
    assert list((results / "leases").glob("*.json")) == list((results / "cells").glob(".*")) == []


def place_of(results: Path) -> Place:
    """Where a process without a lease saves."""
    return Place(results, "0123", {}, Stopper(), lambda: None, pytest.fail)


def test_states_of_cells_that_have_ended_go_with_each_pack(results: Path) -> None:
    seen: list[int] = []

    def work(cells: Sequence[Cell]) -> None:
        seen.append(len(list((results / "states").glob("*"))))

    runner(results, grid(3), on_cells=work).run()
    assert seen == [0, 0, 0]
