"""The tables that a run, a plan and the lists print. A narrow terminal drops columns, a pipe gets all of them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.errors import NOTHING, BenchError
from lora_bench.records.schema import Record
from lora_bench.run.leases import Holder
from lora_bench.run.plan import Plan
from lora_bench.run.status import STATES, CellStatus
from lora_bench.text import clean, counted

ROWS, NAMED = 40, 4
WIDE = 10_000  # columns of a pipe or a file
# what a narrow terminal does without, the least important first
RESULTS_DROPPED = ("seconds", "targets", "lr", "adapter params", "seeds")
PLAN_DROPPED = ("pack", "GiB", "why", "seed", "time")
STANDINGS_DROPPED = ("which", "runs")
METHODS_DROPPED = ("source", "lr", "parameters")
TASKS_DROPPED = ("labels", "train", "validation", "metrics")
RUNS_DROPPED = ("as fp16", "bytes", "targets", "lr", "adapter params", "status", "seed")


def settings_of(cell: Cell) -> str:
    """A cell in few words, without its seed."""
    size = "" if cell.rank is None else f" r={cell.rank}"
    inner = "".join(f" {name}={value}" for name, value in (("a", cell.a), ("b", cell.b)) if value is not None)
    return clean(f"{cell.method}{size}{inner}")


def opening(plan: Plan, where: str, device: str) -> Text:
    """What will run, in a line or two."""
    cells, todo = len(plan.grid.cells), len(plan.todo)
    names = ", ".join(dict.fromkeys(tasks.get(cell.task).title for cell in plan.grid.cells))
    ways = ", ".join(dict.fromkeys(cell.method for cell in plan.grid.cells))
    there = f", {cells - todo} there already" if cells > todo else ""
    return Text(
        f"{plan.grid.name}: {counted(cells, 'cell')}{there}; "
        f"{todo} to train in {counted(len(plan.packs), 'pack')} on {device}\n"
        f"  tasks {names}; methods {ways}\n  {cost(plan)}results in {clean(where)}{_hint(plan, device)}"
    )


def _hint(plan: Plan, device: str) -> str:
    """That a GPU has a faster precision."""
    slow = not device.startswith("cpu") and any(cell.precision == "float32" for cell in plan.todo)
    return "\n  in float32; a GPU is many times as fast with --precision bf16" if slow else ""


def cost(plan: Plan) -> str:
    """The time of all packs and the memory of the largest, where they can be predicted; empty if neither can."""
    known = [seconds for seconds, _ in plan.costs if seconds is not None]
    sizes = [size for _, size in plan.costs if size is not None]
    if not known:
        return ""
    unknown = len(plan.costs) - len(known)
    missing = f" and {counted(unknown, 'pack')} of unknown length" if unknown else ""
    memory = f", {max(sizes) / 2**30:.1f} GiB at most" if sizes else ""
    return f"about {duration(plan.estimate.start_seconds + sum(known))}{missing}{memory}; "


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if hours < 2:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 2 else f"{days} d {hours % 24} h"


def closing(records: Sequence[Record]) -> Table:
    """The selection's results, means over seeds; the first rows if there are many."""
    slots: dict[Cell, list[Record]] = {}
    for record in records:
        slots.setdefault(record.cell.model_copy(update={"seed": 0}), []).append(record)
    table = Table(title="Results", caption=_caption(len(slots)), title_justify="left", caption_justify="left")
    for name in ("task", "method", "targets"):
        table.add_column(name, overflow="fold")
    for name in ("lr", "adapter params", "score", "seeds", "seconds"):
        table.add_column(name, justify="right")
    for cell, members in list(slots.items())[:ROWS]:
        what = (tasks.get(cell.task).title, settings_of(cell), clean(cell.targets or "–"), f"{cell.lr:g}")
        table.add_row(*what, *_numbers(members))
    return table


def ended(records: Sequence[Record], results: Path) -> str:
    """How a run ended whose output nobody could read, in a line."""
    counts = Counter(record.status for record in records)
    parts = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none has ended"
    return clean(f"The run has ended: {counted(len(records), 'cell')} ({parts}), in {results / 'metrics.csv'}")


def elsewhere(held: Mapping[str, Holder]) -> Text:
    """Who trains the cells that this run has left to others; empty if there are none."""
    counts = Counter(str(holder) for holder in held.values())
    lines = [f"{counted(count, 'cell is', 'cells are')} with {who}\n" for who, count in counts.items()]
    return Text("".join(lines))


def _caption(rows: int) -> str:
    more = f"{counted(rows - ROWS, 'more row')}; " if rows > ROWS else ""
    return f"{more}score ×100, mean ± std over seeds; seconds: a cell's share of its pack"


def _numbers(members: Sequence[Record]) -> tuple[str, str, str, str]:
    scores = [r.score * 100 for r in members if r.status == "done" and r.score is not None]
    spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
    bad = len([record for record in members if record.status != "done"])
    params = next((f"{r.counts.adapter_params:,}" for r in members if r.counts), "–")
    seconds = [r.timing.seconds for r in members if r.timing]
    return (
        params,
        f"{fmean(scores):.1f}{spread}" if scores else "–",
        f"{len(scores)}" + (f" ({bad} failed)" if bad else ""),
        f"{fmean(seconds):.1f}" if seconds else "–",
    )


def planned(plan: Plan) -> Table:
    """The packs that would train, and what is there already."""
    table = Table(title="Plan", title_justify="left", caption=_counts(plan), caption_justify="left")
    for name in ("pack", "task", "seed", "cells", "time", "GiB", "why", "what"):
        table.add_column(name, justify="left" if name in ("task", "why", "what") else "right", overflow="fold")
    for number, (pack, (seconds, size)) in enumerate(zip(plan.packs[:ROWS], plan.costs, strict=False), 1):
        what = ", ".join(f"{count} {name}" for name, count in Counter(cell.method for cell in pack).items())
        why = ", ".join(dict.fromkeys(plan.reasons[cell.id] for cell in pack))
        title = tasks.get(pack[0].task).title
        time = "–" if seconds is None else duration(seconds)
        memory = "–" if size is None else f"{size / 2**30:.1f}"
        table.add_row(str(number), title, str(pack[0].seed), str(len(pack)), time, memory, why, what)
    return table


def _counts(plan: Plan) -> str:
    there = Counter(record.status for record in plan.recorded)
    parts = [f"{len(plan.todo)} to train"] + [f"{count} {status}" for status, count in sorted(there.items())]
    more = f"; {counted(len(plan.packs) - ROWS, 'more pack')}" if len(plan.packs) > ROWS else ""
    return ", ".join(parts) + more


def standings_table(plan: Plan) -> Table:
    """Where the cells stand and why they run or not: how many for each reason, and which if they are few."""
    groups: dict[CellStatus, list[str]] = {}
    for cell in plan.grid.cells:
        groups.setdefault(plan.statuses[cell.id], []).append(cell.id)
    caption = counted(len(groups) - ROWS, "more row") if len(groups) > ROWS else None
    table = Table(title="Cells", title_justify="left", caption=caption, caption_justify="left")
    for name in ("state", "cells", "runs", "why", "which"):
        table.add_column(name, justify="right" if name == "cells" else "left", overflow="fold")
    order = sorted(groups, key=lambda status: (not status.will_run, STATES.index(status.state), status.reason))
    for status in order[:ROWS]:
        ids = groups[status]
        which = " ".join(ids[:NAMED]) + (" …" if len(ids) > NAMED else "")
        runs = "yes" if status.will_run else "no"
        table.add_row(status.state, str(len(ids)), runs, Text(clean(status.reason)), which)
    return table


def methods_table() -> Table:
    """The methods: what they are, what they take, their default learning rate."""
    table = Table(title="Methods", title_justify="left")
    for name in ("method", "what", "source", "parameters"):
        table.add_column(name, overflow="fold")
    table.add_column("lr", justify="right")
    for name, reason in methods.BROKEN.items():
        table.add_row(Text(name), Text(f"cannot be loaded: {reason}"), "–", "–", "–")
    for recipe in methods.RECIPES.values():
        parameters = ", ".join(sorted(recipe.parameters)) or "–"
        table.add_row(recipe.name, recipe.title, recipe.source, parameters, f"{recipe.default_lr:g}")
    return table


def tasks_table() -> Table:
    """The tasks: rows, labels and metrics."""
    table = Table(title="Tasks", title_justify="left")
    for name in ("task", "title", "train", "validation", "labels", "metrics"):
        table.add_column(name, justify="right" if name in ("train", "validation") else "left", overflow="fold")
    for name, reason in tasks.BROKEN.items():
        table.add_row(Text(name), Text(f"cannot be loaded: {reason}"), "–", "–", "–", "–")
    for task in tasks.TASKS.values():
        labels = ", ".join(task.labels) or "{:g} to {:g}".format(*task.bounds)
        texts = (task.title, _count(task.train_rows), _count(task.eval_rows), labels, ", ".join(task.metric_names))
        table.add_row(task.name, *map(clean, texts))
    return table


def runs_table(records: Sequence[Record], results: Path) -> Table:
    """The records of a results folder.

    Raises:
        BenchError: exit code 4 if there are none.
    """
    if not records:
        hint = f"Fill it: lora-bench run --preset smoke --results {shlex.quote(str(results))}"
        raise BenchError(f"There are no records under '{results}'.", hint, NOTHING)
    table = Table(title=f"Runs in {clean(str(results))}", title_justify="left")
    names = ("id", "task", "method", "targets", "seed", "lr", "status", "score", "adapter params", "bytes", "as fp16")
    for name in names:
        left = name in ("id", "task", "method", "status")
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=name == "id")
    for record in records:
        counts = record.counts
        sizes = [counts.adapter_params, counts.adapter_bytes, counts.adapter_bytes_fp16] if counts else [None] * 3
        score = "–" if record.score is None else f"{record.score * 100:.1f}"
        cell = record.cell
        targets, lr = clean(cell.targets or "–"), f"{cell.lr:g}"
        place = (record.id, clean(cell.task), settings_of(cell), targets, str(cell.seed), lr)
        table.add_row(*place, record.status, score, *map(_count, sizes))
    return table


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def show(console: Console, table: Table, droppable: Sequence[str] = ()) -> None:
    """Print a table. `droppable`: headers of columns that a narrow terminal does without, the first one first."""
    if console.is_terminal:
        console.print(_fitted(console, table, droppable))
    else:
        Console(file=console.file, width=WIDE, highlight=False, markup=False).print(table, soft_wrap=True)


def _fitted(console: Console, table: Table, droppable: Sequence[str]) -> Table:
    for header in droppable:
        if Measurement.get(console, console.options.update(max_width=WIDE), table).maximum <= console.width:
            break
        table = _without(table, header)
    return table


def _without(table: Table, header: str) -> Table:
    kept = [column for column in table.columns if column.header != header]
    smaller = copy(table)
    smaller.columns = [replace(column, _index=index) for index, column in enumerate(kept)]
    return smaller
