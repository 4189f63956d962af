"""The process that writes series of cells to TensorBoard, W&B, trackio or MLflow, through `accelerate.tracking`.

`tracking` starts it and sends it a JSON line for each event on standard input; it answers with a line for each tracker
that has failed. It is a process of its own so that a tracker can neither fail a run nor slow it: it has the lowest
priority, and nothing that it does or waits for holds Python's lock in the process that trains.

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
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_bench.cell import Cell
from lora_bench.text import clean, discreet

FOLDER = "tracking"  # in the results folder: what trackers keep on disk
LOG = "trackers.log"  # in that folder: what they print
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
Array = NDArray[np.float32]


@dataclass
class _Run:
    """A cell in a tracker.

    Attributes:
        tracker: The tracker's run; None if it is not open yet.
        rows: What has not been written.
    """

    tracker: Any = None
    rows: deque[tuple[int, Values]] = field(default_factory=deque)

    def log_next(self) -> None:
        """Write the first row."""
        step, values = self.rows.popleft()
        self.tracker.log(values, step=step)


class Recorder:
    """Writes events to trackers. The first error of a tracker is reported, and the tracker is not called again.

    Args:
        names: The trackers.
        results: The results folder.
        offline: Whether no network may be used.
        report: Called with the name of a tracker that has failed, and why.
    """

    def __init__(self, names: Sequence[str], results: Path, offline: bool, report: Callable[[str, str], None]) -> None:
        self.results, self.offline, self._report = results, offline, report
        self._runs: dict[str, dict[str, _Run]] = {name: {} for name in names}
        self._cells: dict[str, Cell] = {}
        self._diverged: set[str] = set()  # later values are of steps that were not taken
        self._cost, self._calls = _FIRST_COST, 0

    def handle(self, event: Mapping[str, Any]) -> None:
        """Write an event."""
        ((kind, values),) = event.items()
        if kind == "open":
            self._open([Cell.model_validate(cell) for cell in values])
        elif kind == "steps":
            ids, first_step, seconds, *arrays = values
            losses, norms, rates = (decode(text, len(ids)) for text in arrays)
            self._steps(ids, first_step, seconds, losses, norms, rates)
        elif kind == "epoch":
            self._epoch(*values)
        elif kind == "end":
            self._end(values)

    def close(self) -> None:
        """End all runs."""
        for name in list(self._runs):
            for cell_id in list(self._runs.get(name, ())):
                self._finish(name, cell_id)

    def _open(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            self._cells[cell.id] = cell
            for runs in self._runs.values():
                runs.setdefault(cell.id, _Run())

    def _steps(
        self, ids: Sequence[str], first_step: int, seconds: float, losses: Array, norms: Array, rates: Array
    ) -> None:
        active = [index for index, cell_id in enumerate(ids) if cell_id not in self._diverged]
        cost = len(losses) * len(active) * len(self._runs) * self._cost
        stride = max(1, math.ceil(cost / (_SHARE * max(seconds, 1e-3))))
        for index in active:
            columns = [losses[:, index], norms[:, index], rates[:, index]]
            bad = np.flatnonzero(~np.isfinite(columns[0]) | ~np.isfinite(columns[1]))
            if len(bad):
                self._diverged.add(ids[index])
                columns = [column[: bad[0] + 1] for column in columns]
            for step, values in _points(first_step, columns, stride):
                self._write(ids[index], step, values)

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
                self._write(cell_id, step, {"epoch": float(epoch), **values})

    def _end(self, ended: Iterable[tuple[str, int, float | None, str]]) -> None:
        for cell_id, step, score, status in ended:
            if cell_id in self._cells:
                self._write(cell_id, step, {**({} if score is None else {"score": score}), "status": status})
                for name in list(self._runs):
                    self._finish(name, cell_id)
                del self._cells[cell_id]

    def _write(self, cell_id: str, step: int, values: Values) -> None:
        for name in list(self._runs):
            run = self._runs[name].get(cell_id)
            if run is not None:
                # MLflow's metrics are numbers only.
                kept = {key: value for key, value in values.items() if name != "mlflow" or not isinstance(value, str)}
                run.rows.append((step, kept))
                if name in _LIVE:
                    self._flush(name, self._cells[cell_id], run)

    def _flush(self, name: str, cell: Cell, run: _Run) -> None:
        """Write the rows of a cell to a tracker; start its run first."""
        if run.tracker is None and not self._call(name, lambda: self._start(name, cell, run)):
            return
        before, count = time.monotonic(), len(run.rows)
        while run.rows and self._call(name, run.log_next):
            pass
        if count:
            self._calls += count
            self._cost += ((time.monotonic() - before) / count - self._cost) * min(count / self._calls + 0.01, 1)

    def _finish(self, name: str, cell_id: str) -> None:
        run = self._runs[name].pop(cell_id, None)
        if run is not None:
            self._flush(name, self._cells[cell_id], run)
            if run.tracker is not None:
                self._call(name, run.tracker.finish)

    def _call(self, name: str, action: Callable[[], object]) -> bool:
        """Call a tracker, and return whether it worked; after an error it is not called again."""
        if name not in self._runs:
            return False
        try:
            action()
        except Exception as error:
            del self._runs[name]
            self._report(name, discreet(clean(f"{type(error).__name__}: {error}"))[:200])
            return False
        return True

    def _start(self, name: str, cell: Cell, run: _Run) -> None:
        """Start the run of a cell in a tracker, with the cell's settings."""
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
        run.tracker = tracking.LOGGER_TYPE_TO_CLASS[name](**arguments[name])
        run.tracker.start()
        if name == "tensorboard":  # as text: its table of hyperparameters would be another run for each cell
            rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
            run.tracker.log({"settings": f"| setting | value |\n|---|---|\n{rows}"}, step=0)
        elif name != "wandb":
            run.tracker.store_init_configuration(settings)


def _points(first_step: int, columns: Sequence[Array], stride: int) -> Iterator[tuple[int, dict[str, float]]]:
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
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in text)[:100] + f"-{cell.id}"


def encode(values: NDArray[np.float64]) -> str:
    """Return an array as text."""
    return base64.b64encode(values.astype(np.float32).tobytes()).decode()


def decode(text: str, columns: int) -> Array:
    """Return the array that was encoded, with that number of columns."""
    return np.frombuffer(base64.b64decode(text), dtype=np.float32).reshape(-1, columns)


def main() -> None:
    """Write the events of standard input: the arguments are the results folder, whether it is offline, the trackers."""
    with suppress(OSError):
        os.nice(19)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the run decides: it ends when its input does
        signal.signal(number, signal.SIG_IGN)
    results, offline, names = Path(sys.argv[1]), sys.argv[2] == "offline", sys.argv[3:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # trackers print: to the log, which is standard error

    def report(name: str, reason: str) -> None:
        with suppress(OSError):  # the run is gone
            print(json.dumps([name, reason]), file=answers, flush=True)

    from accelerate.state import PartialState

    PartialState(cpu=True)  # the trackers ask which process they are in; no device is touched
    recorder = Recorder(names, results, offline, report)
    for line in sys.stdin:
        recorder.handle(json.loads(line))
    recorder.close()


if __name__ == "__main__":
    main()
