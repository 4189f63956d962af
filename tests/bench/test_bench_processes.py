"""Several processes: measured while all of them train, and the error of one that fails."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_bench.bench import processes
from lora_bench.bench.clock import ROUNDS, run_alone
from lora_bench.bench.peers import Peer
from lora_bench.bench.worker import read_job, write_job
from tests.bench.bench_factory import SAMPLE, work


def peer(folder: Path, targets: str = "qv") -> Peer:
    return Peer(SAMPLE, work(), targets, torch.device("cpu"), 0.2, folder)


def test_a_repeat_is_the_sum_of_what_each_process_did_in_it() -> None:
    """Parts of steps count as parts; what lies outside of the repeat does not."""
    slow = {"first": 2, "stamps": [0.0, 1.0, 2.0, 3.0]}
    fast = {"first": 1, "stamps": (np.arange(9) / 2).tolist()}
    tokens = np.full(50, 7)
    (made,) = processes._timed_runs([slow, fast], tokens, [(0.0, 2.5)], 2.0)
    assert made.steps == pytest.approx(2.0 + 4.0)
    assert made.tokens == pytest.approx(7 * 6.0)
    assert made.seconds == 2.0


def test_the_clock_of_processes_stands_still_between_their_turns() -> None:
    """A step of one second that they are stopped in takes one second; steps before the first turn do not count."""
    result = {"first": 1, "stamps": [0.5, 9.0, 9.5, 10.5, 21.0, 22.0, 32.5, 33.5]}
    turns = [(10.0, 11.0), (20.5, 22.5), (32.0, 33.0)]
    made = processes._timed_runs([result], np.full(50, 7), turns, 0.5)
    assert [run.steps for run in made] == pytest.approx([0.5, 0.5, 0.5])
    assert [run.tokens for run in made] == pytest.approx([3.5, 3.5, 3.5])


def test_a_worker_gets_the_same_work(tmp_path: Path) -> None:
    given = peer(tmp_path)
    write_job(tmp_path, given, 3)
    got, workers = read_job(tmp_path)
    assert workers == 3
    assert (got.targets, got.device, got.model) == (given.targets, given.device, given.model)
    assert np.array_equal(got.work.order, given.work.order)
    assert np.array_equal(got.work.table.ids, given.work.table.ids)
    assert np.array_equal(got.work.table.labels, given.work.table.labels)
    assert got.work.task is given.work.task


WORKER = """
import json, pathlib, sys, time
folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]
stamps = [time.monotonic()]
(folder / f"ready-{number}").touch()
while not (folder / "stop").exists():
    time.sleep(0.02)
    stamps.append(time.monotonic())
result = {"first": 1, "stamps": stamps, "build_seconds": int(number), "warm_up_seconds": 9, "peak_memory_bytes": 100}
(folder / f"done-{number}.json").write_text(json.dumps(result))
"""


def replace_worker(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Start another program instead of the workers."""

    def start(folder: Path, number: int, _: int) -> subprocess.Popen[bytes]:
        with (folder / f"{number}.log").open("wb") as log:
            command = [sys.executable, "-c", program, str(folder), str(number)]
            return subprocess.Popen(command, stderr=log, process_group=0)

    monkeypatch.setattr(processes, "_start", start)


def test_processes_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates and memory are sums, the time to build is the longest; nothing is left behind."""
    replace_worker(monkeypatch, WORKER)
    made = run_alone(processes.run(peer(tmp_path), 3, workers=2))
    assert len(made.repeats) == ROUNDS
    assert all(repeat.steps > 0 and repeat.tokens > repeat.steps for repeat in made.repeats)
    assert (made.peak_memory_bytes, made.build_seconds, made.settings) == (300, 2, {"dataloader_num_workers": 2})
    assert made.setup_seconds == pytest.approx(9, abs=0.5)
    assert list(tmp_path.iterdir()) == []


def test_processes_stand_still_between_their_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They write nothing while others have their turn; closed while they are stopped, they end."""
    program = """
import pathlib, sys, time
folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]
(folder / f"ready-{number}").touch()
while True:
    time.sleep(0.01)
    (folder / "steps").open("a").write("x")
"""
    replace_worker(monkeypatch, program)
    turns = processes.run(peer(tmp_path), 1)
    next(turns)
    next(turns)
    (steps,) = tmp_path.glob("*/steps")
    size = steps.stat().st_size
    time.sleep(0.3)
    assert steps.stat().st_size == size
    next(turns)
    assert steps.stat().st_size > size
    began = time.monotonic()
    turns.close()
    assert time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_fails_ends_all_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_worker(
        monkeypatch, "import sys, time\nif sys.argv[2] == '0': time.sleep(60)\nraise ValueError('no such weight')"
    )
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"process 1 of 2: ValueError: no such weight"):
        next(processes.run(peer(tmp_path), 2))
    assert time.monotonic() - began < 50  # it did not wait for the other one
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("Traceback\n  File x\ntorch.OutOfMemoryError: CUDA out of memory. Tried\n", "torch.OutOfMemoryError: CUDA"),
        ("RuntimeError: CUDA error\nCompile with such and such\n", "RuntimeError: CUDA error"),
        ("Killed\n", "Killed"),
    ],
)
def test_the_last_error_of_a_process(tmp_path: Path, text: str, last: str) -> None:
    (tmp_path / "log").write_text(text)
    assert processes._last_error(tmp_path / "log").startswith(last)


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
        ("raise SystemExit(7)", "ended with exit status 7"),
    ],
)
def test_a_process_that_says_nothing_is_reported_by_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, what: str
) -> None:
    """As the system ends one that lacks memory."""
    replace_worker(monkeypatch, program)
    with pytest.raises(RuntimeError, match=f"process 0 of 1: {what}"):
        next(processes.run(peer(tmp_path), 1))
