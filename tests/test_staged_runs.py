"""Grids in which cells wait for others, from the command line and through the runner."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_bench import provenance
from lora_bench.cell import Cell
from lora_bench.grid.cells import Grid, expand
from lora_bench.grid.config import Config
from lora_bench.records.schema import Record
from lora_bench.records.store import read_records, write_record
from lora_bench.run import plan as plans
from lora_bench.run.executor import LocalExecutor, train_job
from lora_bench.run.interfaces import Driver, Job, Options, RunContext, Setup, StageProgress
from lora_bench.run.outcome import Outcome
from lora_bench.run.runner import Runner
from lora_bench.run.status import CellStatus
from lora_bench.testing import QuietView, make_epochs, make_record
from lora_bench.testing.data import make_data
from lora_bench.testing.encoders import make_model
from tests.robust.robust_kit import assert_clear_error, lora_bench
from tests.robust.stub_worker import StubWorker

# ---- without training


class Scoring(StubWorker):
    """Says of every cell that it is done with a score that follows from its settings; of some, that it diverged."""

    diverging = 0.1  # the share of cells

    def train(self, job: Job, context: RunContext) -> Iterator[list[Outcome]]:
        """End the pack."""
        self.on_cells(job.cells)
        self.trained += [cell.id for cell in job.cells]
        assert all(cell.start is None or cell.start in job.starts for cell in job.cells)
        yield [self.outcome(cell, cell.id in job.needed) for cell in job.cells]

    def outcome(self, cell: Cell, needed: bool) -> Outcome:
        """Return what becomes of a cell."""
        from lora_bench.records.adapters import HEAD, MANIFEST, AdapterManifest, Part
        from lora_bench.records.seal import describe, seal

        draw = random.Random(cell.id)
        environment = {**self.environment(), **provenance.current(cell.method)}
        if draw.random() < self.diverging:
            return Outcome(make_record(None, cell=cell, status="diverged", reason="nan", environment=environment))
        record = make_record(0.5, cell=cell, epochs=make_epochs(0.5, held_out=[draw.random()]), environment=environment)
        parts: dict[Part, bytes] = {HEAD: cell.id.encode()}
        manifest = AdapterManifest(cell=cell, outputs=2, files=describe(parts))
        files: dict[str, bytes] = {MANIFEST: seal(manifest.model_dump_json()), **{HEAD: cell.id.encode()}}
        return Outcome(record, files if needed else {})


class Sound(Scoring):
    """Says of no cell that it diverged."""

    diverging = 0.0


class Slots:
    """An executor whose jobs end in any order."""

    def __init__(self, worker: StubWorker, slots: int, seed: int) -> None:
        self.worker, self.devices, self.slots = worker, slots, slots
        self._draw = random.Random(seed)
        self.jobs: list[Job] = []

    def start(self, setup: Setup, driver: Driver) -> None:
        """Begin a run."""
        self.setup, self.driver = setup, driver

    def submit(self, job: Job) -> None:
        """Take a job."""
        taken = {cell.id for other in self.jobs for cell in other.cells}
        assert taken.isdisjoint(cell.id for cell in job.cells)
        self.jobs.append(job)

    def advance(self) -> None:
        """Train one of the jobs to its end."""
        job = self.jobs.pop(self._draw.randrange(len(self.jobs)))
        self.driver.finish(job, train_job(self.worker, job, self.driver, debug=False))

    def close(self) -> None:
        """There is nothing to end."""


def staged(**defaults: Any) -> Grid:
    """A search for the rates of three methods on two tasks, one of which starts from the other; two seeds."""
    base: dict[str, Any] = {
        "model": "sample",
        "task": ["mnli", "rte"],
        "method": ["lora", "head", "full"],
        "seed": [0, 1],
        "lr": {"search": [1e-3, 1e-2], "seeds": [100, 101]},
        "start": {"rte": "mnli"},
    }
    return expand(Config(name="stub", defaults=base | defaults, blocks=({},)), {}, plans.sources())


def run(results: Path, slots: int = 1, seed: int = 0, **defaults: Any) -> tuple[Runner, list[Record], StubWorker]:
    plan = plans.make(staged(**defaults), results, 5)
    worker = Scoring(plan)
    executor = Slots(worker, slots, seed) if slots > 1 else LocalExecutor(worker)
    runner = Runner(plan, Options(results), QuietView(), executor=executor)
    return runner, runner.run(), worker


def run_chain(results: Path, retry: Sequence[str] = (), **defaults: Any) -> list[str]:
    """Run LoRA cells of tasks that continue from one another, none of which fails; the ids of those that trained."""
    plan = plans.make(staged(method=["lora"], lr=1e-3, **defaults), results, 5, retry)
    worker = Sound(plan)
    Runner(plan, Options(results), QuietView(), executor=LocalExecutor(worker)).run()
    return worker.trained


def chain_statuses(results: Path, **defaults: Any) -> Mapping[str, CellStatus]:
    """The statuses of these cells by id."""
    return plans.make(staged(method=["lora"], lr=1e-3, **defaults), results, 5).statuses


def plain(records: Sequence[Record]) -> dict[str, Record]:
    return {record.id: record for record in records}


def test_a_staged_grid_runs_to_its_end_and_each_cell_once(tmp_path: Path) -> None:
    runner, records, worker = run(tmp_path)
    assert len(worker.trained) == len(set(worker.trained)) == len(records)
    assert {entry.state for entry in runner.plan.grid.entries} <= {"ready", "blocked"}
    again = plans.make(staged(), tmp_path, 5)
    assert again.todo == ()
    assert {record.id for record in again.recorded} == {record.id for record in records}


def test_cells_that_wait_for_different_searches_train_together(tmp_path: Path) -> None:
    """Searches come first, also where one of them adds rates, so that the packs of the grid hold both methods."""
    packs: list[tuple[Cell, ...]] = []
    settings = {"task": "mrpc", "method": ["lora", "xs"], "seed": [0, 1, 2], "start": None}
    plan = plans.make(staged(**settings), tmp_path, 5)
    worker = Scoring(plan, on_cells=lambda cells: packs.append(tuple(cells)))
    runner = Runner(plan, Options(tmp_path), QuietView(), executor=LocalExecutor(worker))
    runner.run()
    tried = {(cell.method, cell.lr) for pack in packs for cell in pack if cell.seed >= 100}
    assert len([method for method, _ in tried if method == "lora"]) != len([m for m, _ in tried if m == "xs"])
    assert [{cell.method for cell in pack} for pack in packs if pack[0].seed < 100] == [{"lora", "xs"}] * 3


@pytest.mark.parametrize("seed", range(5))
def test_the_order_in_which_devices_end_changes_nothing(tmp_path: Path, seed: int) -> None:
    _, expected, _ = run(tmp_path / "one")
    _, records, worker = run(tmp_path / "several", slots=3, seed=seed)
    assert len(worker.trained) == len(set(worker.trained))
    assert plain(records) == plain(expected)


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_cells(tmp_path: Path, seed: int) -> None:
    """Each command trains a few packs and dies; the packs are the same as without interruptions."""
    packs: list[tuple[str, ...]] = []

    def noted(cells: Sequence[Cell]) -> None:
        packs.append(tuple(cell.id for cell in cells))

    plan = plans.make(staged(), tmp_path / "uninterrupted", 5)
    expected = Runner(
        plan, Options(tmp_path / "uninterrupted"), QuietView(), executor=LocalExecutor(Scoring(plan, on_cells=noted))
    ).run()
    uninterrupted, draw = list(packs), random.Random(seed)
    packs.clear()
    for _ in range(100):
        left = draw.randrange(1, 6)

        def stop(cells: Sequence[Cell]) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            noted(cells)

        plan = plans.make(staged(), tmp_path / "killed", 5)
        executor = LocalExecutor(Scoring(plan, on_cells=stop))
        try:
            records = Runner(plan, Options(tmp_path / "killed"), QuietView(), executor=executor).run()
            break
        except KeyboardInterrupt:
            continue
    assert packs == uninterrupted
    assert plain(records) == plain(expected)


def test_what_waits_is_shown_until_nothing_does(tmp_path: Path) -> None:
    class Following(QuietView):
        seen: list[list[StageProgress]]

        def staged(self, stages: Sequence[StageProgress]) -> None:
            self.seen.append(list(stages))

    view = Following()
    view.seen = []
    plan = plans.make(staged(), tmp_path, 5)
    Runner(plan, Options(tmp_path), view, executor=LocalExecutor(Scoring(plan))).run()
    first, last = ({stage.title: stage for stage in stages} for stages in (view.seen[0], view.seen[-1]))
    assert list(first) == ["search MNLI", "MNLI", "search RTE", "RTE"]
    assert first["search MNLI"].ready == 12
    assert (first["RTE"].waiting, first["RTE"].needs) == (6, ("search RTE", "MNLI"))
    assert all((stage.ready, stage.waiting) == (0, 0) for stage in last.values())
    assert all(stage.cells == stage.ended + stage.blocked for stage in last.values())
    ended = [sum(stage.ended for stage in stages) for stages in view.seen]
    assert ended == sorted(ended)


def test_weights_that_cells_of_searches_need_are_there_and_go(tmp_path: Path) -> None:
    """`Scoring.train` checks that they come; at the end nothing of `full` is left."""
    _, records, _ = run(tmp_path)
    starts = {record.cell.start for record in records} - {None}
    left = {path.name for path in (tmp_path / "adapters").iterdir()}
    full = {record.id for record in records if record.cell.method == "full"}
    assert starts & full
    assert not left & full
    assert starts - full <= left


def test_retrying_a_search_chooses_again(tmp_path: Path) -> None:
    """A failed cell of a search is tried again with --retry; until it has ended, the grid waits."""
    _, records, _ = run(tmp_path)
    diverged = [record for record in records if record.status == "diverged" and record.is_search]
    assert diverged
    plan = plans.make(staged(), tmp_path, 5, ["diverged"])
    assert {cell.id for cell in plan.todo} & {record.id for record in diverged}
    assert any(entry.state == "waiting" for entry in plan.grid.entries)
    worker = Scoring(plan)
    Runner(plan, Options(tmp_path), QuietView(), executor=LocalExecutor(worker)).run()
    assert {record.id for record in diverged} <= set(worker.trained)
    assert plain(read_records(tmp_path).records) == plain(records)


THREE: dict[str, Any] = {"task": ["mnli", "rte", "mrpc"], "start": {"rte": "mnli", "mrpc": "rte"}}


def test_a_cell_is_stale_where_only_its_start_was_trained_again_on_other_data(tmp_path: Path) -> None:
    """And so is what continues from that cell. All of it trains again with --retry stale."""
    run_chain(tmp_path, **THREE)
    assert {status.state for status in chain_statuses(tmp_path, **THREE).values()} == {"done"}
    records = read_records(tmp_path).records
    ids = {(record.cell.task, record.cell.seed): record.id for record in records}
    for record in records:
        if record.cell.task == "mnli":
            assert record.data is not None
            data = record.data.model_copy(update={"fingerprint": "other"})
            write_record(tmp_path, record.model_copy(update={"data": data}))
    statuses = chain_statuses(tmp_path, **THREE)
    for seed in (0, 1):
        assert statuses[ids["mnli", seed]].state == "done"
        rte, mrpc = statuses[ids["rte", seed]], statuses[ids["mrpc", seed]]
        assert (rte.state, rte.will_run, mrpc.state) == ("stale", False, "stale")
        assert rte.reason.startswith(f"start: {ids['mnli', seed]} was trained again since, with other code, ")
        assert mrpc.reason.startswith(f"start: {ids['rte', seed]} is stale")
    assert set(run_chain(tmp_path, ["stale"], **THREE)) == {
        ids[task, seed] for task in ("rte", "mrpc") for seed in (0, 1)
    }
    assert {status.state for status in chain_statuses(tmp_path, **THREE).values()} == {"done"}


def test_retrying_a_stale_start_trains_what_continues_from_it_too(tmp_path: Path) -> None:
    run_chain(tmp_path, seed=[0], **THREE)
    (start,) = (record for record in read_records(tmp_path).records if record.cell.task == "mnli")
    write_record(tmp_path, start.model_copy(update={"environment": start.environment | {"torch": "0.1"}}))
    assert {status.state for status in chain_statuses(tmp_path, seed=[0], **THREE).values()} == {"stale"}
    assert len(run_chain(tmp_path, ["stale"], seed=[0], **THREE)) == 3
    assert {status.state for status in chain_statuses(tmp_path, seed=[0], **THREE).values()} == {"done"}


def test_a_record_that_does_not_say_what_its_start_was_trained_with_is_not_stale(tmp_path: Path) -> None:
    run_chain(tmp_path, **THREE)
    for record in read_records(tmp_path).records:
        assert (record.protocol.start_trained is None) == (record.cell.task == "mnli")
        protocol = record.protocol.model_copy(update={"start_trained": None})
        write_record(tmp_path, record.model_copy(update={"protocol": protocol}))
    assert {status.state for status in chain_statuses(tmp_path, **THREE).values()} == {"done"}


def test_what_a_start_was_trained_with_covers_all_that_makes_a_record_stale() -> None:
    record = make_record(0.5)
    for name in provenance.current("lora"):
        changed = record.model_copy(update={"environment": record.environment | {name: "0.1"}})
        built = record.model_copy(update={"environment": record.environment | {name: "0.1+cpu"}})
        assert changed.trained_with == built.trained_with != record.trained_with


# ---- the command line


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    root = tmp_path_factory.mktemp("inputs")
    model, rows = make_model(root / "tiny"), make_data(root / "rows", "mnli", "rte")
    return ("--model", str(model), "--data-dir", str(rows), "--epochs", "1", "--batch-size", "8", "--max-length", "16")


def test_search_and_grid_in_one_command(inputs: tuple[str, ...], tmp_path: Path) -> None:
    command = (
        *("--task", "rte", "--method", "lora", "--method", "head", "--rank", "2", "--results", str(tmp_path), *inputs),
        *("--search-lr", "1e-3,3e-3,1e-2", "--search-seeds", "7,8"),
    )
    planned = lora_bench("plan", *command, "--device", "NVIDIA H200")
    assert planned.code == 0
    assert "adhoc: 14 cells; 14 to train in 3 packs on NVIDIA H200: about " in planned.out
    assert "12 can train now, 2 when cells that they need have ended" in planned.out
    rows = [line.replace(" ", "").split("│")[1:-1] for line in planned.out.splitlines() if "search RTE" in line]
    assert [row[:3] + row[-1:] for row in rows] == [["searchRTE", "12", "0", "–"], ["RTE", "2", "0", "searchRTE"]]
    assert all(row[7] not in ("–", "") for row in rows)  # the predicted time
    ended = lora_bench("run", *command, "--offline")
    assert ended.code == 0, ended
    records = read_records(tmp_path).records
    roles = [record.search.role for record in records if record.search]
    assert roles.count("chosen") == 2
    assert roles.count("trial") == len(records) - 2 >= 12
    assert {record.cell.seed for record in records if record.search and record.search.role == "trial"} == {7, 8}
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert ",cell,search," in header


def test_a_cell_of_a_search_that_a_grid_asks_for_later_is_a_result(inputs: tuple[str, ...], tmp_path: Path) -> None:
    """It is not trained again, and its adapter stays; the other cells of the search stay what they are."""
    command = ("--task", "rte", "--method", "lora", "--rank", "2", "--results", str(tmp_path), "--offline", *inputs)
    assert lora_bench("run", *command, "--search-lr", "1e-3,3e-3", "--search-seeds", "7").code == 0
    before = {record.id: record for record in read_records(tmp_path).records}
    (asked,) = [r for r in before.values() if r.cell.seed == 7 and r.cell.lr == pytest.approx(1e-3)]
    assert asked.is_search
    adapters = {path: path.read_bytes() for path in (tmp_path / "adapters").rglob("*") if path.is_file()}
    ended = lora_bench("run", *command, "--lr", "1e-3", "--seed", "7", "--set", "select=held-out")
    assert ended.code == 0
    assert "0 to train" in ended.out and "lora r=2" in ended.out
    after = {record.id: record for record in read_records(tmp_path).records}
    assert after == before | {asked.id: asked.model_copy(update={"search": None})}
    assert adapters == {path: path.read_bytes() for path in (tmp_path / "adapters").rglob("*") if path.is_file()}
    assert lora_bench("run", *command, "--search-lr", "1e-3,3e-3", "--search-seeds", "7").code == 0
    assert {record.id: record for record in read_records(tmp_path).records} == after


def test_a_failed_stage_and_what_it_blocks_are_said(inputs: tuple[str, ...], tmp_path: Path) -> None:
    config = tmp_path / "grid.yaml"
    config.write_text(
        "name: x\ndefaults:\n  task: rte\n  rank: 2\n  lr: {mnli: 1e300, default: 1e-3}\n  start: {rte: mnli}\n"
        "blocks:\n  - method: lora\n  - {method: head, start: null}\n"
    )
    ended = lora_bench("run", "--config", str(config), "--results", str(tmp_path / "out"), *inputs, "--offline")
    assert ended.code == 1
    assert "diverged: " in ended.out
    assert "blocked: 1 cell of RTE (the mnli cell " in ended.out
    assert len(read_records(tmp_path / "out").records) == 2
    planned = lora_bench("plan", "--config", str(config), "--results", str(tmp_path / "out"), *inputs)
    assert "; 1 blocked" in planned.out


def test_a_rate_at_which_cells_of_a_search_diverge_is_no_failure_of_the_run(
    inputs: tuple[str, ...], tmp_path: Path
) -> None:
    """It is listed. The tables say what the cells of the grid started from."""
    config = tmp_path / "grid.yaml"
    config.write_text(
        "name: x\ndefaults: {task: [mnli, rte], method: head, start: {rte: [null, mnli]}}\n"
        "blocks:\n  - lr: {mnli: 1e-3, rte: {search: [1e-3, 1e300], seeds: [7], extend: false}}\n"
    )
    words = ("--config", str(config), "--results", str(tmp_path / "out"), *inputs, "--offline")
    ended = lora_bench("run", *words)
    assert (ended.code, ended.out.count("diverged: ")) == (0, 2), ended
    assert lora_bench("run", *words).code == 0
    listed = lora_bench("list", "runs", "--results", str(tmp_path / "out"))
    for shown in (ended.out[ended.out.index("Results") :], listed.out):
        assert "head from mnli" in shown
        assert "│ head " in shown


CYCLE = "name: x\ndefaults: {method: lora, task: rte, start: {rte: mnli, mnli: rte}}\n"
LACKS = "name: x\nblocks:\n  - {method: xs, task: rte, start: mnli}\n  - {method: lora, task: mnli}\n"


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (CYCLE, (), "start: rte → mnli → rte: no cell can continue from itself."),
        (LACKS, (), "the config has no cell of mnli with xs"),
        ("name: x\ndefaults: {lr: {search: []}}\n", (), "lr: there is no rate to search."),
        ("name: x\ndefaults: {task: rte, method: lora}\n", ("--search-lr", "1e-3"), "there is only one rate to search"),
        ("name: x\ndefaults: {task: rte, method: lora}\n", ("--search-lr", ","), "there is no rate to search"),
        ("name: x\ndefaults: {task: rte, method: lora}\n", ("--search-seeds", "5"), "which rates to search"),
        (
            "name: x\ndefaults: {task: rte, method: lora}\n",
            ("--search-lr", "1e-3,2e-3", "--lr", "1e-3"),
            "--lr does not say which rates to search.",
        ),
        (
            "name: x\ndefaults: {task: rte, method: lora}\n",
            ("--search-lr", "1e-3,2e-3", "--search-seeds", "0"),
            "seed 0 is among the seeds of the search and of the grid",
        ),
        ("name: x\ndefaults: {task: rte, method: lora}\n", ("--start", "mnlii"), "Unknown task 'mnlii'."),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_what_cannot_be_is_refused_before_anything_trains(
    command: str, config: str, options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(config)
    ended = lora_bench(
        command, "--config", str(path), "--model", "sample", "--results", str(tmp_path / "out"), *options
    )
    assert_clear_error(ended, 2, words)
    assert not (tmp_path / "out").exists()
