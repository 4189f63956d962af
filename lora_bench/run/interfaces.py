"""What a run is given, and what it asks of who trains and of who looks on. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from lora_bench.callbacks import Callback
from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.run.checkpoints import Place
from lora_bench.run.outcome import Outcome


class View(Callback):
    """What shows a run's progress: a callback of each pack that trains, which also follows the run as a whole.

    Every method does nothing unless it is overridden.
    """

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""

    def done(self, records: Sequence[Record]) -> None:
        """Cells have ended."""

    def warn(self, text: str) -> None:
        """Something the user should know."""


@dataclass(frozen=True)
class Options:
    """Where and how to run; nothing here changes a number."""

    results: Path
    device: str = "cpu"
    offline: bool = False
    save: bool = True
    cache: Path | None = None
    debug: bool = False


class Worker(Protocol):
    """What trains packs."""

    def prepare(self, cells: tuple[Cell, ...]) -> None:
        """Load what the cells of a pack have in common. An error here is of no cell: it ends the run."""

    def train(self, cells: tuple[Cell, ...], halved: int, place: Place) -> Iterator[list[Outcome]]:
        """What becomes of the cells, in parts that are published one by one."""

    def is_memory(self, error: BaseException) -> bool:
        """Whether memory ran out."""

    def forget(self) -> None:
        """Give back what a failed pack took."""

    def environment(self, cell: Cell) -> dict[str, str]:
        """What a record says of where it comes from."""


@dataclass(frozen=True)
class Failure:
    """Why a pack, or a cell, could not be trained."""

    status: Literal["failed", "oom"]
    reason: str
