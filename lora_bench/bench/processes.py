"""`processes-N`: N Trainers at the same time on one device, each in its own process.

NVIDIA MPS is not assumed: the processes take turns on a GPU. Only the time in which all of them train counts: from when
the last one has warmed up until they are asked to stop. Each process records when it issued each step; between two
records its progress is taken to be linear.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora_bench.bench.clock import REPEATS, Measurement, TimedRun
from lora_bench.bench.peers import Peer
from lora_bench.bench.worker import write_job
from lora_bench.engine.encoder.windows import Ints

START_SECONDS, STOP_SECONDS = 300.0, 120.0  # how long processes may take to warm up, and to stop
EXIT_SECONDS = 10.0  # how long they may take to exit once they have reported
POLL_SECONDS = 0.05


def run(peer: Peer, count: int, workers: int = 0) -> Measurement:
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
        grace = 0.0
        try:
            _wait_for_files(folder, children, "ready-{}", START_SECONDS)
            begin = time.monotonic()
            time.sleep(peer.seconds)
            end = time.monotonic()
            (folder / "stop").touch()
            _wait_for_files(folder, children, "done-{}.json", STOP_SECONDS)
            grace = EXIT_SECONDS
        finally:
            _stop(children, grace)
        results = [json.loads((folder / f"done-{number}.json").read_text()) for number in range(count)]
    repeats = [_timed_run(results, peer.work.tokens, *span) for span in _repeat_spans(begin, end)]
    peaks = [result["peak_memory_bytes"] for result in results]
    return Measurement(
        tuple(repeats),
        max(result["build_seconds"] for result in results),
        peak_memory_bytes=None if None in peaks else sum(peaks),
        settings={"dataloader_num_workers": workers},
    )


def _start(folder: Path, number: int, count: int) -> subprocess.Popen[bytes]:
    """Start one process, with its share of the processor's threads."""
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
        )


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
                raise RuntimeError(f"process {number} of {len(children)}: {_last_error(folder / f'{number}.log')}")
        time.sleep(POLL_SECONDS)


def _last_error(log: Path) -> str:
    """Return the last line of a process's output that names an exception, or else its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or ["takes too long"])[-1][:300]


def _stop(children: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Wait for the processes to exit by themselves, then kill those that have not."""
    deadline = time.monotonic() + grace
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _repeat_spans(begin: float, end: float) -> list[tuple[float, float]]:
    """Divide a time into the repeats: equal parts."""
    edges = np.linspace(begin, end, REPEATS + 1).tolist()
    return list(itertools.pairwise(edges))


def _timed_run(results: Sequence[dict[str, Any]], tokens: Ints, begin: float, end: float) -> TimedRun:
    """Add up what all processes did between two times of the common clock.

    Args:
        results: What each process reported.
        tokens: `[steps]`, the tokens of each step.
        begin: The start, in seconds of the monotonic clock.
        end: The end.
    """
    total_tokens = np.concatenate([[0.0], np.cumsum(tokens)])  # [steps + 1], before each step
    step_numbers = np.arange(len(total_tokens))
    steps = tokens_read = 0.0
    for result in results:
        stamped_steps = result["first"] + np.arange(len(result["stamps"]))
        first, last = np.interp([begin, end], result["stamps"], stamped_steps)
        steps += float(last - first)
        tokens_read += float(np.interp(last, step_numbers, total_tokens) - np.interp(first, step_numbers, total_tokens))
    return TimedRun(steps, tokens_read, end - begin)
