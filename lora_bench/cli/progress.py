"""The progress of a run: two bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.run.plan import Plan
from lora_bench.text import clean, counted


class ProgressView:
    """Displays a run: on a terminal a bar for the grid and one for the pack, elsewhere a line for each epoch."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self.console = console
        self.total, self.ended, self.packs_begun = len(plan.todo), 0, 0
        self.bars = console.is_terminal and not console.no_color
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self.bars,
        )
        self.grid_bar: TaskID = self.progress.add_task("cells", total=self.total)
        self.pack_bar: TaskID = self.progress.add_task("steps", total=None)
        self.steps, self.epochs, self.label, self.began = 1, 1, "", time.perf_counter()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stage(self, text: str) -> None:
        """Show that a longer piece of work begins."""
        self.progress.update(self.pack_bar, description=clean(text))

    def pack(self, cells: Sequence[Cell], steps: int, epochs: int) -> None:
        """Show that a pack begins."""
        self.packs_begun += 1
        self.steps, self.epochs, self.began = steps, epochs, time.perf_counter()
        title, size = tasks.get(cells[0].task).title, counted(len(cells), "cell")
        self.label = f"pack {self.packs_begun}: {title}, {size}, seed {cells[0].seed}"
        self.progress.reset(self.pack_bar, total=steps * epochs, description=self.label)

    def step(self, epoch: int, step: int) -> None:
        """Show that a step was issued."""
        self.progress.update(self.pack_bar, completed=(epoch - 1) * self.steps + step)

    def epoch(self, epoch: int, scores: Sequence[float | None]) -> None:
        """Show the best score after an epoch, and the time that is left."""
        values = [score for score in scores if score is not None and not math.isnan(score)]
        best = f"best {max(values):.3f}" if values else "no score"
        elapsed = time.perf_counter() - self.began
        left = elapsed / epoch * (self.epochs - epoch)
        self.progress.update(self.pack_bar, description=f"{self.label}, epoch {epoch}/{self.epochs}, {best}")
        if not self.bars:
            self._line(f"{self.label}, epoch {epoch}/{self.epochs}, {best}, {elapsed:.0f} s, about {left:.0f} s to go")

    def done(self, records: Sequence[Record]) -> None:
        """Show that cells have ended."""
        self.ended += len(records)
        self.progress.update(self.grid_bar, completed=self.ended)
        if not self.bars:
            verb = "has" if self.total == 1 else "have"
            self._line(f"{self.ended} of {counted(self.total, 'cell')} {verb} ended")

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.print(Text(clean(text), "yellow"), soft_wrap=True)

    def _line(self, text: str) -> None:
        self.console.print(Text(text), highlight=False, soft_wrap=True)
