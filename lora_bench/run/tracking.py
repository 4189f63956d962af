"""Sends the series of a run's cells to trackers: a view that passes on what it sees.

Each cell is a run of its own in a tracker: its settings; by step the training loss, the norm of the gradient and the
learning rate; by epoch the metrics; at the end the score. All of it leaves the trainer through callbacks anyway, so
results are the same with and without a tracker. The driver tracks, also for workers on Ray.

Each tracker runs in a process of its own (`trackers`). Whatever happens to it, training continues, after one warning.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from lora_bench.callbacks import EpochMetrics, PackEnd, PackStart, StepBlock
from lora_bench.errors import MISSING, BenchError, unknown
from lora_bench.records.schema import Record
from lora_bench.run.interfaces import StageProgress, View
from lora_bench.run.trackers import FINISH_SECONDS, FOLDER, LOG, PACKAGES, encode
from lora_bench.text import clean

# Characters of events that wait for a tracker, such as one that hangs, before it is given up; chosen.
MAX_PENDING = 2**26
# The process imports what this one imports: not what happens to lie in the current folder, as with `-m`.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from lora_bench.run import trackers; trackers.main()"
)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that do not exist or are not installed, before anything else is done.

    Raises:
        BenchError: Exit code 2 for an unknown name, 3 for one that is not installed.
    """
    for name in names:
        if name not in PACKAGES:
            raise unknown("tracker", name, PACKAGES)
        missing = [] if importlib.util.find_spec("accelerate") else ["'lora-bench[track]'"]
        missing += [] if any(map(importlib.util.find_spec, PACKAGES[name])) else [name]
        if missing:
            hint = f"pip install {' '.join(missing)}"
            raise BenchError(f"--track {name} needs packages that are not installed.", hint, MISSING)


@contextmanager
def tracked(view: View, names: Sequence[str], results: Path, offline: bool = False) -> Iterator[View]:
    """Give a view that tracks what it sees with the trackers of these names, and passes it on; without any, `view`."""
    if not names:
        yield view
        return
    processes = [TrackerProcess(name, results, offline, view.warn) for name in dict.fromkeys(names)]
    try:
        yield Tracking(view, processes)
    finally:
        _close(processes, view)


def import_path() -> list[str]:
    """Return where the process of a tracker looks for modules."""
    return list(map(str, sys.path))


def _close(processes: Sequence[TrackerProcess], view: View) -> None:
    """Have the processes write what is late and end; end those that take too long."""
    try:
        for process in processes:
            process.send_end()
        deadline = time.monotonic() + FINISH_SECONDS
        for process in processes:
            if process.is_tracking:
                view.stage(f"waiting for {process.name}")
                process.wait(deadline)
    finally:  # also after Ctrl-C
        for process in processes:
            process.close()


class TrackerProcess:
    """The process of a tracker, and two threads: one sends it events, one shows what it reports by `warn`."""

    def __init__(self, name: str, results: Path, offline: bool, warn: Callable[[str], None]) -> None:
        self.name, self._results, self._offline, self._warn = name, results, offline, warn
        self._events: SimpleQueue[tuple[int, dict[str, Any]] | None] = SimpleQueue()
        self._pending = 0  # characters in the queue
        self._is_closing = self._has_failed = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._threads: list[threading.Thread] = []

    @property
    def pid(self) -> int:
        """The process's id; 0 if it was not started, or could not be."""
        return 0 if self._process is None else self._process.pid

    @property
    def is_tracking(self) -> bool:
        """Whether it was started and has not failed."""
        return self._process is not None and not self._has_failed

    def start(self) -> None:
        """Start the process, unless it was started before."""
        if self._process is not None or self._has_failed:
            return
        folder = self._results / FOLDER
        try:
            if folder.is_symlink():
                raise OSError(f"'{FOLDER}' is a link, which is not followed")
            folder.mkdir(parents=True, exist_ok=True)
            words = [self.name, str(self._results), "offline" if self._offline else "online", str(os.getpid())]
            with (folder / LOG).open("a", encoding="utf-8") as log:
                self._process = subprocess.Popen(  # noqa: S603 (our own module)
                    [sys.executable, "-P", "-c", _PROGRAM, json.dumps(import_path()), *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                    process_group=0,  # the terminal's Ctrl-C is for the run; of its session, for the priority's sake
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
        except OSError as error:
            self._give_up(f"{FOLDER}: {error.strerror}" if error.strerror else str(error))
            return
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._listen)]
        for thread in self._threads:
            thread.start()

    def send(self, kind: str, *values: Any) -> None:
        """Send an event; it takes no time and never fails."""
        if self._has_failed:
            return
        size = sum(len(value) for value in values if isinstance(value, str))
        with self._lock:
            is_behind = self._pending > MAX_PENDING
            self._pending += size
        if is_behind:
            self._give_up("it is too far behind")
            self._kill()
        else:
            self._events.put((size, {kind: values}))

    def send_end(self) -> None:
        """Say that no event follows."""
        self._is_closing = True
        self._events.put(None)

    def wait(self, deadline: float) -> None:
        """Wait for the process to end, until a moment of `time.monotonic`."""
        assert self._process is not None
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            late = f"{self.name} did not end within {FINISH_SECONDS:.0f} s and was ended"
            self._warn(f"{late}; some of its values may be missing.")
            return
        self._threads[1].join(1)  # it may have reported more than the code
        if code:
            self._give_up(f"exit code {code}; see {FOLDER}/{LOG}")

    def close(self) -> None:
        """End the process if it has not ended."""
        if self._process is not None:
            self._kill()
            self._process.wait()
            for thread in self._threads:
                thread.join(1)

    def _kill(self) -> None:
        """End the process, and those that it has started."""
        if self._process is not None and self._process.poll() is None:
            with suppress(OSError):  # it has ended meanwhile
                os.killpg(self._process.pid, signal.SIGKILL)

    def _send(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError), self._process.stdin as stream:  # OSError: it is gone, which `_listen` sees
            while (item := self._events.get()) is not None:
                size, event = item
                stream.write(json.dumps(event) + "\n")
                stream.flush()
                with self._lock:
                    self._pending -= size

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                with suppress(ValueError):  # it has ended in the middle of a line
                    self._give_up(json.loads(line))
        if not self._is_closing:
            self._give_up(f"exit code {self._process.wait()}; see {FOLDER}/{LOG}")

    def _give_up(self, reason: str) -> None:
        """Stop tracking, and say so once."""
        with self._lock:
            if self._has_failed:
                return
            self._has_failed = True
        self._warn(clean(f"{self.name} has stopped tracking ({reason}); training continues."))


class Tracking(View):
    """A view that sends what it sees to the processes of the trackers, and passes it on.

    The first sign of work starts them: not a run that has nothing to train, or may not have the results folder.

    Args:
        view: What shows the run.
        processes: The processes.
        steps: The steps that cells have taken, by id. The views of all devices share them with that of the run, which
            ends the cells.
    """

    def __init__(self, view: View, processes: Sequence[TrackerProcess], steps: dict[str, int] | None = None) -> None:
        self.view, self.processes = view, processes
        self._start = PackStart((), 1, 1, 0)
        self._ids: tuple[str, ...] = ()
        self._steps = {} if steps is None else steps
        self._last = time.monotonic()

    def on_device(self, name: str) -> View:
        """Return what shows and tracks the packs of one of several devices."""
        return Tracking(self.view.on_device(name), self.processes, self._steps)

    def stage(self, text: str) -> None:
        """Start the trackers, which import what they need while the run does."""
        self.view.stage(text)
        self._start_all()

    def warn(self, text: str) -> None:
        self.view.warn(text)

    def staged(self, stages: Sequence[StageProgress]) -> None:
        self.view.staged(stages)

    def done(self, records: Sequence[Record]) -> None:
        """End the runs of the cells."""
        self.view.done(records)
        for record in records:
            status = record.status if record.reason is None else f"{record.status}: {record.reason}"
            self._send("end", (record.id, self._steps.pop(record.id, 0), record.score, clean(status)))

    def on_pack_start(self, start: PackStart) -> None:
        """Note the cells of the pack."""
        self.view.on_pack_start(start)
        self._start_all()
        self._start, self._last = start, time.monotonic()
        self._ids = tuple(cell.id for cell in start.cells)
        self._send("open", *(cell.model_dump(mode="json", exclude_none=True) for cell in start.cells))

    def on_step_issued(self, epoch: int, step: int) -> None:
        self.view.on_step_issued(epoch, step)

    def on_steps_recorded(self, block: StepBlock) -> None:
        """Track the steps."""
        self.view.on_steps_recorded(block)
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._steps.update(dict.fromkeys(self._ids, block.first_step + len(block.losses) - 1))
        arrays = map(encode, (block.losses, block.grad_norms, block.lrs))
        self._send("steps", self._ids, block.first_step, seconds, *arrays)

    def on_safe_point(self) -> None:
        self.view.on_safe_point()

    def on_epoch_evaluated(self, metrics: EpochMetrics) -> None:
        """Track the metrics."""
        self.view.on_epoch_evaluated(metrics)
        step = metrics.epoch * self._start.steps_per_epoch
        self._send("epoch", self._ids, metrics.epoch, step, metrics.metrics, metrics.held_out)

    def on_pack_end(self, end: PackEnd) -> None:
        self.view.on_pack_end(end)

    def should_pause(self) -> bool:
        return self.view.should_pause()

    def _start_all(self) -> None:
        for process in self.processes:
            process.start()

    def _send(self, kind: str, *values: Any) -> None:
        for process in self.processes:
            process.send(kind, *values)
