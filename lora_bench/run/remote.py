"""A worker in a process of its own, and the form in which jobs and what comes of them travel.

What travels is JSON, bytes of safetensors, numbers and text: a worker that has another version is noticed by its
answer, never by an object that it cannot unpack. Torch is imported by `RemoteWorker.warm_up`.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from lora_bench import methods, models, plugins, provenance, tasks
from lora_bench.callbacks import EpochMetrics, PackEnd, PackStart, StepBlock
from lora_bench.cell import Cell
from lora_bench.data import DataSource
from lora_bench.data.model_source import ModelSource
from lora_bench.errors import BenchError, of_the_system
from lora_bench.records.adapters import Part
from lora_bench.records.files import is_folder
from lora_bench.records.store import parse, record_text
from lora_bench.run import environment
from lora_bench.run.checkpoints import CheckpointManifest, SentCheckpoint
from lora_bench.run.executor import import_training, train_job
from lora_bench.run.interfaces import Job, Options, Setup, View
from lora_bench.run.outcome import Outcome
from lora_bench.run.signals import Stopper

Event = tuple[Any, ...]  # a word that says what has happened, then its values
# JSON; the manifests and tensors of checkpoints; the files of what other cells have trained, by id and name.
SentJob = tuple[bytes, list[tuple[str, bytes]], dict[str, dict[Part, bytes]]]
_JOB, _OPTIONS = TypeAdapter(Job), TypeAdapter(Options)


class RemoteWorker:
    """A worker that is called from another process; the `RunContext` of what it trains.

    `warm_up`, `start` and `train` run in one thread, in the order in which they are called; the other methods may run
    at the same time.

    Args:
        threads: How many threads torch may use.
    """

    def __init__(self, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
        self.threads = threads
        self.stopper = Stopper()
        self._events: deque[Event] = deque()
        self._step: Event | None = None
        self._news = threading.Condition()

    def device_name(self) -> str:
        """Return the name of this machine's GPU; `cpu` if there is none."""
        return environment.local_device()

    def warm_up(self, device: str) -> None:
        """Import torch and transformers before the setup is known. `start` reports what goes wrong."""
        import_training(device)

    def start(self, setup: str) -> list[Event]:
        """Load what trains; return `("ready", machine, device, facts)`, with what `facts_of` returns, or an error."""
        try:
            decoded, included = decode_setup(setup)
            for path in included:
                plugin = plugins.load_file(path)
                methods.add_from(plugin)
                tasks.add_from(plugin)
            facts = facts_of(decoded.methods, [task for task, _ in decoded.data])
            training = import_training(decoded.options.device)
            import torch

            torch.set_num_threads(self.threads)
            if decoded.options.device != "cpu" and not torch.cuda.is_available():
                hint = "Look at the driver with nvidia-smi there, or use --device cpu."
                raise BenchError(f"torch finds no GPU on {platform.node()}.", hint, 3)
            self._training = training(decoded, RemoteView(self._send))
            self._debug = decoded.options.debug
        except BaseException as error:
            return [_error_event(error)]
        return [("ready", platform.node(), environment.device_name(decoded.options.device), facts)]

    def train(self, job: SentJob) -> None:
        """Train a job; what comes of it is asked for by `poll`, at last `("ended", failure)` or an error."""
        import torch

        torch.set_num_threads(self.threads)  # OpenMP's number belongs to the thread
        try:
            failure = train_job(self._training, decode_job(job), self, self._debug)
        except KeyboardInterrupt:
            self._send(("stopped",))
        except BaseException as error:
            self._send(_error_event(error))
        else:
            sent = None if failure is None else (failure.status, failure.reason, dict(failure.environment))
            self._send(("ended", sent))

    def prefetch(self, cell: str) -> None:
        """Prepare the inputs of a pack that may come next, and has this cell, while another trains."""
        self._training.loader.prefetch(Cell.model_validate_json(cell))

    def poll(self, seconds: float) -> list[Event]:
        """Return what has happened since the last call; wait for it, but not longer than some seconds."""
        with self._news:
            self._news.wait_for(lambda: self._events, seconds)
            events = [*self._events, *filter(None, [self._step])]
            self._events.clear()
            self._step = None
        return events

    def stop(self) -> None:
        """Save the job after the step that is running, and end it."""
        self.stopper.asked = True

    def _send(self, event: Event) -> None:
        with self._news:
            if event[:2] == ("view", "on_step_issued"):
                self._step = event  # of the steps only the last is of interest, and it is worth no message of its own
                return
            self._step = None
            self._events.append(event)
            self._news.notify_all()

    def check(self) -> None:
        """The driver checks whether the run may go on."""

    def save(self, manifest: CheckpointManifest, tensors: bytes) -> None:
        """Send a checkpoint."""
        self._send(("save", manifest.model_dump_json(), tensors))

    def publish(self, outcomes: Sequence[Outcome]) -> None:
        """Send the records and adapters of cells that have ended."""
        self._send(("publish", [(record_text(outcome.record), dict(outcome.adapter)) for outcome in outcomes]))


def _error_event(error: BaseException) -> Event:
    """What to say of an error that ends the run, and where: in the user's terms, or with its traceback."""
    if isinstance(error, OSError):
        error = of_the_system(error)
    if isinstance(error, BenchError):
        return "error", platform.node(), error.what, error.hint, error.code
    return "fault", platform.node(), "".join(traceback.format_exception(error))


def facts_of(method_names: Iterable[str], task_names: Iterable[str]) -> dict[str, str]:
    """Return what must be the same in every process.

    These are the versions of libraries, of the code of each method, and of the users' files that define methods and
    tasks. What is not installed has no entry.
    """
    names = [name for name in dict.fromkeys(method_names) if name in methods.RECIPES]
    files = {f"the file of {name}": methods.origin(name) for name in names}
    files |= {f"the file of {name}": tasks.origin(name) for name in dict.fromkeys(task_names) if name in tasks.TASKS}
    return {
        **environment.versions(),
        **provenance.versions_of(*provenance.LIBRARIES),
        **{f"the code of {name}": provenance.code(name) for name in names},
        **{name: origin for name, origin in files.items() if origin is not None},
    }


def encode_setup(setup: Setup, device: str) -> str:
    """Return a setup as JSON, for workers with another device. Paths are absolute: they must be the same everywhere."""
    names = {
        identity: str(Path(source.name).absolute()) if is_folder(Path(source.name)) else source.name
        for identity, source in setup.models.items()
    }
    sources = [
        (task, identity, source.kind, source.root and str(source.root.absolute()))
        for (task, identity), source in setup.data.items()
    ]
    cache = setup.options.cache
    options = replace(setup.options, results=Path(os.devnull), device=device, cache=cache and cache.absolute())
    return json.dumps(
        {
            "models": names,
            "data": sources,
            "targets": dict(setup.targets),
            "heads": dict(setup.heads),
            "methods": setup.methods,
            "options": _OPTIONS.dump_python(options, mode="json"),
            "include": [plugin.file for plugin in plugins.included()],
        }
    )


def decode_setup(text: str) -> tuple[Setup, list[Path]]:
    """Return a setup, and the files to include."""
    content = json.loads(text)
    model_sources = {
        identity: ModelSource(name, location := models.location(name), identity, is_folder(Path(location)))
        for identity, name in content["models"].items()
    }
    data = {
        (task, identity): DataSource.parse(Path(root) if kind == "folder" else None, sample=kind == "sample")
        for task, identity, kind, root in content["data"]
    }
    targets, heads = ({model: tuple(names) for model, names in content[kind].items()} for kind in ("targets", "heads"))
    options = _OPTIONS.validate_python(content["options"])
    setup = Setup(model_sources, data, targets, heads, tuple(content["methods"]), options)
    return setup, [Path(path) for path in content["include"]]


def encode_job(job: Job) -> SentJob:
    """Return a job in the form in which it travels. A checkpoint whose tensors are damaged is left out."""
    ids, sent, covered = {cell.id for cell in job.cells}, [], set[str]()
    for checkpoint in job.checkpoints:
        useful = ids.intersection(checkpoint.unfinished(job.record_times)) - covered
        if useful:
            try:
                tensors = checkpoint.read_tensors()
            except ValueError:
                continue
            covered |= useful
            sent.append((checkpoint.manifest.model_dump_json(), tensors))
    text = _JOB.dump_json(job, exclude={"checkpoints", "starts"})
    return text, sent, {cell_id: dict(parts) for cell_id, parts in job.starts.items()}


def decode_job(job: SentJob) -> Job:
    """Return the job that `encode_job` was given."""
    text, sent, starts = job
    checkpoints = [SentCheckpoint(CheckpointManifest.model_validate_json(text), tensors) for text, tensors in sent]
    return replace(_JOB.validate_json(text), checkpoints=checkpoints, starts=starts)


def decode_outcomes(sent: Sequence[tuple[bytes, dict[str, bytes]]]) -> list[Outcome]:
    """Return outcomes as `RemoteWorker` has sent them."""
    return [Outcome(parse(record), adapter) for record, adapter in sent]


class RemoteView(View):
    """Sends what a view is to show, as events `("view", name of a method, values)` for `show`."""

    def __init__(self, send: Callable[[Event], None]) -> None:
        self._send = send

    def stage(self, text: str) -> None:
        self._send(("view", "stage", text))

    def warn(self, text: str) -> None:
        self._send(("view", "warn", text))

    def on_pack_start(self, start: PackStart) -> None:
        cells = [cell.model_dump(mode="json") for cell in start.cells]
        self._send(("view", "on_pack_start", cells, start.steps_per_epoch, start.epochs, start.steps_taken))

    def on_step_issued(self, epoch: int, step: int) -> None:
        self._send(("view", "on_step_issued", epoch, step))

    def on_steps_recorded(self, block: StepBlock) -> None:
        arrays = [values.tolist() for values in (block.losses, block.grad_norms, block.lrs)]
        self._send(("view", "on_steps_recorded", block.epoch, block.first_step, *arrays))

    def on_epoch_evaluated(self, metrics: EpochMetrics) -> None:
        parts = (metrics.metrics, metrics.held_out)
        plain = [[None if cell is None else dict(cell) for cell in part] for part in parts]
        self._send(("view", "on_epoch_evaluated", metrics.epoch, metrics.main_metric, *plain))

    def on_pack_end(self, end: PackEnd) -> None:
        self._send(("view", "on_pack_end", end.finished, end.diverged))


def show(view: View, name: str, values: Sequence[Any]) -> None:
    """Call the method of a view that `RemoteView` was called with: its name, and the values that were sent."""
    if name == "on_pack_start":
        view.on_pack_start(PackStart(tuple(map(Cell.model_validate, values[0])), *values[1:]))
    elif name == "on_steps_recorded":
        view.on_steps_recorded(StepBlock(*values[:2], *(np.array(array, dtype=float) for array in values[2:])))
    elif name == "on_epoch_evaluated":
        view.on_epoch_evaluated(EpochMetrics(*values[:2], *(tuple(part) for part in values[2:])))
    elif name == "on_pack_end":
        view.on_pack_end(PackEnd(values[0], tuple(values[1])))
    else:
        getattr(view, name)(*values)
