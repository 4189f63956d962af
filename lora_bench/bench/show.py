"""A benchmark's report as JSON, as Markdown, and as a table that fits 80 columns."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_bench import tasks
from lora_bench.bench.rows import BenchRow
from lora_bench.bench.suite import OUT_OF_MEMORY, BenchReport
from lora_bench.records.files import write_atomically

NONE = "–"
UNEVEN_SPREAD = 0.2
# What repeats from call to call stands first: the share of the card's peak, and the ratio to several processes.
SHOWN_PEERS = ("processes", "trainer", "loop")
TERMINAL_HEADS = ("variant", "mix", "cells", "rate", "peak", "×proc.", "×trainer", "×loop", "GiB")
MARKDOWN_HEADS = (
    "task",
    "targets",
    "variant",
    "mix",
    "cells",
    "steps·cells/s",
    "spread",
    "of peak",
    "× processes",
    "× trainer",
    "× loop",
    "tokens/s",
    "TFLOP/s",
    "memory GiB",
    "set-up s",
)
LEGEND = (
    "rate: steps · cells a second, median of {repeats} rounds; ×: over the peers in the same round, median of the "
    "rounds (they train LoRA r=16; full: the whole model; proc.: the best number of processes); peak: real tokens' "
    "FLOP as a part of {tflops:.4g} TFLOP/s, measured here"
)


def prepare_folder(folder: Path) -> None:
    """Create the folder of a report, and see that files can be written there before anything is measured.

    Raises:
        OSError: They cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_report(report: BenchReport, folder: Path, name: str) -> list[Path]:
    """Write `<name>.json` and `<name>.md` and return their paths."""
    files = {
        folder / f"{name}.json": json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n",
        folder / f"{name}.md": markdown_page(report),
    }
    for path, text in files.items():
        write_atomically(path, text.encode())
    return list(files)


def markdown_page(report: BenchReport) -> str:
    """Return the report as Markdown: how it was measured, and every row."""
    environment = report.environment
    lines = [
        "# Training throughput",
        "",
        *introduction(report),
        "",
        f"Batch {environment['batch_size']}, at most {environment['max_length']} tokens, {environment['precision']}. "
        f"{environment['seconds']:g} timed seconds a measurement. {legend(report)}.",
        "",
        f"| {' | '.join(MARKDOWN_HEADS)} |",
        "|" + " --- |" * 4 + " ---: |" * (len(MARKDOWN_HEADS) - 4),
        *(f"| {' | '.join(_markdown_fields(row))} |" for row in report.rows),
    ]
    for line in (*notes(report), *failures(report)):
        lines += ["", line]
    return "\n".join(lines) + "\n"


def introduction(report: BenchReport) -> list[str]:
    """Return the lines on model, device and versions, and on random weights and missing peers if there are any."""
    environment = report.environment
    weights = " (random weights: the directory has none)" if environment["random_weights"] else ""
    libraries = ("lora_bench", "torch", "transformers", "peft")
    versions = ", ".join(f"{name} {environment[name]}" for name in libraries)
    line = f"{environment['model']}{weights} on {environment['device']}; {versions}."
    return [line, *filter(None, [environment["left_out"]])]


def legend(report: BenchReport) -> str:
    """Explain the columns."""
    return LEGEND.format(repeats=report.environment["repeats"], tflops=report.peak["tflops"])


def failures(report: BenchReport) -> list[str]:
    """Return a line for each row that failed for another reason than memory."""
    failed = [row for row in report.rows if row.error not in (None, OUT_OF_MEMORY)]
    return [f"{row.task}, {row.targets}, {row.variant}, {row.mix}, {row.k} cells: {row.error}" for row in failed]


def notes(report: BenchReport) -> list[str]:
    """Return lines on the ratios' spread, on rates so uneven that the machine was probably busy, and on rows apart."""
    lines = []
    count = len(report.rows)
    parts = [
        end / (row.ratios()[peer] or 1)
        for row in report.rows
        for peer, ends in row.ratio_ranges.items()
        for end in ends
    ]
    if parts:
        lines.append(f"The ratios of single rounds are {min(parts):.2f} to {max(parts):.2f} of these.")
    if uneven := sum((row.spread or 0) > UNEVEN_SPREAD for row in report.rows):
        lines.append(f"The rounds of {uneven} of {count} rows differ by more than {UNEVEN_SPREAD:.0%}: a busy machine?")
    if apart := sum(row.apart for row in report.rows):
        lines.append(f"{apart} of {count} rows had rounds of their own: no memory beside the others.")
    return lines


def tables(report: BenchReport) -> Iterator[Table]:
    """Yield a table for each task and target set."""
    for (task, targets), rows in groupby(report.rows, key=lambda row: (row.task, row.targets)):
        yield _table(f"{tasks.get(task).title}, {targets}", list(rows))


def print_report(report: BenchReport, console: Console) -> None:
    """Print the report."""
    console.print(Text("\n".join(introduction(report))))
    for table in tables(report):
        console.print(table)
    console.print(Text("\n".join([legend(report), *notes(report), *failures(report)])))


def _table(title: str, rows: Sequence[BenchRow]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, head in enumerate(TERMINAL_HEADS):
        table.add_column(head, justify="left" if index < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(text, "bold" if row.variant == "packed" else "") for text in _terminal_fields(row)))
    return table


def _terminal_fields(row: BenchRow) -> list[str]:
    ratios = [_three_digits(row.ratios()[peer]) for peer in SHOWN_PEERS]
    return [row.variant, row.mix, _cells(row), _rate(row), _utilisation(row), *ratios, _memory(row)]


def _markdown_fields(row: BenchRow) -> list[str]:
    return [
        row.task,
        row.targets,
        row.variant,
        row.mix,
        _cells(row),
        _rate(row),
        _percent(row.spread),
        _utilisation(row),
        *(_ratio_and_range(row.ratios()[peer], row.ratio_ranges.get(peer)) for peer in SHOWN_PEERS),
        _number(row.tokens_per_second, ",.0f"),
        _number(row.tflops, ".3g"),
        _memory(row),
        _number(row.setup_seconds, ".1f"),
    ]


def _cells(row: BenchRow) -> str:
    return f"{row.k} auto" if row.auto else str(row.k)


def _rate(row: BenchRow) -> str:
    if row.error:
        return "no memory" if row.error == OUT_OF_MEMORY else "failed"
    return _three_digits(row.cell_steps_per_second)


def _ratio_and_range(ratio: float | None, ratio_range: tuple[float, float] | None) -> str:
    """Format a ratio, with its range over the rounds if it has one."""
    if ratio_range is None or ratio_range[0] == ratio_range[1]:
        return _three_digits(ratio)
    return f"{_three_digits(ratio)} ({' to '.join(map(_three_digits, ratio_range))})"


def _utilisation(row: BenchRow) -> str:
    return _percent(row.utilisation, 1)


def _memory(row: BenchRow) -> str:
    return NONE if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.1f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return _number(value, f".{digits}%")


def _three_digits(value: float | None) -> str:
    """Format with three digits, with more only if they stand before the decimal point."""
    return _number(value, ",.0f" if value and value >= 100 else ".1f" if value and value >= 10 else ".2f")


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
