"""The process that writes series of cells to TensorBoard, W&B, trackio or MLflow, through `accelerate.tracking`.

`tracking` starts one for each tracker and sends it a JSON line for each event on standard input. If the tracker fails,
the process answers with a line that says why, and ends. It is a process of its own so that a tracker can neither fail a
run nor slow it, nor harm another tracker: it has the lowest priority, and nothing that it does or waits for holds
Python's lock in the process that trains.

    {"open": [cell, …]}
    {"steps": [[id, …], first step, seconds, losses, norms, rates]}    arrays of float32 as base64, [steps, cells]
    {"epoch": [[id, …], epoch, step, metrics, held out]}
    {"end": [[id, step, score, status], …]}
"""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_bench.cell import Cell
from lora_bench.errors import described
from lora_bench.text import clean, discreet

FOLDER = "tracking"  # in the results folder: what trackers keep on disk
LOG = "trackers.log"  # in that folder: what they print
MAX_LOG = 1_000_000  # bytes of it from one run (chosen): a tracker that prints endlessly must not fill the disk
FINISH_SECONDS = 120.0  # that what is late may take when training has ended: a busy machine needs it; chosen
ORPHAN_SECONDS = 600.0  # the same after a run that was killed, for which nobody waits; chosen
PROJECT = "lora-bench"  # what holds the runs: W&B's and trackio's project, MLflow's experiment
# The trackers, each with the modules of which one must be there.
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}
# Trackers that can have several runs open at a time. To others a cell is written when it has ended.
_LIVE = frozenset({"tensorboard", "wandb"})
_SHARE = 0.5  # of the time between two blocks of steps that writing one may take; else it has fewer points (chosen)
_FIRST_COST = 1e-3  # seconds of a call before one was measured (chosen)
Values = Mapping[str, float | str]
Rows = Iterator[tuple[int, Values]]
Array = NDArray[np.float32]


@dataclass
class _Run:
    """A cell in the tracker.

    Attributes:
        tracker: The tracker's run; None if it is not open yet.
        rows: What has not been written. Steps are kept as arrays: in a long training there are millions of them.
    """

    tracker: Any = None
    rows: deque[Rows] = field(default_factory=deque)

    def log(self, limit_log: Callable[[], None]) -> int:
        """Write the rows; return how many there were."""
        count = 0
        while self.rows:
            for step, values in self.rows.popleft():
                self.tracker.log(values, step=step)
                limit_log()
                count += 1
        return count


class Recorder:
    """Writes events to a tracker. Whatever the tracker raises is raised; it must not be called again then.

    Args:
        name: The tracker.
        results: The results folder.
        offline: Whether no network may be used.
        limit_log: To be called whenever the tracker may have printed.
    """

    def __init__(self, name: str, results: Path, offline: bool, limit_log: Callable[[], None] = lambda: None) -> None:
        self.name, self.results, self.offline, self._limit_log = name, results, offline, limit_log
        self._runs: dict[str, _Run] = {}
        self._cells: dict[str, Cell] = {}
        self._diverged: set[str] = set()  # later values are of steps that were not taken
        self._cost, self._calls = _FIRST_COST, 0

    def handle(self, event: Mapping[str, Any]) -> None:
        """Write an event."""
        match event:
            case {"open": cells}:
                self._open([Cell.model_validate(cell) for cell in cells])
            case {"steps": [ids, first_step, seconds, *arrays]}:
                self._steps(ids, first_step, seconds, *(decode(text, len(ids)) for text in arrays))
            case {"epoch": values}:
                self._epoch(*values)
            case {"end": ended}:
                self._end(ended)

    def close(self) -> None:
        """End all runs."""
        for cell_id in list(self._runs):
            self._finish(cell_id)

    def _open(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            self._cells[cell.id] = cell
            self._runs.setdefault(cell.id, _Run())

    def _steps(
        self, ids: Sequence[str], first_step: int, seconds: float, losses: Array, norms: Array, rates: Array
    ) -> None:
        active = [index for index, cell_id in enumerate(ids) if cell_id not in self._diverged]
        cost = len(losses) * len(active) * self._cost
        stride = max(1, math.ceil(cost / (_SHARE * max(seconds, 1e-3))))
        for index in active:
            columns = [losses[:, index], norms[:, index], rates[:, index]]
            bad = np.flatnonzero(~np.isfinite(columns[0]) | ~np.isfinite(columns[1]))
            if len(bad):
                self._diverged.add(ids[index])
                columns = [column[: bad[0] + 1] for column in columns]
            self._write(ids[index], _points(first_step, columns, stride))

    def _epoch(
        self,
        ids: Sequence[str],
        epoch: int,
        step: int,
        metrics: Sequence[Mapping[str, float] | None],
        held_out: Sequence[Mapping[str, float] | None],
    ) -> None:
        for cell_id, *parts in zip(ids, metrics, held_out, strict=True):
            values = {
                f"{part}/{name}": value
                for part, named in zip(("eval", "held_out"), parts, strict=True)
                for name, value in (named or {}).items()
            }
            if values:
                self._write(cell_id, iter([(step, {"epoch": float(epoch), **values})]))

    def _end(self, ended: Iterable[tuple[str, int, float | None, str]]) -> None:
        for cell_id, step, score, status in ended:
            if cell_id in self._cells:
                values: dict[str, float | str] = {} if score is None else {"score": score}
                if self.name != "mlflow":  # its metrics are numbers only
                    values["status"] = status
                if values:
                    self._write(cell_id, iter([(step, values)]))
                self._finish(cell_id)

    def _write(self, cell_id: str, rows: Rows) -> None:
        if cell_id in self._runs:
            self._runs[cell_id].rows.append(rows)
            if self.name in _LIVE:
                self._flush(cell_id)

    def _flush(self, cell_id: str) -> None:
        """Write the rows of a cell; start its run first."""
        run = self._runs[cell_id]
        if run.tracker is None:
            self._start(self._cells[cell_id], run)
        before = time.monotonic()
        if count := run.log(self._limit_log):
            self._calls += count
            self._cost += ((time.monotonic() - before) / count - self._cost) * min(count / self._calls + 0.01, 1)

    def _finish(self, cell_id: str) -> None:
        self._flush(cell_id)
        self._runs.pop(cell_id).tracker.finish()
        del self._cells[cell_id]

    def _start(self, cell: Cell, run: _Run) -> None:
        """Start the run of a cell, with the cell's settings."""
        from accelerate import tracking

        label, group, settings = label_of(cell), clean(self.results.resolve().name), settings_of(cell)
        folder = self.results / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": label, "logging_dir": folder},
            "wandb": {
                "run_name": PROJECT,
                "name": label,
                "group": group,
                "dir": folder,
                "config": settings,
                "reinit": "create_new",
                **({"mode": "offline"} if self.offline else {}),
            },
            "trackio": {"run_name": PROJECT, "name": label, "group": group},
            "mlflow": {"experiment_name": PROJECT, "run_name": label, "tags": {"group": group}},
        }
        run.tracker = tracking.LOGGER_TYPE_TO_CLASS[self.name](**arguments[self.name])
        run.tracker.start()
        if self.name == "tensorboard":  # as text: its table of hyperparameters would be another run for each cell
            rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
            run.tracker.log({"settings": f"| setting | value |\n|---|---|\n{rows}"}, step=0)
        elif self.name != "wandb":
            run.tracker.store_init_configuration(settings)


def _points(first_step: int, columns: Sequence[Array], stride: int) -> Rows:
    """Yield a point for every `stride` steps: the means of the loss and of the norm, and the last rate."""
    losses, norms, rates = columns
    for start in range(0, len(losses), stride):
        end = min(start + stride, len(losses))
        yield (
            first_step + end - 1,
            {
                "train/loss": float(losses[start:end].mean()),
                "train/grad_norm": float(norms[start:end].mean()),
                "train/lr": float(rates[end - 1]),
            },
        )


def settings_of(cell: Cell) -> dict[str, Any]:
    """Return the settings of a cell that are set, with its id."""
    return {"id": cell.id, **cell.model_dump(exclude_none=True)}


def label_of(cell: Cell) -> str:
    """Name a cell's run, such as `cola-mini-rank4-a8-b8-seed0-0123456789ab`; a name of a file too."""
    sizes = "".join(f"-{name}{getattr(cell, name)}" for name in ("rank", "a", "b") if getattr(cell, name) is not None)
    text = f"{cell.task}-{cell.method}{sizes}-seed{cell.seed}"
    allowed = (letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in text)
    return "".join(allowed)[:100] + f"-{cell.id}"


def encode(values: NDArray[np.float64]) -> str:
    """Return an array as text."""
    return base64.b64encode(values.astype(np.float32).tobytes()).decode()


def decode(text: str, columns: int) -> Array:
    """Return the array that was encoded, with that number of columns."""
    return np.frombuffer(base64.b64decode(text), dtype=np.float32).reshape(-1, columns)


def main() -> None:
    """Write the events of standard input.

    The arguments are the tracker, the results folder, `offline` or `online`, and the process that sends the events.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the run decides: it ends when its input does
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_run, args=(int(sys.argv[4]),), daemon=True).start()
    events, answers = _take_streams()
    name, results, offline = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "offline"
    sys.argv[0] = "lora-bench"  # what MLflow calls the source of its runs
    try:
        _record(events, name, results, offline)
    except BaseException as error:  # SystemExit too: libraries call sys.exit
        with suppress(OSError):  # the run is gone
            print(json.dumps(_reason(error)), file=answers, flush=True)
        with suppress(Exception):
            traceback.print_exc()
        sys.exit(1)


def _record(events: Iterable[str], name: str, results: Path, offline: bool) -> None:
    """Write events to a tracker, to the last one."""
    from accelerate import tracking  # noqa: F401 (what takes long)
    from accelerate.state import PartialState

    PartialState(cpu=True)  # the trackers ask which process they are in; no device is touched
    with suppress(OSError):  # not before: while the run imports the same, and on a busy machine it would take minutes
        os.nice(19)
    recorder = Recorder(name, results, offline, _log_limit())
    for line in events:
        recorder.handle(json.loads(line))
    recorder.close()


def _log_limit() -> Callable[[], None]:
    """Return what ends the log once it has grown by `MAX_LOG`."""
    most = os.fstat(2).st_size + MAX_LOG

    def limit() -> None:
        if os.fstat(2).st_size > most:  # of another kind of file afterwards, which has no size
            print("The log is full: nothing more is written to it.", file=sys.stderr, flush=True)
            _to_nowhere(1, 2)

    return limit


def _take_streams() -> tuple[Iterable[str], Any]:
    """Return the streams of events and of answers, which trackers cannot read or write.

    A tracker that asks for a password reads no event as the answer, and what it prints is in the log, which is standard
    error.
    """
    events, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    _to_nowhere(0)
    os.dup2(2, 1)
    return events, answers


def _to_nowhere(*descriptors: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _end_with_the_run(parent: int) -> None:
    """In a thread of its own: end this process some time after the run was killed, even where the tracker hangs."""
    while os.getppid() == parent:
        time.sleep(5)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def _reason(error: BaseException) -> str:
    """Say in a line what a tracker has raised."""
    text = type(error).__name__
    with suppress(Exception):  # of an exception that cannot be printed
        text = described(error)
    return discreet(clean(text))[:200]
