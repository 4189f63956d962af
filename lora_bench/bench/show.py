"""A report as JSON, as Markdown, and as a table that 80 columns hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_bench import tasks
from lora_bench.bench.rows import Row
from lora_bench.bench.suite import OUT_OF_MEMORY, Report
from lora_bench.files import write_atomically

NONE = "–"
UNEVEN = 0.2
SHORT = ("variant", "mix", "cells", "rate", "×trainer", "×loop", "×proc.", "peak", "GiB")
LONG = (
    "task", "targets", "variant", "mix", "cells", "steps·cells/s", "spread", "× trainer", "× loop", "× processes",
    "tokens/s", "TFLOP/s", "of peak", "memory GiB", "set-up s",
)  # fmt: skip
LEGEND = (
    "rate: steps · cells a second, median of {repeats}; ×: over the peers, which train LoRA r=16 "
    "(full: the whole model; proc.: the best number of processes); peak: real tokens' FLOP as a part of "
    "{tflops:.4g} TFLOP/s, measured here"
)


def write(report: Report, folder: Path, name: str) -> list[Path]:
    """Write `<name>.json` and `<name>.md`; their paths."""
    made = {
        folder / f"{name}.json": json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n",
        folder / f"{name}.md": markdown(report),
    }
    for path, text in made.items():
        write_atomically(path, text.encode())
    return list(made)


def markdown(report: Report) -> str:
    """The report as a page: how it was measured, and every row."""
    about = report.environment
    lines = [
        "# Training throughput", "", *opening(report), "",
        f"Batch {about['batch_size']}, at most {about['max_length']} tokens, {about['precision']}. "
        f"{about['seconds']:g} timed seconds a measurement. {legend(report)}.",
        "", f"| {' | '.join(LONG)} |", "|" + " --- |" * 4 + " ---: |" * (len(LONG) - 4),
        *(f"| {' | '.join(_long(row))} |" for row in report.rows),
    ]  # fmt: skip
    for line in (*uneven(report), *complaints(report)):
        lines += ["", line]
    return "\n".join(lines) + "\n"


def opening(report: Report) -> list[str]:
    """Model, data, device and versions; random weights and missing peers if so."""
    about = report.environment
    weights = " (random weights: the directory has none)" if about["random_weights"] else ""
    versions = ", ".join(f"{name} {about[name]}" for name in ("lora_bench", "torch", "transformers", "peft"))
    return [f"{about['model']}{weights} on {about['device']}; {versions}.", *filter(None, [about["left_out"]])]


def legend(report: Report) -> str:
    """What the columns mean."""
    return LEGEND.format(repeats=report.environment["repeats"], tflops=report.peak["tflops"])


def complaints(report: Report) -> list[str]:
    """One line for each row that failed for another reason than memory."""
    bad = [row for row in report.rows if row.error not in (None, OUT_OF_MEMORY)]
    return [f"{row.task}, {row.targets}, {row.variant}, {row.mix}, {row.k} cells: {row.error}" for row in bad]


def uneven(report: Report) -> list[str]:
    """A line if repeats differ so much that the machine was busy with something else."""
    rows = [row for row in report.rows if (row.spread or 0) > UNEVEN]
    if not rows:
        return []
    return [f"The repeats of {len(rows)} of {len(report.rows)} rows differ by more than {UNEVEN:.0%}: a busy machine?"]


def tables(report: Report) -> Iterator[Table]:
    """A table for each task and target set."""
    for (task, targets), rows in groupby(report.rows, key=lambda row: (row.task, row.targets)):
        yield _table(f"{tasks.get(task).title}, {targets}", list(rows))


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print(Text("\n".join(opening(report))))
    for table in tables(report):
        console.print(table)
    console.print(Text("\n".join([legend(report), *uneven(report), *complaints(report)])))


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(SHORT):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(part, "bold" if row.variant == "packed" else "") for part in _short(row)))
    return table


def _short(row: Row) -> list[str]:
    return [row.variant, row.mix, _cells(row), _rate(row), *_ratios(row), _share(row), _gibibytes(row)]


def _long(row: Row) -> list[str]:
    return [
        row.task, row.targets, row.variant, row.mix, _cells(row), _rate(row), _percent(row.spread), *_ratios(row),
        _number(row.tokens_per_second, ",.0f"), _number(row.tflops, ".3g"), _share(row), _gibibytes(row),
        _number(row.setup_seconds, ".1f"),
    ]  # fmt: skip


def _cells(row: Row) -> str:
    return f"{row.k} auto" if row.auto else str(row.k)


def _rate(row: Row) -> str:
    if row.error:
        return "no memory" if row.error == OUT_OF_MEMORY else "failed"
    return _compact(row.cell_steps_per_second)


def _ratios(row: Row) -> list[str]:
    return [_compact(ratio) for ratio in (row.ratio_to_trainer, row.ratio_to_loop, row.ratio_to_processes)]


def _share(row: Row) -> str:
    return _percent(row.utilisation, 1)


def _gibibytes(row: Row) -> str:
    return NONE if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.1f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return _number(value, f".{digits}%")


def _compact(value: float | None) -> str:
    """Three digits, more only before the point."""
    return _number(value, ",.0f" if value and value >= 100 else ".1f" if value and value >= 10 else ".2f")


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
