"""Runners beside others: what is claimed, held, let go and lost, and what dead processes leave."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_bench.cell import Cell
from lora_bench.records import files
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records
from lora_bench.run import plan as plans
from lora_bench.run.interfaces import Options, RunContext
from lora_bench.run.leases import Holder, Lease
from lora_bench.run.runner import Runner
from lora_bench.run.signals import Stopper
from lora_bench.testing import QuietView
from tests.robust.stub_worker import QUIET, StubWorker, grid, left, runner


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
    assert isinstance(running.view, QuietView)
    assert [warning.split(" so long")[0] for warning in running.view.warnings] == ["This process was suspended"]
    assert left(results) == QUIET


def test_what_a_killed_process_left_is_tidied_unless_another_is_alive(results: Path) -> None:
    made = grid(2)
    other = Claimed(results, plans.make(made, results, 16).packs[0])
    unfinished = results / "cells" / ".x.json.0123456789ab.tmp"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    runner(results, made).run()
    assert unfinished.exists()  # it may be the other's
    other.let_go()
    late = runner(results, made, on_cells=lambda cells: None if not unfinished.exists() else pytest.fail("it is there"))
    late.run()
    assert not unfinished.exists()
    assert left(results) == QUIET


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_lease_lost_after_a_pack_is_noticed(results: Path, seeds: int) -> None:
    """At the very end, or before the next one: what was published counts, the rest goes on under another lease."""

    class StandingStill(QuietView):
        def done(self, records: Sequence[Record]) -> None:
            if not self.ended:
                (lease,) = (results / "leases").glob("*.json")
                lease.unlink()
            super().done(records)

    plan, view = plans.make(grid(seeds), results, 16), StandingStill()
    assert len(Runner(plan, Options(results), view, None, StubWorker(plan)).run()) == 2 * seeds
    assert len(view.ended) == len(set(view.ended)) == 2 * seeds
    assert len(view.warnings) == 1


def test_what_trains_is_told_to_others_and_no_more(results: Path) -> None:
    made, seen = grid(2), list[tuple[list[int], list[int]]]()

    def work(cells: Sequence[Cell]) -> None:
        found = plans.make(made, results, 16).statuses
        running = [cell.seed for cell in made.cells if found[cell.id].state == "running"]
        seen.append(([cell.seed for cell in cells], running))

    runner(results, made, on_cells=work).run()
    assert seen == [([0, 0], [0, 0]), ([1, 1], [1, 1])]


def test_what_dead_processes_left_is_seen_to_though_nothing_is_to_train(results: Path) -> None:
    """A pack that was published and not brought to its place, a lease that has run out, a file half written."""
    made, more = grid(1), grid(2)
    runner(results, made).run()
    plan = plans.make(more, results, 16)
    (outcomes,) = StubWorker(plan, "dead").train(plan.packs[0], 0, context_of(results))
    files.move(plan.store.stage("0123-0", outcomes), results / "pending" / "0123-0")
    lease = results / "leases" / "0123.json"
    lease.write_text(Holder(token="0123", host="elsewhere", boot="then", pid=1).model_dump_json())
    os.utime(lease, (1, 1))
    (results / "cells" / ".half.json.0123456789ab.tmp").touch()
    last = runner(results, made)
    assert len(last.run()) == 2
    assert last.worker.trained == []  # type: ignore[attr-defined]
    assert {record.environment["device"] for record in read_records(results).records} == {"stub", "dead"}
    assert (results / "metrics.csv").read_text().count("\n") == 1 + 4
    assert left(results) == QUIET
    assert list((results / "leases").glob("*.json")) == list((results / "cells").glob(".*")) == []


def context_of(results: Path) -> RunContext:
    """Where a process without a lease saves."""
    return RunContext(results, "0123", {}, Stopper(), lambda: None, pytest.fail)


def test_states_of_cells_that_have_ended_go_with_each_pack(results: Path) -> None:
    seen: list[int] = []

    def work(cells: Sequence[Cell]) -> None:
        seen.append(len(list((results / "states").glob("*"))))

    runner(results, grid(3), on_cells=work).run()
    assert seen == [0, 0, 0]


def test_a_signal_while_a_lease_begins_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes where the lease's thread is awaited: the file is written by then, and nobody else would remove it."""
    (tmp_path / "cells").mkdir()

    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt), Lease(tmp_path):
            raise AssertionError("it did not begin")
    assert list((tmp_path / "leases").glob("*.json")) == []
    with Lease(tmp_path) as lease:
        assert lease.alone()
