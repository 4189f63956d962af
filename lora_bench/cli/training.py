"""Trains a grid and prints how it went: what `run` and `verdict` have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from lora_bench.cli import caches, output
from lora_bench.cli.options import ExecutionOptions
from lora_bench.errors import DONE, SOME_FAILED
from lora_bench.text import clean

if TYPE_CHECKING:
    from lora_bench.compare import Comparisons
    from lora_bench.grid.cells import Grid
    from lora_bench.run.interfaces import Executor


@dataclass(frozen=True)
class Training:
    """What to train and how.

    Attributes:
        grid: The cells.
        folder: The results folder.
        compare: What a report of the results compares.
        pack_size: The largest number of cells in a pack; None for as many as fill the device.
        retry: The states of recorded cells that are to be trained again.
        execution: How cells are trained.
    """

    grid: Grid
    folder: Path
    compare: Comparisons
    pack_size: int | None
    retry: tuple[str, ...]
    execution: ExecutionOptions

    def run(self, console: Console) -> int:
        """Train the cells that have no record yet, and return the exit code."""
        from lora_bench.cli import progress, tables
        from lora_bench.grid.config import keep_comparisons
        from lora_bench.records import store
        from lora_bench.run import interfaces, runner, signals
        from lora_bench.run import plan as plans

        folder, execution = self.folder, self.execution
        device, name, executor = self._device()
        plan = plans.make(self.grid, folder, self.pack_size, self.retry, name, caches.calibration_file())
        with output.optional(f"the run continues without it; its results are in {folder}."):
            summary = tables.plan_summary(plan, str(folder), device, execution.gpus, execution.save)
            console.print(summary, soft_wrap=True)
            warn_broken(plan.broken)
            store.prepare(folder)
            keep_comparisons(folder, self.compare)
            options = interfaces.Options(
                folder, device, execution.offline, execution.save, caches.cache_folder(), execution.debug
            )
            with progress.ProgressView(console, plan, execution.debug) as view:
                grid_run = runner.Runner(plan, options, view, signals.current(), executor)
                cell_records = grid_run.run()
            results = [record for record in cell_records if not record.is_search]
            tables.print_table(console, tables.results_table(results), tables.RESULTS_DROPPED)
            console.print(Text(clean(f"{folder / 'metrics.csv'}")), soft_wrap=True)
            unsuccessful = [record for record in cell_records if record.status != "done"]
            for record in unsuccessful:
                line = f"{record.status}: {record.id} {record.cell.task} {record.reason}"
                console.print(Text(clean(line)), soft_wrap=True)
            untrained = tables.untrained_lines(grid_run.plan)
            for line in untrained:
                console.print(Text(line), soft_wrap=True)
        if output.failed():
            error_console().print(Text(tables.run_summary(cell_records, folder)), soft_wrap=True)
        return SOME_FAILED if unsuccessful or untrained or plan.broken or grid_run.store.broken else DONE

    def _device(self) -> tuple[str, str, Executor | None]:
        """Return the device, its name as in records, and what runs packs where that is not this process."""
        if self.execution.check_engine():
            from lora_bench.run.cluster import RayExecutor

            executor = RayExecutor(self.execution.address, self.execution.gpus, self.execution.device)
            name = executor.device_name()
            return name, name, executor
        from lora_bench.run import environment
        from lora_bench.run.device import choose_device

        device = choose_device(self.execution.device)
        return device, environment.device_name(device), None


def error_console() -> Console:
    """Return the console of standard error."""
    return Console(stderr=True, highlight=False, markup=False)


def warn_broken(broken: tuple[tuple[Path, str], ...]) -> None:
    """Name the files that are not sound records."""
    for path, reason in broken:
        error_console().print(Text(clean(f"Left out: {path} ({reason})"), "yellow"), soft_wrap=True)
