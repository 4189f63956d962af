"""`run --track`: what trackers get, and that they neither change a result nor fail a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import lora_bench
from lora_bench.callbacks import Callback, EpochMetrics, PackEnd, PackStart, StepBlock
from lora_bench.cli.app import app
from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.records.schema import Record
from lora_bench.run import remote, tracking
from lora_bench.run.interfaces import Options, View
from lora_bench.run.runner import Runner
from lora_bench.run.trackers import FOLDER, LOG, PACKAGES, Recorder, encode, label_of
from lora_bench.testing import QuietView, TinyBench, make_cell, make_record

# A package that is called like W&B's and behaves as the environment says.
STUB = """
import json, os, sys, time
mode = os.environ["STUB"]
class Run:
    def __init__(self, values):
        self.name, self.logged = values["name"], 0
        self.write("init", values)
    def write(self, kind, values):
        with open(os.environ["STUB_FILE"], "a") as file:
            file.write(json.dumps([self.name, kind, values], default=str) + "\\n")
    def log(self, values, step=None):
        self.logged += 1
        if mode == "raise" and self.logged > 2:
            raise ValueError("the disk of /home/me/wandb is full")
        if mode == "exit" and self.logged > 2:
            sys.exit("bye")
        if mode == "crash" and self.logged > 2:
            os._exit(9)
        self.write("log", [step, values])
    def finish(self):
        if mode == "hang":
            time.sleep(600)
        self.write("finish", None)
def init(**values):
    print("W&B prints on standard output")
    if mode == "refuse":
        raise ConnectionError("no network")
    return Run(values)
"""

# What of accelerate is used, without torch, which takes seconds to import.
LIGHT = """
import wandb
class Tracker:
    def __init__(self, run_name, **settings):
        self.settings = {"project": run_name, **settings}
    def start(self):
        self.run = wandb.init(**self.settings)
    def log(self, values, step=None):
        self.run.log(values, step)
    def finish(self):
        self.run.finish()
LOGGER_TYPE_TO_CLASS = {"wandb": Tracker}
"""


@pytest.fixture
def bench(tmp_path: Path) -> TinyBench:
    return TinyBench.create(tmp_path, "sst2")


def train(bench: TinyBench, *names: str) -> tuple[list[Record], list[str]]:
    """Two cells of two epochs, with these trackers: the records and the warnings."""
    plan, view = bench.plan([{"method": "lora", "rank": [1, 2], "targets": "qv"}]), QuietView()
    with tracking.tracked(view, names, bench.results, offline=True) as tracked:
        records = Runner(plan, Options(bench.results, offline=True), tracked).run()
    return records, view.warnings


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], list[Any]]]:
    """Puts the stub in W&B's place, in a mode; returns what reads what it was given.

    All modes but `work` have a light accelerate as well.
    """
    light = tmp_path / "light" / "accelerate"
    light.mkdir(parents=True)
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "wandb.py").write_text(STUB)
    (light / "__init__.py").write_text("")
    (light / "state.py").write_text("def PartialState(cpu): pass\n")
    (light / "tracking.py").write_text(LIGHT)
    path = [str(tmp_path / "stub"), str(Path(lora_bench.__file__).parent.parent)]

    def use(mode: str) -> Callable[[], list[Any]]:
        used = os.pathsep.join(path if mode == "work" else [str(light.parent), *path])
        values = {"STUB": mode, "STUB_FILE": str(tmp_path / "calls"), "PYTHONPATH": used}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return use


def test_tensorboard_has_every_step_and_every_metric(bench: TinyBench) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records, warnings = train(bench, "tensorboard")
    assert not warnings and {record.status for record in records} == {"done"}
    for record in records:
        events = EventAccumulator(str(bench.results / FOLDER / label_of(record.cell)))
        events.Reload()
        series = {
            name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]
        }
        steps = len(series["train/loss"])
        assert [step for step, _ in series["train/loss"]] == list(range(1, steps + 1))
        assert series.keys() >= {"train/loss", "train/grad_norm", "train/lr", "epoch", "eval/accuracy", "score"}
        half = [value for _, value in series["train/loss"]][: steps // 2]
        assert float(np.mean(half)) == pytest.approx(record.epochs[0].loss, rel=0.05)
        assert [step for step, _ in series["eval/accuracy"]] == [steps // 2, steps]
        accuracies = [epoch.metrics["accuracy"] for epoch in record.epochs]
        assert [value for _, value in series["eval/accuracy"]] == pytest.approx(accuracies)
        assert series["score"] == [(steps, pytest.approx(record.score))]


def test_results_are_the_same_with_a_tracker(bench: TinyBench, stub: Any, tmp_path: Path) -> None:
    calls = stub("work")
    tracked, _ = train(bench, "wandb")
    alone, _ = train(TinyBench(bench.model, bench.rows, tmp_path / "alone"))
    for one, other in zip(tracked, alone, strict=True):
        assert (one.id, one.epochs, one.predictions) == (other.id, other.epochs, other.predictions)
    runs = {name: values for name, kind, values in calls() if kind == "init"}
    assert set(runs) == {label_of(record.cell) for record in tracked}
    for record in tracked:
        values = runs[label_of(record.cell)]
        settings = {"project": "lora-bench", "group": "results", "mode": "offline", "reinit": "create_new"}
        assert settings.items() <= values.items()
        assert values["config"]["id"] == record.id and values["config"]["rank"] == record.cell.rank
        mine = [(kind, values) for name, kind, values in calls() if name == label_of(record.cell)]
        assert [kind for kind, _ in mine if kind != "log"] == ["init", "finish"] and mine[-1][0] == "finish"
        logged = [step for kind, (step, _) in mine[1:-1]]
        assert logged == sorted(logged)  # W&B drops what goes back
    assert "W&B prints" in (bench.results / FOLDER / LOG).read_text()


@pytest.mark.parametrize(
    ("mode", "what"),
    [
        ("refuse", "wandb tracks no more (ConnectionError: no network); training continues."),
        ("raise", "wandb tracks no more (ValueError: the disk of …/wandb is full); training continues."),
        ("exit", "Trackers have failed (exit code 1; see tracking/trackers.log); training continues."),
        ("crash", "Trackers have failed (exit code 9; see tracking/trackers.log); training continues."),
    ],
)
def test_a_tracker_that_fails_fails_no_run(mode: str, what: str, bench: TinyBench, stub: Any) -> None:
    stub(mode)
    records, warnings = train(bench, "wandb")
    assert {record.status for record in records} == {"done"} and warnings == [what]


def test_a_tracker_that_does_not_end_is_ended(bench: TinyBench, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub("hang")
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 4.0)
    records, warnings = train(bench, "wandb")
    assert {record.status for record in records} == {"done"}
    assert warnings == ["Trackers did not end within 4 s; some values are not tracked."]


@pytest.mark.parametrize(("name", "code"), [("tensorbord", USAGE), ("mlflow", MISSING)])
def test_a_tracker_that_is_not_there_is_refused_at_once(
    name: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PACKAGES, "mlflow", ("no_such_package",))
    words = ["--model", "sample", "--task", "wnli", "--method", "head", "--results", str(tmp_path / "results")]
    ended = CliRunner().invoke(app, ["run", *words, "--track", name])
    assert ended.exit_code == code and not (tmp_path / "results").exists()
    assert ("Did you mean 'tensorboard'?" if code == USAGE else "pip install") in ended.output


def test_without_a_tracker_nothing_is_started(tmp_path: Path) -> None:
    view = QuietView()
    with tracking.tracked(view, [], tmp_path) as same:
        assert same is view
    assert not list(tmp_path.iterdir())
    tracking.check_trackers(())
    with pytest.raises(BenchError):
        tracking.check_trackers(["none"])


class FakeProcess:
    """Remembers what it is sent."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def send(self, kind: str, *values: Any) -> None:
        self.events.append((kind, json.loads(json.dumps(values))))


def test_everything_is_passed_on() -> None:
    """A method that the view gets later must be passed on as well."""
    names = {name for kind in (View, Callback) for name in vars(kind) if not name.startswith("_")}
    assert names == {name for name in vars(tracking.Tracking) if not name.startswith("_")} - {"view", "process"}

    class Noting(QuietView):
        def should_pause(self) -> bool:
            return True

    view = Noting()
    tracked = tracking.Tracking(view, FakeProcess())  # type: ignore[arg-type]
    tracked.warn("look")
    tracked.on_pack_start(PackStart((make_cell(),), 1, 1, 0))
    assert (view.warnings, view.packs, tracked.should_pause()) == (["look"], 1, True)


def test_what_workers_on_ray_send_is_tracked_by_the_driver() -> None:
    cells = {cell.id: cell for cell in (make_cell(seed=0), make_cell(seed=1))}
    process = FakeProcess()
    run = tracking.Tracking(QuietView(), process)  # type: ignore[arg-type]
    sent: list[tuple[Any, ...]] = []
    view = remote.RemoteView(sent.append)
    view.on_pack_start(PackStart(tuple(cells.values()), 2, 1, 0))
    view.on_steps_recorded(StepBlock(1, 1, *(np.full((2, 2), value) for value in (1.0, 2.0, 3.0))))
    view.on_epoch_evaluated(EpochMetrics(1, "accuracy", ({"accuracy": 0.5}, None), (None, None)))
    view.on_pack_end(PackEnd(True, (None, None)))
    device = run.on_device("worker 1")
    for _, name, *values in sent:
        remote.show(device, name, values, cells)
    run.done([make_record(0.5, cell=cell) for cell in cells.values()])
    assert [kind for kind, _ in process.events] == ["open", "steps", "epoch", "end", "end"]
    assert process.events[1][1][:2] == [list(cells), 1]
    assert process.events[2][1] == [list(cells), 1, 2, [{"accuracy": 0.5}, None], [None, None]]
    assert [values[0][:3] for kind, values in process.events if kind == "end"] == [[name, 2, 0.5] for name in cells]


class FakeTracker:
    """A tracker's run that remembers what it is given."""

    all: list[FakeTracker]

    def __init__(self, **settings: Any) -> None:
        self.settings, self.is_open = settings, True
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.config: dict[str, Any] = {}
        assert not any(run.is_open for run in self.all), "one at a time"
        self.all.append(self)

    def start(self) -> None:
        """Nothing is needed."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.is_open = False


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    """One that writes to MLflow, which is faked: it has one run at a time and takes numbers only."""
    import accelerate.tracking

    FakeTracker.all = []
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "mlflow", FakeTracker)
    return Recorder(["mlflow"], tmp_path, False, lambda name, reason: pytest.fail(f"{name}: {reason}"))


def steps(ids: Sequence[str], losses: Any, seconds: float = 1e6, first: int = 1) -> dict[str, Any]:
    """The event of a block of steps, with norms and rates that are counted."""
    values = np.asarray(losses, dtype=float)
    counted = np.arange(values.size, dtype=float).reshape(values.shape)
    return {"steps": [ids, first, seconds, encode(values), encode(counted), encode(counted / 100)]}


def test_cells_come_one_after_another_where_a_tracker_has_one_run_at_a_time(recorder: Recorder) -> None:
    cells = [make_cell(seed=seed) for seed in range(3)]
    ids = [cell.id for cell in cells]
    recorder.handle({"open": [cell.model_dump(mode="json") for cell in cells]})
    recorder.handle(steps(ids, [[1, 2, 3], [4, 5, 6]]))
    assert FakeTracker.all == []
    recorder.handle({"end": [[ids[1], 2, 0.75, "done"], ["other", 0, None, "failed"]]})
    (run,) = FakeTracker.all
    assert run.settings["run_name"] == label_of(cells[1]) and run.config["seed"] == 1 and not run.is_open
    assert [step for step, _ in run.rows] == [1, 2, 2] and run.rows[-1][1] == {"score": 0.75}
    assert [values["train/loss"] for _, values in run.rows[:2]] == [2, 5]
    recorder.close()
    assert {run.settings["run_name"] for run in FakeTracker.all} == {label_of(cell) for cell in cells}


def test_a_cell_that_diverged_has_no_later_steps(recorder: Recorder) -> None:
    cells = [make_cell(seed=seed) for seed in range(2)]
    ids = [cell.id for cell in cells]
    recorder.handle({"open": [cell.model_dump(mode="json") for cell in cells]})
    recorder.handle(steps(ids, [[1, 1], [math.nan, 2], [3, 3]]))
    recorder.handle(steps(ids, [[4, 4]], first=4))
    recorder.close()
    first, second = FakeTracker.all
    assert [step for step, _ in first.rows] == [1, 2] and math.isnan(first.rows[1][1]["train/loss"])
    assert [step for step, _ in second.rows] == [1, 2, 3, 4]


def test_a_slow_tracker_gets_fewer_points_that_are_means(recorder: Recorder) -> None:
    cell = make_cell()
    recorder.handle({"open": [cell.model_dump(mode="json")]})
    recorder.handle(steps([cell.id], np.arange(100.0)[:, None], seconds=0.02))  # at a millisecond each: ten points
    recorder.close()
    (run,) = FakeTracker.all
    assert [step for step, _ in run.rows] == list(range(10, 101, 10))
    assert [values["train/loss"] for _, values in run.rows] == [4.5 + 10 * number for number in range(10)]
    assert run.rows[-1][1]["train/lr"] == pytest.approx(0.99)
