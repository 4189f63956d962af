"""What a run is given, and the interfaces between its driver, its executor and what trains. No torch.

The driver (`runner.Runner`) gives jobs to an executor, which has them trained by workers: by one in this process
(`executor.LocalExecutor`), or by one for each device of a Ray cluster (`cluster.RayExecutor`). What a worker has to say
goes back to the driver, which alone writes the results folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from lora_bench.callbacks import Callback
from lora_bench.cell import Cell, Head
from lora_bench.records.adapters import Part
from lora_bench.records.schema import Record
from lora_bench.run.checkpoints import CheckpointManifest, StoredCheckpoint
from lora_bench.run.outcome import Outcome
from lora_bench.run.signals import Stopper

if TYPE_CHECKING:
    from lora_bench.data import DataSource
    from lora_bench.data.model_source import ModelSource


@dataclass(frozen=True)
class StageProgress:
    """The cells of a stage: those that search the rates of a task, or the others of the task.

    Attributes:
        title: The name of the stage.
        cells: How many there are, as far as it is known.
        ended: How many have ended.
        ready: How many can train, or are in training.
        waiting: How many wait for other cells.
        blocked: How many can never train, since a cell that they need has failed.
        needs: The titles of the stages that it waits for, or has waited for.
    """

    title: str
    cells: int
    ended: int
    ready: int
    waiting: int
    blocked: int
    needs: tuple[str, ...]


class View(Callback):
    """What shows a run's progress: a callback of each pack that trains, which also follows the run as a whole.

    Every method does nothing unless it is overridden.
    """

    def on_device(self, name: str) -> View:  # noqa: ARG002 (for those that show several)
        """Return what shows the packs of one of several devices; by default, the view itself."""
        return self

    def stage(self, text: str) -> None:
        """Show that something begins that takes a while."""

    def done(self, records: Sequence[Record]) -> None:
        """Show that cells have ended, and their records are written."""

    def staged(self, stages: Sequence[StageProgress]) -> None:
        """Show how far the stages are, for a grid in which cells wait for others; called whenever that changes."""

    def warn(self, text: str) -> None:
        """Show the user a warning."""


@dataclass(frozen=True)
class Options:
    """Where and how to run; nothing here changes a number.

    Attributes:
        results: The results folder.
        device: What torch calls the device.
        offline: Whether the Hub is never asked.
        save: Whether trained adapters are kept.
        cache: The folder of tokenized data; None to keep none.
        debug: Whether errors end the run with their traceback.
    """

    results: Path
    device: str = "cpu"
    offline: bool = False
    save: bool = True
    cache: Path | None = None
    debug: bool = False


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know before its first job.

    Attributes:
        models: The models by their identity, as cells name them.
        data: The data sources by task and identity, as cells name them.
        targets: By model, the targets of all cells that are to train.
        heads: By model, the heads of these cells (`Cell.head`).
        methods: The methods of these cells.
        options: Where and how to run. A worker does not touch the results folder.
    """

    models: Mapping[str, ModelSource]
    data: Mapping[tuple[str, str], DataSource]
    targets: Mapping[str, tuple[str, ...]]
    heads: Mapping[str, tuple[Head | None, ...]]
    methods: tuple[str, ...]
    options: Options


@dataclass(frozen=True)
class Job:
    """A pack to train, and all that a worker needs for it.

    Attributes:
        number: What tells it from the other jobs of the run.
        cells: The cells of the pack.
        halved: How often the pack was cut in two because memory ran out.
        notes: What deviates from the paper in these cells.
        record_times: When the records that some of the cells have were written, in nanoseconds, by id.
        checkpoints: Checkpoints that hold some of the cells, those with the most steps first.
        predicted_bytes: The predicted peak of memory; None if it is unknown.
        starts: The files of what other cells have trained, by id, for the cells that continue from them.
        trained_with: What these other cells were trained with (`Record.trained_with`), by id.
        needed: The ids of those cells of the pack that other cells continue from: what they train is kept for these.
    """

    number: int
    cells: tuple[Cell, ...]
    halved: int = 0
    notes: tuple[str, ...] = ()
    record_times: Mapping[str, int] = field(default_factory=dict)
    checkpoints: Sequence[StoredCheckpoint] = ()
    predicted_bytes: float | None = None
    starts: Mapping[str, Mapping[Part, bytes]] = field(default_factory=dict)
    trained_with: Mapping[str, str] = field(default_factory=dict)
    needed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Failure:
    """Why a pack, or a cell, could not be trained.

    Attributes:
        status: The status that its cells get.
        reason: The error.
        environment: The versions and the device of the worker.
    """

    status: Literal["failed", "oom"]
    reason: str
    environment: Mapping[str, str]


class RunContext(Protocol):
    """What connects a pack in training to the run that it belongs to: the driver, or what passes it on from elsewhere.

    Attributes:
        stopper: Whether the run is to stop.
    """

    stopper: Stopper

    def check(self) -> None:
        """Check whether the run may go on, as far as that is known: it takes no time.

        Raises:
            BenchError: Exit code 3 if another process has taken the results folder over.
        """

    def save(self, manifest: CheckpointManifest, tensors: bytes) -> None:
        """Write a checkpoint."""

    def publish(self, outcomes: Sequence[Outcome]) -> None:
        """Write the records and adapters of cells that have ended."""


class Worker(Protocol):
    """What trains packs."""

    def prepare(self, cells: tuple[Cell, ...]) -> None:
        """Load what the cells of a pack have in common. An error here is not the fault of a cell: it ends the run."""

    def train(self, job: Job, context: RunContext) -> Iterator[list[Outcome]]:
        """Train a pack, and yield the outcomes of its cells as they end, in lists that are published one by one."""

    def is_memory(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out."""

    def forget(self) -> None:
        """Free the memory that a failed pack took."""

    def environment(self) -> dict[str, str]:
        """Return the versions and the device that records name."""


class Driver(RunContext, Protocol):
    """What an executor reports to."""

    view: View

    def renewed(self, job: Job) -> Job | None:
        """Return what is left of a job whose worker is gone, with its newest checkpoints; None if nothing is."""

    def finish(self, job: Job, failure: Failure | None) -> None:
        """Note that a job has ended; `failure` says why it could not be trained to its end."""


class Executor(Protocol):
    """Where packs run."""

    def start(self, setup: Setup, driver: Driver) -> None:
        """Begin a run.

        Raises:
            BenchError: Exit code 2 or 3 if it cannot run here.
        """

    @property
    def devices(self) -> int:
        """How many packs train at once."""

    @property
    def slots(self) -> int:
        """How many jobs it takes at a time: those that train, and those that wait for the first device that is free."""

    def submit(self, job: Job) -> None:
        """Take a job; only called while it has fewer than `slots`."""

    def advance(self) -> None:
        """Work until something has happened, and report it to the driver. Only called while it has a job."""

    def close(self) -> None:
        """End all workers, also in the middle of a job."""
