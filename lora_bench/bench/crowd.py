"""`processes-N`: N Trainers at once on one device, each in a process of its own.

No NVIDIA MPS is assumed: the processes take turns on a GPU. Counted is the time in which all of them train: from when
the last one is warm until the first is told to stop. A process notes when it issued each step; between two notes its
progress is taken as even.
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

from lora_bench.bench.clock import REPEATS, Measured, Window
from lora_bench.bench.peers import Peer
from lora_bench.bench.worker import write_job
from lora_bench.engine.encoder.windows import Ints

START_SECONDS, STOP_SECONDS, END_SECONDS, POLL = 300.0, 120.0, 10.0, 0.05


def run(peer: Peer, count: int, workers: int = 0) -> Measured:
    """The summed rate of `count` processes.

    Raises:
        RuntimeError: a process ended early or does not start or stop in time; the text has the end of its output.
    """
    with tempfile.TemporaryDirectory(dir=peer.scratch) as name:
        folder = Path(name)
        write_job(folder, peer, workers)
        children = [_start(folder, number, count) for number in range(count)]
        grace = 0.0
        try:
            _wait(folder, children, "ready-{}", START_SECONDS)
            began = time.monotonic()
            time.sleep(peer.seconds)
            ended = time.monotonic()
            (folder / "stop").touch()
            _wait(folder, children, "done-{}.json", STOP_SECONDS)
            grace = END_SECONDS
        finally:
            _end(children, grace)
        told = [json.loads((folder / f"done-{number}.json").read_text()) for number in range(count)]
    windows = [_window(told, peer.work.tokens, *span) for span in _spans(began, ended)]
    peaks = [each["peak_memory_bytes"] for each in told]
    return Measured(
        tuple(windows), max(each["build_seconds"] for each in told),
        peak_memory_bytes=None if None in peaks else sum(peaks), settings={"dataloader_num_workers": workers},
    )  # fmt: skip


def _start(folder: Path, number: int, count: int) -> subprocess.Popen[bytes]:
    """One worker, with its share of the processor's threads."""
    root = str(Path(__file__).parents[2])
    threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // count))
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
    with (folder / f"{number}.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "lora_bench.bench.worker", str(folder), str(number)],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def _wait(folder: Path, children: Sequence[subprocess.Popen[bytes]], file: str, seconds: float) -> None:
    """Until every child has written its file."""
    until = time.monotonic() + seconds
    waiting = set(range(len(children)))
    while waiting:
        for number in sorted(waiting):
            code = children[number].poll()
            if (folder / file.format(number)).exists():
                waiting.discard(number)
            elif code is not None or time.monotonic() > until:
                raise RuntimeError(f"process {number} of {len(children)}: {_last_words(folder / f'{number}.log')}")
        time.sleep(POLL)


def _last_words(log: Path) -> str:
    """The last line of a process's output that names an error, else its last line at all."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b", line)]
    return (named or lines or ["takes too long"])[-1][:300]


def _end(children: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Give the children time to end by themselves, then end them."""
    until = time.monotonic() + grace
    for child in children:
        try:
            child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _spans(began: float, ended: float) -> list[tuple[float, float]]:
    """The repeats: equal parts of the time between."""
    edges = np.linspace(began, ended, REPEATS + 1).tolist()
    return list(itertools.pairwise(edges))


def _window(told: Sequence[dict[str, Any]], tokens: Ints, begin: float, end: float) -> Window:
    """What all processes did between two times of the common clock."""
    total = np.concatenate([[0.0], np.cumsum(tokens)])
    steps = read = 0.0
    for each in told:
        at = each["first"] + np.arange(len(each["stamps"]))
        first, last = np.interp([begin, end], each["stamps"], at)
        steps += float(last - first)
        read += float(np.interp(last, np.arange(len(total)), total) - np.interp(first, np.arange(len(total)), total))
    return Window(steps, read, end - begin)
