"""The progress of a run: two bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from lora_bench import BEGAN, tasks
from lora_bench.callbacks import EpochMetrics, PackEnd, PackStart
from lora_bench.records.schema import Record
from lora_bench.run.interfaces import StageProgress, View
from lora_bench.run.plan import Plan
from lora_bench.text import clean, counted

SHOWN_STEPS = (1, 2, 10)  # of a process's first pack, whose seconds `--debug` prints: kernels and graphs are made then
MAX_STAGES = 6  # in a line


class PackProgress(View):
    """Displays the packs of one device: on a terminal as a bar, elsewhere as a line for each epoch.

    Args:
        run: What displays the run.
        name: What the device is called; empty if there is only one.
    """

    def __init__(self, run: ProgressView, name: str) -> None:
        self.run, self.suffix = run, f" ({clean(name)})" if name else ""
        self.bar: TaskID = run.progress.add_task("steps", total=None)
        self.number = 0
        self.label, self.began, self.start = "", time.perf_counter(), PackStart((), 1, 1, 0)
        self.is_new_pack = True

    def stage(self, text: str) -> None:
        """Show that a longer piece of work begins."""
        self.run.progress.update(self.bar, description=clean(text) + self.suffix)
        self.run.phase(text + self.suffix)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.run.warn(text)

    def on_pack_start(self, start: PackStart) -> None:
        """Show that a pack begins to train, or continues."""
        self.run.packs_begun += self.is_new_pack
        if self.is_new_pack:
            self.number = self.run.packs_begun
        self.is_new_pack = True
        self.start, self.began = start, time.perf_counter()
        title, size = tasks.of(start.cells[0]).title, counted(len(start.cells), "cell")
        self.label = f"pack {self.number}: {title}, {size}, seed {start.cells[0].seed}{self.suffix}"
        total = start.steps_per_epoch * start.epochs
        self.run.progress.reset(self.bar, total=total, completed=start.steps_taken, description=self.label)

    def on_step_issued(self, epoch: int, step: int) -> None:
        """Show that a step was issued."""
        if self.number == 1 and epoch == 1 and step in SHOWN_STEPS:
            self.run.phase(f"step {step} issued{self.suffix}")
        self.run.progress.update(self.bar, completed=(epoch - 1) * self.start.steps_per_epoch + step)

    def on_epoch_evaluated(self, metrics: EpochMetrics) -> None:
        """Show the best score after an epoch, and the time that is left."""
        scores = [cell[metrics.main_metric] for cell in metrics.metrics if cell is not None]
        values = [score for score in scores if not math.isnan(score)]
        best = f"best {max(values):.3f}" if values else "no score"
        text = f"{self.label}, epoch {metrics.epoch}/{self.start.epochs}, {best}"
        self.run.progress.update(self.bar, description=text)
        if not self.run.bars:
            elapsed = time.perf_counter() - self.began
            steps = self.start.steps_per_epoch * metrics.epoch
            taken = steps - self.start.steps_taken  # 0 if the pack continues with an evaluation: nothing to go by
            left = elapsed / max(1, taken) * (self.start.steps_per_epoch * self.start.epochs - steps)
            to_go = f", about {left:.0f} s to go" if taken else ""
            self.run.line(f"{text}, {elapsed:.0f} s{to_go}")

    def on_pack_end(self, end: PackEnd) -> None:
        """Note the end of a pack; if it is not finished, the next one to start is what remains of it."""
        self.is_new_pack = end.finished


class ProgressView(PackProgress):
    """Displays a run: on a terminal a bar for the grid and one for each device, elsewhere lines.

    Args:
        console: Where to print.
        plan: The plan of the run.
        debug: Whether to print when longer pieces of work begin.
    """

    def __init__(self, console: Console, plan: Plan, debug: bool = False) -> None:
        self.console, self.debug = console, debug
        self.total, self.ended, self.packs_begun = len(plan.todo) + sum(map(len, plan.later)), 0, 0
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
        super().__init__(self, "")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def on_device(self, name: str) -> View:
        """Return what displays the packs of one of several devices."""
        self.progress.update(self.bar, visible=False)  # of this process, which trains nothing
        return PackProgress(self, name)

    def done(self, records: Sequence[Record]) -> None:
        """Show that cells have ended, and why some have failed."""
        reasons = Counter(
            (record.cell.method, tasks.of(record.cell).title, record.status, record.reason or "no reason is known")
            for record in records
            if record.is_failure
        )
        for (method, task, status, reason), count in reasons.items():
            self.warn(f"{counted(count, 'cell')} of {method} on {task}: {status} ({reason}).")
        self.ended += len(records)
        self.progress.update(self.grid_bar, completed=self.ended)
        if not self.bars:
            verb = "has" if self.total == 1 else "have"
            self.line(f"{self.ended} of {counted(self.total, 'cell')} {verb} ended")

    def staged(self, stages: Sequence[StageProgress]) -> None:
        """Show what has ended and what waits, for the stages that have not ended."""
        ready, waiting = sum(stage.ready for stage in stages), sum(stage.waiting for stage in stages)
        self.total = self.ended + ready + waiting
        description = f"cells ({waiting} waiting)" if waiting else "cells"
        self.progress.update(self.grid_bar, total=self.total, description=description)
        if not self.bars and waiting:
            parts = [f"{stage.title} {stage.ended}/{stage.cells}" for stage in stages if stage.ready or stage.waiting]
            more = f" and {len(parts) - MAX_STAGES} more" if len(parts) > MAX_STAGES else ""
            self.line(f"{waiting} waiting; ended: {', '.join(parts[:MAX_STAGES])}{more}")

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.print(Text(clean(text), "yellow"), soft_wrap=True)

    def phase(self, text: str) -> None:
        """Print, where it is asked for, how long after its start the program begins a longer piece of work."""
        if self.debug:
            self.line(clean(f"{time.perf_counter() - BEGAN:6.1f} s: {text}"))

    def line(self, text: str) -> None:
        """Print a line."""
        self.console.print(Text(text), highlight=False, soft_wrap=True)
