"""The owner of a results folder: who is refused, what a woken owner cannot do, and what dead processes leave."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import SoftFileLease

from lora_bench.cell import Cell
from lora_bench.errors import MISSING, BenchError
from lora_bench.records import files
from lora_bench.records.store import read_records
from lora_bench.run import owner
from lora_bench.run import plan as plans
from lora_bench.run.interfaces import Job
from lora_bench.run.owner import Owner
from lora_bench.run.publish import RecordStore
from lora_bench.run.runner import Runner
from lora_bench.testing import QuietView
from tests.robust.robust_kit import assert_clear_error, lora_bench, tree
from tests.robust.stub_worker import QUIET, NoRun, StubWorker, grid, left, runner, worker_of


def take_over(results: Path) -> None:
    """As if the owner had been suspended past its lease."""
    SoftFileLease(results / owner.LOCK, lease_duration=owner.TERM).force_break()


def devices(running: Runner) -> dict[int, str]:
    """Who made the records, by seed."""
    return {record.cell.seed: record.environment["device"] for record in running.store.records.values()}


def test_a_second_process_is_refused_with_the_name_of_the_owner(results: Path) -> None:
    with Owner(results):
        before, began = tree(results), time.monotonic()
        with pytest.raises(
            BenchError, match=rf"'{results}' is in use by process {os.getpid()} on \S+ since 2"
        ) as caught:
            runner(results, grid(1)).run()
        assert time.monotonic() - began < 5
        assert caught.value.code == MISSING
        assert tree(results) == before
    assert len(runner(results, grid(1)).run()) == 2
    assert left(results) == QUIET


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_second_command_is_refused_before_it_plans_or_starts_an_engine(results: Path, engine: str) -> None:
    with Owner(results):
        before = tree(results)
        ended = lora_bench("run", "--preset", "smoke", "--results", str(results), "--engine", engine)
        assert_clear_error(ended, MISSING, f"is in use by process {os.getpid()} on")
        assert ended.out == ""
        assert "starting Ray" not in {thread.name for thread in threading.enumerate()}
        assert tree(results) == before


def test_what_another_has_recorded_since_the_plan_is_not_trained(results: Path) -> None:
    made = grid(2)
    late = runner(results, made)
    runner(results, made, "early").run()
    assert len(late.run()) == 4
    assert worker_of(late).trained == []
    assert set(devices(late).values()) == {"early"}


def test_an_owner_that_others_have_succeeded_publishes_nothing(results: Path) -> None:
    made = grid(2)

    def suspended(cells: Sequence[Cell]) -> None:
        take_over(results)
        runner(results, grid(1), "other").run()

    with pytest.raises(BenchError, match="was suspended so long") as caught:
        runner(results, made, "first", suspended).run()
    assert caught.value.code == MISSING
    assert {record.environment["device"] for record in read_records(results).records} == {"other"}
    assert left(results) == QUIET
    again = runner(results, made, "again")
    assert len(again.run()) == 4
    assert devices(again) == {0: "other", 1: "again"}


@pytest.mark.parametrize("when", ["stage", "publish", "write_csv"])
def test_an_owner_that_is_succeeded_after_it_has_checked_its_lease_publishes_nothing(
    results: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Suspended between the check and what follows: its folder is gone, so nothing can be moved out of it."""
    made = grid(1)
    proper, late = getattr(RecordStore, when), list[str]()

    def suspended(store: RecordStore, *rest: object) -> object:
        if worker_of(first).trained and not late:
            late.append(when)
            take_over(results)
            runner(results, grid(2), "other").run()
        return proper(store, *rest)

    first = runner(results, made, "first")
    monkeypatch.setattr(RecordStore, when, suspended)
    with pytest.raises(BenchError):
        first.run()
    assert late
    makers = {record.environment["device"] for record in read_records(results).records}
    assert makers == ({"first", "other"} if when == "write_csv" else {"other"})
    assert (results / "metrics.csv").read_text().count("\n") == 1 + 4
    assert left(results) == QUIET


def test_a_folder_whose_owner_died_elsewhere_is_free_when_its_lease_is_over(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "TERM", 0.5)
    with Owner(results):
        marker = (results / owner.LOCK).read_text()
        holder = owner.current(results)
    assert holder is not None
    changed = "".join(
        "host=elsewhere\n" if line.startswith("host=") else line for line in marker.splitlines(keepends=True)
    )
    (results / owner.LOCK).write_text(changed)
    (results / owner.HOLDER).write_text(holder.model_copy(update={"host": "elsewhere", "boot": "x"}).model_dump_json())
    running = runner(results, grid(1))
    assert len(running.run()) == 2
    assert isinstance(running.view, QuietView)
    (warning,) = running.view.warnings
    assert "on elsewhere since" in warning
    assert "may have died" in warning


def test_an_owner_elsewhere_that_shows_life_is_not_succeeded(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Owner(results) as other:
        monkeypatch.setattr(owner, "_boot", lambda: "another kernel")
        alive = threading.Timer(0.5, lambda: os.utime(other._lock))
        alive.start()
        with pytest.raises(BenchError, match="is in use by"):
            runner(results, grid(1)).run()
        other.check()


def test_a_lease_without_a_name_is_no_hindrance_for_long(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it was killed before it wrote its name."""
    monkeypatch.setattr(owner, "RENEW", 0.3)
    results.mkdir()
    (results / owner.LOCK).touch()
    assert len(runner(results, grid(1)).run()) == 2
    assert left(results) == QUIET


def test_what_trains_is_shown_to_others_and_no_more(results: Path) -> None:
    made, seen = grid(2), list[tuple[list[int], list[int]]]()

    def work(cells: Sequence[Cell]) -> None:
        statuses = plans.make(made, results, 16).statuses
        running = [cell.seed for cell in made.cells if statuses[cell.id].state == "running"]
        seen.append(([cell.seed for cell in cells], running))

    runner(results, made, on_cells=work).run()
    assert seen == [([0, 0], [0, 0]), ([1, 1], [1, 1])]
    assert {status.state for status in plans.make(made, results, 16).statuses.values()} == {"done"}


def test_a_dead_owner_is_not_shown_as_running(results: Path) -> None:
    with Owner(results) as dead:
        dead.note_training([grid(1).cells[0].id])
        holder = owner.current(results)
        assert holder is not None
        assert holder.pid == os.getpid()
        (results / owner.HOLDER).write_text(holder.model_copy(update={"pid": 2**22 + 1}).model_dump_json())
        assert owner.current(results) is None
        (results / owner.HOLDER).write_text(holder.model_copy(update={"boot": "x"}).model_dump_json())
        assert owner.current(results) is not None
        os.utime(results / owner.LOCK, (1, 1))
        assert owner.current(results) is None


def test_what_dead_processes_left_is_seen_to_though_nothing_is_to_train(results: Path) -> None:
    """A pack that was published and not moved to its final folders, one that was not, files half written."""
    made, more = grid(1), grid(2)
    runner(results, made).run()
    plan = plans.make(more, results, 16)
    (outcomes,) = StubWorker(plan, "dead").train(Job(1, plan.packs[0]), NoRun())
    store = RecordStore(results)
    store.begin()
    files.move(store.stage(outcomes), results / "pending" / "0123-0")
    store.stage(outcomes)
    for name in ("cells/.half.json.0123456789ab.tmp", ".owner.json.0123456789ab.tmp"):
        (results / name).touch()
    last = runner(results, made)
    assert len(last.run()) == 2
    assert worker_of(last).trained == []
    assert {record.environment["device"] for record in read_records(results).records} == {"stub", "dead"}
    assert (results / "metrics.csv").read_text().count("\n") == 1 + 4
    assert left(results) == QUIET
    assert list((results / "cells").glob(".*")) == []


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
        with pytest.raises(KeyboardInterrupt), Owner(tmp_path):
            raise AssertionError("it did not begin")
    assert not list(tmp_path.glob("owner*"))
    with Owner(tmp_path) as again:
        again.check()
