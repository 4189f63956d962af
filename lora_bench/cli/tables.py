"""The tables and lines that commands print. A narrow terminal drops columns; a pipe gets all of them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lora_bench import methods, tasks
from lora_bench.errors import NOTHING, BenchError
from lora_bench.run.plan import stage_title
from lora_bench.run.totals import Totals, totals
from lora_bench.text import clean, counted

if TYPE_CHECKING:
    from lora_bench.cell import Cell
    from lora_bench.records.schema import Record
    from lora_bench.run.plan import Plan
    from lora_bench.run.status import CellStatus

MAX_ROWS = 40  # of results, packs or groups of cells; the caption counts the rest
MAX_IDS = 4  # in a row of the status table
PIPE_WIDTH = 10_000  # characters of a line in a pipe or a file: wide enough that nothing is cut or folded

# The columns that a narrow terminal goes without, the least important first.
RESULTS_DROPPED = ("seconds", "targets", "lr", "adapter params", "seeds")
PACKS_DROPPED = ("seeds", "GiB", "why", "time")
STATUS_DROPPED = ("which", "runs")
STAGES_DROPPED = ("packs", "ready", "blocked", "ended")
METHODS_DROPPED = ("source", "parameters", "lr")
TASKS_DROPPED = ("labels", "train", "validation", "metrics")
RUNS_DROPPED = ("as fp16", "bytes", "targets", "lr", "adapter params", "status", "seed")


def method_text(cell: Cell) -> str:
    """Return a cell's method with its rank, a and b, and whether it trains the model's own head."""
    rank = "" if cell.rank is None else f" r={cell.rank}"
    inner = "".join(f" {name}={value}" for name, value in (("a", cell.a), ("b", cell.b)) if value is not None)
    head = "" if cell.head is None else " (own head)"
    return clean(f"{cell.method}{rank}{inner}{head}")


def _record_text(record: Record) -> str:
    """Return a cell's method as `method_text`, and the task that it started from, if it did."""
    start = record.protocol.start
    return method_text(record.cell) + (clean(f" from {start}") if record.cell.start else "")


def plan_summary(plan: Plan, results: str, gpus: int | None = None, saves: bool = True) -> Text:
    """Return what will run, what it is predicted to cost and where the results go, in a few lines.

    Args:
        plan: The plan.
        results: The results folder.
        gpus: The number of GPUs that the user asks for; None for one device.
        saves: Whether the trained adapters are saved.
    """
    total = totals(plan, saves)
    cells, blocked = sum(stage.cells for stage in plan.stages), sum(stage.blocked for stage in plan.stages)
    there = cells - total.cells - blocked
    recorded = f", {there:,} there already" if there else ""
    device = plan.device_name.partition(",")[0]  # of a processor the kind alone
    to_train = f"{total.cells:,} to train in {counted(total.packs, 'pack')} on {device}"
    lines = [f"{plan.grid.name}: {counted(cells, 'cell')}{recorded}; {to_train}{cost_text(total, gpus)}"]
    if plan.later or blocked:
        later = sum(map(len, plan.later))
        waiting = f"{len(plan.todo):,} can train now, {later:,} when cells that they need have ended"
        lines.append(waiting + (f"; {blocked:,} blocked" if blocked else ""))
    task_titles = ", ".join(dict.fromkeys(tasks.of(entry.draft.cell).title for entry in plan.grid.entries))
    method_names = ", ".join(dict.fromkeys(entry.draft.cell.method for entry in plan.grid.entries))
    lines += [f"tasks {task_titles}; methods {method_names}", f"results in {results}"]
    lines += [*_precision_hint(plan, device), *total.guesses]
    return Text("\n  ".join(map(clean, lines)))


def _precision_hint(plan: Plan, device: str) -> list[str]:
    is_slow = not device.startswith("cpu") and any(cell.precision == "float32" for cell in plan.todo)
    return ["in float32; a GPU is many times as fast with --precision bf16"] if is_slow else []


def cost_text(total: Totals, gpus: int | None = None) -> str:
    """Return the predicted time of all packs, the memory of the largest and the disk space of all, as far as known.

    Args:
        total: What all packs take.
        gpus: The number of GPUs whose time is given as well; None for that of one device alone.
    """
    if not total.packs:
        return ""
    parts = []
    alone = total.simulated()
    if alone is not None:
        missing = f" and {counted(total.unknown, 'pack')} of unknown length" if total.unknown else ""
        together = None if gpus is None else total.simulated(gpus)
        shared = ""
        if gpus and together is not None:
            shared = f" ({_hours_text(together.seconds)} on {counted(gpus, 'GPU')}, simulated)"
        parts.append(f"about {_hours_text(alone.seconds)}{missing}{shared}")
    if total.peak is not None:
        parts.append(f"{total.peak / 2**30:.1f} GiB of memory at most")
    if total.disk is not None:
        parts.append(f"{size_text(total.disk)} on disk")
    return f": {', '.join(parts)}" if parts else ""


def _hours_text(seconds: float) -> str:
    """Return a duration, in hours if it takes many."""
    return duration_text(seconds) if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def size_text(size: float) -> str:
    """Return a number of bytes in the unit that fits."""
    units = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
    factor, unit = next((pair for pair in units if size >= pair[0]), units[-1])
    return f"{size / factor:.3g} {unit}" if size < 1000 * factor else f"{size / factor:.0f} {unit}"


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if hours < 2:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 2 else f"{days} d {hours % 24} h"


def _new_table(title: str, columns: Iterable[str], right: Iterable[str] = (), caption: str | None = None) -> Table:
    """Return an empty table; `right` names the columns of numbers. Long words are folded, never cut."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name == "id")
    return table


def results_table(records: Sequence[Record]) -> Table:
    """Return the results of a run as means over seeds."""
    by_settings: dict[tuple[Cell, str | None], list[Record]] = {}
    for record in records:
        by_settings.setdefault(record.settings, []).append(record)
    more = f"{counted(len(by_settings) - MAX_ROWS, 'more row')}; " if len(by_settings) > MAX_ROWS else ""
    caption = f"{more}score ×100, mean ± std over seeds; seconds: a cell's share of its pack"
    numbers = ("lr", "adapter params", "score", "seeds", "seconds")
    table = _new_table("Results", ("task", "method", "targets", *numbers), right=numbers, caption=caption)
    for (cell, _), members in list(by_settings.items())[:MAX_ROWS]:
        settings = (tasks.of(cell).title, _record_text(members[0]), clean(cell.targets or "–"), f"{cell.lr:g}")
        table.add_row(*settings, *_means(members))
    return table


def _means(members: Sequence[Record]) -> tuple[str, str, str, str]:
    """Return adapter parameters, score, number of seeds and seconds of the records of the same settings."""
    scores = [r.score * 100 for r in members if r.status == "done" and r.score is not None]
    spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
    failures = sum(record.status != "done" for record in members)
    params = next((f"{r.counts.adapter_params:,}" for r in members if r.counts), "–")
    seconds = [r.timing.seconds for r in members if r.timing]
    return (
        params,
        f"{fmean(scores):.1f}{spread}" if scores else "–",
        f"{len(scores)}" + (f" ({failures} failed)" if failures else ""),
        f"{fmean(seconds):.1f}" if seconds else "–",
    )


def run_summary(records: Sequence[Record], results: Path) -> str:
    """Return, in one line, how a run ended; printed on standard error when standard output was lost."""
    counts = Counter(record.status for record in records)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none has ended"
    return clean(f"The run has ended: {counted(len(records), 'cell')} ({statuses}), in {results / 'metrics.csv'}")


def packs_table(plan: Plan) -> Table:
    """Return the packs that would train, those that are alike in one row, and how many cells are recorded already."""
    numbers = ("packs", "cells", "time", "GiB")
    columns = ("packs", "task", "seeds", "cells", "time", "GiB", "why", "what")
    rows: dict[tuple[str, ...], list[tuple[Sequence[Cell], float | None, float | None]]] = {}
    for pack, (seconds, size) in zip(plan.packs, plan.costs, strict=True):
        contents = ", ".join(f"{count} {name}" for name, count in Counter(cell.method for cell in pack).items())
        reasons = ", ".join(dict.fromkeys(plan.statuses[cell.id].reason for cell in pack))
        row = tasks.of(pack[0]).title, str(len(pack)), clean(reasons), clean(contents)
        rows.setdefault(row, []).append((pack, seconds, size))
    table = _new_table("Plan", columns, right=numbers, caption=_counts_text(plan, len(rows)))
    for (title, cells, reasons, contents), members in list(rows.items())[:MAX_ROWS]:
        seeds = sorted({pack[0].seed for pack, _, _ in members})
        times = [seconds for _, seconds, _ in members if seconds is not None]
        sizes = [size for _, _, size in members if size is not None]
        time = duration_text(fmean(times)) if times else "–"
        memory = f"{max(sizes) / 2**30:.1f}" if sizes else "–"
        table.add_row(str(len(members)), title, _numbers_text(seeds), cells, time, memory, reasons, contents)
    return table


def _numbers_text(numbers: Sequence[int]) -> str:
    """Return some numbers in ascending order: `0 to 4` where they follow one another."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:MAX_IDS])) + (" …" if len(numbers) > MAX_IDS else "")


def stages_table(plan: Plan) -> Table:
    """Return the stages of a grid in which cells wait for others: their cells, their cost, and what waits for what."""
    numbers = ("cells", "ended", "ready", "waiting", "blocked", "packs", "time")
    caption = "a search whose best rate is the lowest or the highest adds cells, at most twice"
    has_search = any(entry.role == "trial" for entry in plan.grid.entries)
    columns = ("stage", *numbers, "waits for")
    table = _new_table("Stages", columns, right=numbers, caption=caption if has_search else None)
    for stage in plan.stages:
        costs = plan.stage_costs.get(stage.title, [])
        seconds = [seconds for seconds, _ in costs if seconds is not None]
        time = duration_text(sum(seconds)) if seconds and len(seconds) == len(costs) else "–"
        counts = (stage.cells, stage.ended, stage.ready, stage.waiting, stage.blocked, len(costs))
        table.add_row(clean(stage.title), *map(str, counts), time, clean(", ".join(stage.needs)) or "–")
    return table


def untrained_lines(plan: Plan) -> list[str]:
    """Return which cells could not train after a run, since others have failed or not ended; a line for each reason."""
    counts = Counter(
        (entry.state, stage_title(entry.stage), entry.reason)
        for entry in plan.grid.entries
        if entry.state != "ready" and not (entry.cell is not None and entry.cell.id in plan.ended)
    )
    return [
        clean(f"{state}: {counted(count, 'cell')} of {title} ({reason})")
        for (state, title, reason), count in counts.items()
    ]


def _counts_text(plan: Plan, rows: int) -> str:
    recorded = Counter(record.status for record in plan.recorded)
    later = sum(map(len, plan.later))
    counts = [f"{len(plan.todo)} to train", *([f"{later} later"] if later else [])] + [
        f"{count} {status}" for status, count in sorted(recorded.items())
    ]
    more = f"; {counted(rows - MAX_ROWS, 'more row')}" if rows > MAX_ROWS else ""
    return ", ".join(counts) + more + "; cells, time (mean) and GiB (most) are of one pack"


def status_table(plan: Plan) -> Table:
    """Return the states of the cells and why they run or not: how many for each reason, and some of their ids."""
    from lora_bench.run.status import STATES

    groups: dict[CellStatus, list[str]] = {}
    for cell in plan.grid.cells:
        groups.setdefault(plan.statuses[cell.id], []).append(cell.id)
    caption = counted(len(groups) - MAX_ROWS, "more row") if len(groups) > MAX_ROWS else None
    table = _new_table("Cells", ("state", "cells", "runs", "why", "which"), right=("cells",), caption=caption)
    order = sorted(groups, key=lambda status: (not status.will_run, STATES.index(status.state), status.reason))
    for status in order[:MAX_ROWS]:
        ids = groups[status]
        which = " ".join(ids[:MAX_IDS]) + (" …" if len(ids) > MAX_IDS else "")
        runs = "yes" if status.will_run else "no"
        table.add_row(status.state, str(len(ids)), runs, Text(clean(status.reason)), which)
    return table


def methods_table() -> Table:
    """Return the methods by what they change, with their sources, parameters and default learning rates."""
    table = _new_table("Methods", ("method", "what", "source", "parameters", "lr"), right=("lr",))
    for name, reason in methods.BROKEN.items():
        table.add_row(Text(name), Text(f"cannot be loaded: {reason}"), "–", "–", "–")
    for kind, recipes in methods.by_kind().items():
        table.add_section()
        table.add_row(Text(kind, style="bold"))
        for recipe in recipes:
            parameters = ", ".join(sorted(recipe.parameters)) or "–"
            table.add_row(recipe.name, recipe.title, recipe.source, parameters, f"{recipe.default_lr:g}")
    return table


def tasks_table() -> Table:
    """Return the tasks with their rows, labels and metrics."""
    numbers = ("train", "validation")
    table = _new_table("Tasks", ("task", "title", *numbers, "labels", "metrics"), right=numbers)
    for name, reason in tasks.BROKEN.items():
        table.add_row(Text(name), Text(f"cannot be loaded: {reason}"), "–", "–", "–", "–")
    for task in tasks.TASKS.values():
        labels = ", ".join(task.labels) or "{:g} to {:g}".format(*task.bounds)
        rows = (_number_text(task.train_rows), _number_text(task.eval_rows))
        table.add_row(task.name, *map(clean, (task.title, *rows, labels, ", ".join(task.metric_names))))
    return table


def runs_table(records: Sequence[Record], results: Path) -> Table:
    """Return the records of a results folder.

    Raises:
        BenchError: Exit code 4 if there are none.
    """
    if not records:
        hint = f"Fill it: lora-bench run --preset smoke --results {shlex.quote(str(results))}"
        raise BenchError(f"There are no records under '{results}'.", hint, NOTHING)
    numbers = ("seed", "lr", "score", "adapter params", "bytes", "as fp16")
    columns = ("id", "task", "method", "targets", "seed", "lr", "status", *numbers[2:])
    table = _new_table(f"Runs in {clean(str(results))}", columns, right=numbers)
    for record in records:
        cell, counts = record.cell, record.counts
        sizes = [counts.adapter_params, counts.adapter_bytes, counts.adapter_bytes_fp16] if counts else [None] * 3
        score = "–" if record.score is None else f"{record.score * 100:.1f}"
        settings = (clean(cell.task), _record_text(record), clean(cell.targets or "–"), str(cell.seed), f"{cell.lr:g}")
        table.add_row(record.id, *settings, record.status, score, *map(_number_text, sizes))
    return table


def _number_text(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def print_table(console: Console, table: Table, droppable: Sequence[str] = ()) -> None:
    """Print a table.

    Args:
        console: Where to print; a pipe or a file gets all columns.
        table: The table.
        droppable: Headers of the columns that a narrow terminal goes without, the first to go first.
    """
    if console.is_terminal:
        console.print(_fitted(console, table, droppable))
    else:
        Console(file=console.file, width=PIPE_WIDTH, highlight=False, markup=False).print(table, soft_wrap=True)


def _fitted(console: Console, table: Table, droppable: Sequence[str]) -> Table:
    for header in droppable:
        if Measurement.get(console, console.options.update(max_width=PIPE_WIDTH), table).maximum <= console.width:
            break
        table = _without_column(table, header)
    return table


def _without_column(table: Table, header: str) -> Table:
    remaining = [column for column in table.columns if column.header != header]
    smaller = copy(table)
    smaller.columns = [replace(column, _index=index) for index, column in enumerate(remaining)]
    return smaller
