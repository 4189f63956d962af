"""What a run is given, and the interfaces of what trains and of what shows progress. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from lora_bench.callbacks import Callback
from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.run.outcome import Outcome
from lora_bench.run.signals import Stopper


class View(Callback):
    """What shows a run's progress: a callback of each pack that trains, which also follows the run as a whole.

    Every method does nothing unless it is overridden.
    """

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""

    def done(self, records: Sequence[Record]) -> None:
        """Cells have ended, and their records are written."""

    def warn(self, text: str) -> None:
        """There is something that the user should know."""


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
class RunContext:
    """What a pack needs to know of the run that it belongs to, to save checkpoints and to stop.

    Attributes:
        results: The results folder.
        token: The token of the process's lease, different for each process.
        record_times: When the records of cells were written, in nanoseconds, by id.
        stopper: Whether a signal has asked to stop.
        check_lease: Raises LeaseLostError where the process has lost its lease.
        warn: Warns the user.
    """

    results: Path
    token: str
    record_times: Mapping[str, int]
    stopper: Stopper
    check_lease: Callable[[], None]
    warn: Callable[[str], None]


class Worker(Protocol):
    """What trains packs."""

    def prepare(self, cells: tuple[Cell, ...]) -> None:
        """Load what the cells of a pack have in common. An error here is not the fault of a cell: it ends the run."""

    def train(self, cells: tuple[Cell, ...], halved: int, context: RunContext) -> Iterator[list[Outcome]]:
        """Train a pack, and yield the outcomes of its cells as they end, in lists that are published one by one.

        Args:
            cells: The cells of the pack.
            halved: How often the pack was cut in two because memory ran out.
            context: Where checkpoints are saved, and what stops the training.
        """

    def is_memory(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out."""

    def forget(self) -> None:
        """Free the memory that a failed pack took."""

    def environment(self, cell: Cell) -> dict[str, str]:
        """Return the code, versions and device that a record of the cell names."""


@dataclass(frozen=True)
class Failure:
    """Why a pack, or a cell, could not be trained."""

    status: Literal["failed", "oom"]
    reason: str
