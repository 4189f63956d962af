"""`trainer` and `processes-N`: one Trainer, or N at the same time on one device, each in its own process.

NVIDIA MPS is not assumed: the processes take turns on a GPU. While other rows are measured, the processes are stopped
by a signal. Each records when it issued each step, on a clock that stands still while they are stopped; between two
records its progress is taken to be linear.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from lora_bench.bench.clock import LEAD_IN, ROUNDS, Measurement, TimedRun, Turns
from lora_bench.bench.peers import Peer
from lora_bench.bench.worker import write_job
from lora_bench.engine.encoder.windows import Ints

START_SECONDS, STOP_SECONDS = 300.0, 120.0  # how long processes may take to warm up, and to stop
EXIT_SECONDS = 10.0  # how long they may take to exit once they have reported
POLL_SECONDS = 0.05


def run(peer: Peer, count: int, workers: int = 0) -> Turns:
    """Measure the total rate of several processes.

    Args:
        peer: What each process trains.
        count: The number of processes.
        workers: The data-loader workers of each process.

    Raises:
        RuntimeError: A process failed, or did not start or stop in time. The message contains its last error.
    """
    with tempfile.TemporaryDirectory(dir=peer.scratch) as name:
        folder = Path(name)
        write_job(folder, peer, workers)
        children = [_start(folder, number, count) for number in range(count)]
        turns: list[tuple[float, float]] = []
        grace, seconds = 0.0, peer.seconds / ROUNDS
        try:
            _wait_for_files(folder, children, "ready-{}", START_SECONDS)
            _signal(children, signal.SIGSTOP)
            for _ in range(ROUNDS):
                yield
                begin = time.monotonic()
                _signal(children, signal.SIGCONT)
                time.sleep(seconds * (1 + LEAD_IN))
                _signal(children, signal.SIGSTOP)
                turns.append((begin, time.monotonic()))
                time.sleep(seconds * LEAD_IN)  # a GPU still runs what they have issued
            (folder / "stop").touch()
            _signal(children, signal.SIGCONT)
            _wait_for_files(folder, children, "done-{}.json", STOP_SECONDS)
            grace = EXIT_SECONDS
        finally:
            _stop(children, grace)
        results = [json.loads((folder / f"done-{number}.json").read_text()) for number in range(count)]
    repeats = _timed_runs(results, peer.work.tokens, turns, seconds)
    if min(repeat.steps for repeat in repeats) <= 0:
        raise RuntimeError("no step in a round: steps take longer than that, or all prepared ones were taken")
    step_seconds = count * median(repeat.seconds / repeat.steps for repeat in repeats)
    peaks = [result["peak_memory_bytes"] for result in results]
    return Measurement(
        tuple(repeats),
        max(result["build_seconds"] for result in results),
        max(0.0, *(result["warm_up_seconds"] - result["first"] * step_seconds for result in results)),
        None if None in peaks else sum(peaks),
        {"dataloader_num_workers": workers},
    )


def _start(folder: Path, number: int, count: int) -> subprocess.Popen[bytes]:
    """Start one process, with its share of the processor's threads.

    It leads a process group: signals reach its data-loader workers too, and should this program be killed while the
    group is stopped, the system ends the group.
    """
    root = str(Path(__file__).parents[2])
    threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // count))
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
    with (folder / f"{number}.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "lora_bench.bench.worker", str(folder), str(number)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )


def _signal(children: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    """Send a signal to the process groups of the children that have not ended."""
    for child in children:
        if child.poll() is None:
            os.killpg(child.pid, number)


def _wait_for_files(folder: Path, children: Sequence[subprocess.Popen[bytes]], pattern: str, seconds: float) -> None:
    """Wait until every process has written its file.

    Args:
        folder: The folder of the files.
        children: The processes.
        pattern: The file's name, with `{}` for the number of the process.
        seconds: The time limit.

    Raises:
        RuntimeError: A process has exited without its file, or the time is over.
    """
    deadline = time.monotonic() + seconds
    waiting = set(range(len(children)))
    while waiting:
        for number in sorted(waiting):
            code = children[number].poll()
            if (folder / pattern.format(number)).exists():
                waiting.discard(number)
            elif code is not None or time.monotonic() > deadline:
                what = _last_error(folder / f"{number}.log") or _how_it_ended(code)
                raise RuntimeError(f"process {number} of {len(children)}: {what}")
        time.sleep(POLL_SECONDS)


def _last_error(log: Path) -> str:
    """Return the last line of a process's output that names an exception, else its last line, else an empty text."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or [""])[-1][:300]


def _how_it_ended(code: int | None) -> str:
    """Say what became of a process that has said nothing; its exit status is None while it runs."""
    if code is None:
        return "takes too long"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def _stop(children: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Wait for the processes to exit by themselves, then kill those that have not."""
    deadline = time.monotonic() + grace
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal([child], signal.SIGKILL)
            child.wait()


def _timed_runs(
    results: Sequence[dict[str, Any]], tokens: Ints, turns: Sequence[tuple[float, float]], seconds: float
) -> list[TimedRun]:
    """Add up what all processes did at the end of each turn.

    Args:
        results: What each process reported.
        tokens: `[steps]`, the tokens of each step.
        turns: When the processes ran, in seconds of the monotonic clock; after the last turn they ran on.
        seconds: The seconds at the end of a turn that count.
    """
    ends = np.cumsum(np.diff(turns))  # [turns], the seconds that the processes had run by the end of each
    moments = np.append(np.ravel(turns), turns[-1][1] + STOP_SECONDS)  # begin and end of each turn, and the very end
    running = np.concatenate([[0.0], np.repeat(ends, 2)[:-1], [ends[-1] + STOP_SECONDS]])  # the same on their clock
    edges = np.stack([ends - seconds, ends], 1)  # [turns, 2]
    total_tokens = np.concatenate([[0.0], np.cumsum(tokens)])  # [steps + 1], before each step
    steps_taken, tokens_read = np.zeros(len(ends)), np.zeros(len(ends))
    for result in results:
        stamped_steps = result["first"] + np.arange(len(result["stamps"]))
        steps = np.interp(edges, np.interp(result["stamps"], moments, running), stamped_steps)
        steps_taken += np.diff(steps).ravel()
        tokens_read += np.diff(np.interp(steps, np.arange(len(total_tokens)), total_tokens)).ravel()
    return [TimedRun(float(steps), float(read), seconds) for steps, read in zip(steps_taken, tokens_read, strict=True)]
