"""What is tracked of a run: a view that sends what it sees to trackers, and passes it on.

Each cell is a run of its own in a tracker: its settings; by step the training loss, the norm of the gradient and the
learning rate; by epoch the metrics; at the end the score. All of it leaves the trainer through callbacks anyway, so
results are the same with and without a tracker. The driver tracks, also for workers on Ray.

Trackers run in a process of their own (`trackers`). Whatever happens to it, training continues, after one warning.
"""

from __future__ import annotations

import importlib.util
import json
import os
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
from lora_bench.run.trackers import FOLDER, LOG, PACKAGES, encode
from lora_bench.text import clean

FINISH_SECONDS = 60.0  # that what is late may take when training has ended; chosen


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that do not exist or are not installed, before anything else is done.

    Raises:
        BenchError: exit code 2 for an unknown name, 3 for one that is not installed.
    """
    for name in names:
        if name not in PACKAGES:
            raise unknown("tracker", name, PACKAGES)
        missing = [] if importlib.util.find_spec("accelerate") else ["'lora-bench[track]'"]
        missing += [] if any(map(importlib.util.find_spec, PACKAGES[name])) else [name]
        if missing:
            packages = " ".join(missing)
            raise BenchError(
                f"--track {name} needs packages that are not installed.", f"pip install {packages}", MISSING
            )


@contextmanager
def tracked(view: View, names: Sequence[str], results: Path, offline: bool = False) -> Iterator[View]:
    """Give a view that tracks what it sees and passes it on to `view`; without names, `view` itself.

    Args:
        view: What shows the run.
        names: The trackers.
        results: The results folder.
        offline: Whether no network may be used.
    """
    if not names:
        yield view
        return
    process = TrackerProcess(tuple(dict.fromkeys(names)), results, offline, view.warn)
    try:
        yield Tracking(view, process)
    finally:
        process.close()


class TrackerProcess:
    """The process of the trackers, and two threads: one sends it events, one shows what it reports.

    Args:
        names: The trackers.
        results: The results folder.
        offline: Whether no network may be used.
        warn: What shows a warning.
    """

    def __init__(self, names: Sequence[str], results: Path, offline: bool, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._events: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._closing = self._has_failed = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        try:
            (results / FOLDER).mkdir(parents=True, exist_ok=True)
            with (results / FOLDER / LOG).open("a", encoding="utf-8") as log:
                self._process = subprocess.Popen(  # noqa: S603 (our own module)
                    [sys.executable, "-m", "lora_bench.run.trackers", str(results), _mode(offline), *names],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                    process_group=0,  # the terminal's Ctrl-C is for the run; of its session, for the priority's sake
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
        except OSError as error:
            self._give_up(error.strerror or type(error).__name__)
            return
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._listen)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """The process's id; 0 if it could not be started."""
        return 0 if self._process is None else self._process.pid

    def send(self, kind: str, *values: Any) -> None:
        """Send an event; it takes no time and never fails."""
        self._events.put({kind: values})

    def close(self) -> None:
        """Have the process write what is late and end; end it if that takes too long."""
        self._closing = True
        if self._process is None:
            return
        self._events.put(None)
        try:
            code = self._process.wait(FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._warn(f"Trackers did not end within {FINISH_SECONDS:.0f} s; some values are not tracked.")
        else:
            if code:
                self._give_up(f"exit code {code}")
        for thread in self._threads:
            thread.join(1)

    def _send(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError), self._process.stdin as stream:  # OSError: it is gone, which `_listen` sees
            while (event := self._events.get()) is not None:
                stream.write(json.dumps(event) + "\n")
                stream.flush()

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                name, reason = json.loads(line)
                self._warn(f"{name} tracks no more ({reason}); training continues.")
        if not self._closing:
            self._give_up(f"exit code {self._process.wait()}")

    def _give_up(self, reason: str) -> None:
        """Say once that nothing is tracked any more."""
        with self._lock:
            if self._has_failed:
                return
            self._has_failed = True
        self._warn(clean(f"Trackers have failed ({reason}; see {FOLDER}/{LOG}); training continues."))


def _mode(offline: bool) -> str:
    return "offline" if offline else "online"


class Tracking(View):
    """A view that sends what it sees to the process of the trackers, and passes it on.

    Args:
        view: What shows the run.
        process: The process of the trackers.
    """

    def __init__(self, view: View, process: TrackerProcess) -> None:
        self.view, self.process = view, process
        self._start = PackStart((), 1, 1, 0)
        self._ids: tuple[str, ...] = ()
        self._steps: dict[str, int] = {}
        self._last = time.monotonic()

    def on_device(self, name: str) -> View:
        """Return what shows and tracks the packs of one of several devices."""
        return _OfDevice(self.view.on_device(name), self)

    def stage(self, text: str) -> None:
        """Pass it on."""
        self.view.stage(text)

    def warn(self, text: str) -> None:
        """Pass it on."""
        self.view.warn(text)

    def staged(self, stages: Sequence[StageProgress]) -> None:
        """Pass it on."""
        self.view.staged(stages)

    def done(self, records: Sequence[Record]) -> None:
        """End the runs of the cells."""
        self.view.done(records)
        for record in records:
            status = record.status if record.reason is None else f"{record.status}: {record.reason}"
            self.process.send("end", (record.id, self._steps.pop(record.id, 0), record.score, clean(status)))

    def on_pack_start(self, start: PackStart) -> None:
        """Note the cells of the pack."""
        self.view.on_pack_start(start)
        self._start, self._last = start, time.monotonic()
        self._ids = tuple(cell.id for cell in start.cells)
        self.process.send("open", *(cell.model_dump(mode="json", exclude_none=True) for cell in start.cells))

    def on_step_issued(self, epoch: int, step: int) -> None:
        """Pass it on."""
        self.view.on_step_issued(epoch, step)

    def on_steps_recorded(self, block: StepBlock) -> None:
        """Track the steps."""
        self.view.on_steps_recorded(block)
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._steps.update(dict.fromkeys(self._ids, block.first_step + len(block.losses) - 1))
        arrays = map(encode, (block.losses, block.grad_norms, block.lrs))
        self.process.send("steps", self._ids, block.first_step, seconds, *arrays)

    def on_safe_point(self) -> None:
        """Pass it on."""
        self.view.on_safe_point()

    def on_epoch_evaluated(self, metrics: EpochMetrics) -> None:
        """Track the metrics."""
        self.view.on_epoch_evaluated(metrics)
        step = metrics.epoch * self._start.steps_per_epoch
        self.process.send("epoch", self._ids, metrics.epoch, step, metrics.metrics, metrics.held_out)

    def on_pack_end(self, end: PackEnd) -> None:
        """Pass it on."""
        self.view.on_pack_end(end)

    def should_pause(self) -> bool:
        """Pass it on."""
        return self.view.should_pause()


class _OfDevice(Tracking):
    """The view of one of several devices; the steps of its cells are known to the view of the run, which ends them."""

    def __init__(self, view: View, run: Tracking) -> None:
        super().__init__(view, run.process)
        self._steps = run._steps
