"""`run --track`: what trackers get, and that they neither change a result nor fail a run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
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

EVIL = "\x1b[31mred\x1b[0m\nof /home/me hf_0123456789abcdefghij"
# A package that is called like W&B's and behaves as the environment says.
STUB = """
import json, os, subprocess, sys, threading, time
mode = os.environ["STUB"]
class Mute(Exception):
    def __str__(self):
        raise RuntimeError("cannot be printed")
class Base(BaseException):
    pass
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
        if mode == "mute":
            raise Mute
        if mode == "base":
            raise Base("not an Exception")
        if mode == "evil":
            raise ValueError(os.environ["STUB_TEXT"])
        if mode == "ask":
            input("Your key: ")
        if mode == "flood":
            os.write(2, b"many words " * 50_000)
        self.write("log", [step, values])
    def finish(self):
        if mode == "hang":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            self.write("child", child.pid)
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
class Other(Tracker):
    def start(self):
        self.run = wandb.Run(self.settings)
    def store_init_configuration(self, values):
        pass
    def finish(self):
        self.run.write("end of another", None)
LOGGER_TYPE_TO_CLASS = {"wandb": Tracker, "trackio": Other}
"""


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

    def use(mode: str) -> Callable[[], list[Any]]:
        used = [*([] if mode == "work" else [str(light.parent)]), str(tmp_path / "stub"), *sys.path]
        monkeypatch.setattr(tracking, "import_path", lambda: used)
        for name, value in {"STUB": mode, "STUB_FILE": str(tmp_path / "calls"), "STUB_TEXT": EVIL}.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "calls").touch()
        return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return use


def test_tensorboard_has_the_whole_training_and_every_metric(bench: TinyBench) -> None:
    """On a busy machine a point may be the mean of several steps."""
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
        ((steps, _),) = series["score"]
        points = [0, *(step for step, _ in series["train/loss"])]
        assert points == sorted(set(points)) and {steps // 2, steps} <= set(points) and points[-1] == steps
        assert series.keys() >= {"train/loss", "train/grad_norm", "train/lr", "epoch", "eval/accuracy", "score"}
        half = points.index(steps // 2)
        losses = [value for _, value in series["train/loss"]][:half]
        assert np.average(losses, weights=np.diff(points)[:half]) == pytest.approx(record.epochs[0].loss, rel=0.05)
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
        ("refuse", "wandb has stopped tracking (ConnectionError: no network); training continues."),
        ("raise", "wandb has stopped tracking (ValueError: the disk of …/wandb is full); training continues."),
        ("exit", "wandb has stopped tracking (SystemExit: bye); training continues."),
        ("crash", "wandb has stopped tracking (exit code 9; see tracking/trackers.log); training continues."),
        ("mute", "wandb has stopped tracking (Mute); training continues."),
        ("base", "wandb has stopped tracking (Base: not an Exception); training continues."),
        ("evil", "wandb has stopped tracking (ValueError: red of …/me hf_…); training continues."),
        ("ask", "wandb has stopped tracking (EOFError: EOF when reading a line); training continues."),
    ],
)
def test_a_tracker_that_fails_fails_no_run(mode: str, what: str, bench: TinyBench, stub: Any) -> None:
    stub(mode)
    records, warnings = train(bench, "wandb")
    assert {record.status for record in records} == {"done"} and warnings == [what]


def test_a_tracker_that_hangs_is_ended_and_harms_no_other(
    bench: TinyBench, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stub("hang")
    wait = tracking.TrackerProcess.wait

    def wait_shortly(process: tracking.TrackerProcess, deadline: float) -> None:
        """Wait for the one that hangs until it does; for the other one as long as it takes."""
        if process.name == "wandb":
            until(lambda: any(kind == "child" for _, kind, _ in calls()))
            wait(process, time.monotonic() + 0.1)
        else:
            wait(process, deadline + 120)

    monkeypatch.setattr(tracking.TrackerProcess, "wait", wait_shortly)
    records, warnings = train(bench, "wandb", "trackio")
    assert {record.status for record in records} == {"done"}
    assert warnings == ["wandb did not end within 120 s and was ended; some of its values may be missing."]
    names = {label_of(record.cell) for record in records}
    assert {name for name, kind, _ in calls() if kind == "end of another"} == names
    (child,) = [values for _, kind, values in calls() if kind == "child"]
    until(lambda: not is_running(child))  # what it had started ends with it


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until a condition holds; fail if it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process is there, and is not one that has ended and that nobody has asked about."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_tracker_that_prints_endlessly_fills_no_disk(
    bench: TinyBench, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stub("flood")
    records, warnings = train(bench, "wandb")
    assert not warnings and len([kind for _, kind, _ in calls() if kind == "finish"]) == len(records)
    log = (bench.results / FOLDER / LOG).read_text()
    assert "The log is full" in log and len(log) < 3_000_000


def test_a_tracker_that_takes_nothing_is_given_up(tmp_path: Path, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub("work")
    warnings: list[str] = []
    monkeypatch.setattr(tracking, "MAX_PENDING", 10_000_000)
    process = tracking.TrackerProcess("wandb", tmp_path, True, warnings.append)
    process.start()
    os.kill(process.pid, signal.SIGSTOP)
    for _ in range(20):
        process.send("steps", [], 1, 1.0, "A" * 1_000_000)
    assert warnings == ["wandb has stopped tracking (it is too far behind); training continues."]
    assert process._events.qsize() < 12 and not process.is_tracking
    process.close()


def test_a_tracker_that_hangs_ends_some_time_after_a_run_that_was_killed() -> None:
    hanging = (
        "import os, sys, threading, time\n"
        "from lora_bench.run import trackers\n"
        "trackers.ORPHAN_SECONDS = 0.1\n"
        "threading.Thread(target=trackers._end_with_the_run, args=(int(sys.argv[1]),), daemon=True).start()\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(600)"
    )
    program = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])\n"
        "time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(lora_bench.__file__).parent.parent)}
    words = [sys.executable, "-c", program, hanging]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.kill()
        assert run.stdout.read() == ""  # it is closed when both have ended


@pytest.mark.parametrize("kind", ["file", "link", "log"])
def test_a_folder_that_cannot_be_used(kind: str, bench: TinyBench, tmp_path: Path) -> None:
    bench.results.mkdir(exist_ok=True)
    folder, elsewhere = bench.results / FOLDER, tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "file":
        folder.write_text("mine")
    elif kind == "link":
        folder.symlink_to(elsewhere)
    else:
        (folder / LOG).mkdir(parents=True)
    records, warnings = train(bench, "tensorboard")
    assert {record.status for record in records} == {"done"} and len(warnings) == 1
    assert warnings[0].startswith("tensorboard has stopped tracking (") and "tracking" in warnings[0]
    assert not list(elsewhere.iterdir())


def test_nothing_to_train_starts_nothing(bench: TinyBench, stub: Any) -> None:
    stub("work")
    train(bench)
    records, warnings = train(bench, "wandb")
    assert len(records) == 2 and not warnings and not (bench.results / FOLDER).exists()


def test_files_of_the_current_folder_are_not_imported(
    bench: TinyBench, stub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = stub("hide")
    monkeypatch.chdir(tmp_path)
    for name in ("random.py", "accelerate.py", "wandb.py"):
        (tmp_path / name).write_text("raise RuntimeError('a file of the user')")
    path = [entry for entry in tracking.import_path() if entry]
    monkeypatch.setattr(tracking, "import_path", lambda: path)
    _, warnings = train(bench, "wandb")
    assert not warnings and calls()


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
        self.starts = 0

    def start(self) -> None:
        self.starts += 1

    def send(self, kind: str, *values: Any) -> None:
        self.events.append((kind, json.loads(json.dumps(values))))


def test_everything_is_passed_on() -> None:
    """A method that the view gets later must be passed on as well."""
    names = {name for kind in (View, Callback) for name in vars(kind) if not name.startswith("_")}
    assert names == {name for name in vars(tracking.Tracking) if not name.startswith("_")} - {"view", "processes"}

    class Noting(QuietView):
        def should_pause(self) -> bool:
            return True

    view = Noting()
    tracked = tracking.Tracking(view, [FakeProcess()])  # type: ignore[list-item]
    tracked.warn("look")
    tracked.on_pack_start(PackStart((make_cell(),), 1, 1, 0))
    assert (view.warnings, view.packs, tracked.should_pause()) == (["look"], 1, True)


def test_what_workers_on_ray_send_is_tracked_by_the_driver() -> None:
    cells = {cell.id: cell for cell in (make_cell(seed=0), make_cell(seed=1))}
    process = FakeProcess()
    run = tracking.Tracking(QuietView(), [process])  # type: ignore[list-item]
    sent: list[tuple[Any, ...]] = []
    view = remote.RemoteView(sent.append)
    view.on_pack_start(PackStart(tuple(cells.values()), 2, 1, 0))
    view.on_steps_recorded(StepBlock(1, 1, *(np.full((2, 2), value) for value in (1.0, 2.0, 3.0))))
    view.on_epoch_evaluated(EpochMetrics(1, "accuracy", ({"accuracy": 0.5}, None), (None, None)))
    view.on_pack_end(PackEnd(True, (None, None)))
    device = run.on_device("worker 1")
    for _, name, *values in sent:
        remote.show(device, name, values)
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
    return Recorder("mlflow", tmp_path, False)


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
