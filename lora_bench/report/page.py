"""The report put together: every file of it, and what the terminal shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.files import write_atomically
from lora_bench.report.captions import LEGEND, protocol
from lora_bench.report.figures import draw, encode, pages
from lora_bench.report.frame import frame
from lora_bench.report.render import csv_table, markdown_table, print_lines, print_table
from lora_bench.report.slots import Piece, pieces
from lora_bench.report.tables import Table, method_table, rank_tables, unfinished
from lora_bench.report.text import markdown, stems
from lora_bench.store import Loaded

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

FIGURE = "accuracy_vs_rank"


@dataclass(frozen=True)
class Section:
    """One piece's part of the report: its tables, and its figures as (name, files by kind)."""

    piece: Piece
    tables: tuple[Table, ...]
    figures: tuple[tuple[str, Mapping[str, bytes]], ...]


def write(loaded: Loaded, out: Path, console: Console) -> tuple[Path, tuple[Path, ...], tuple[Path, ...]]:
    """Write the report on these records (at least one) to `out` and print it; the page, the tables, the figures."""
    data = frame(loaded.records)
    parts = sections(data)
    rest = unfinished(data)
    every = [table for part in parts for table in part.tables] + rest
    names = stems([table.name for table in every])
    csvs = {f"tables/{name}.csv": csv_table(table).encode() for name, table in zip(names, every, strict=True)}
    images = {f"figures/{name}.{kind}": found[kind] for part in parts for name, found in part.figures for kind in found}
    page = "\n".join(_page(data, loaded, parts, rest, sorted(csvs)))
    _show(data, parts, rest, console)
    files = _save(out, csvs), _save(out, images)
    (report,) = _save(out, {"report.md": page.encode()})
    shown = [f"Figure: {path}" for path in files[1] if path.suffix == ".png"]
    print_lines([f"Written: {report}, {len(csvs)} tables, {len(images)} figure files.", *shown], console)
    return report, *files


def sections(data: pd.DataFrame) -> tuple[Section, ...]:
    """The frame's pieces with their tables and figures; figure names are safe for files and no two are the same."""
    parts = pieces(data)
    stem = dict(zip((part.title for part in parts), stems([part.title for part in parts]), strict=True))
    return tuple(
        Section(part, (method_table(part), *rank_tables(part)), tuple(_figures(part, f"{FIGURE}-{stem[part.title]}")))
        for part in parts
    )


def summary(data: pd.DataFrame) -> str:
    """How many cells there are, and how many of them ended in which way."""
    statuses = data["status"].tolist()
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("done", "failed", "diverged"))
    return f"{len(statuses)} {'cell' if len(statuses) == 1 else 'cells'}: {counts}."


def _figures(piece: Piece, name: str) -> Iterable[tuple[str, Mapping[str, bytes]]]:
    for number, page in enumerate(pages(piece), 1):
        yield name if number == 1 else f"{name}-{number}", encode(draw(piece.title, page))


def _save(out: Path, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    for name, content in files.items():
        write_atomically(out / name, content)
    return tuple(out / name for name in files)


def _show(data: pd.DataFrame, parts: Sequence[Section], rest: Iterable[Table], console: Console) -> None:
    print_lines([summary(data), ""], console)
    for part in parts:
        print_lines([part.piece.title], console, "bold underline")
        print_lines([protocol(part.piece), *part.piece.notes, ""], console)
        for table in part.tables:
            print_table(table, console)
    for table in rest:
        print_table(table, console)
    print_lines([*LEGEND, ""], console, "dim")


def _page(
    data: pd.DataFrame, loaded: Loaded, parts: Iterable[Section], rest: Iterable[Table], csvs: Iterable[str]
) -> Iterable[str]:
    yield f"# Report\n\n{markdown(summary(data))}\n\n## How to read\n"
    yield from (f"- {markdown(line)}" for line in LEGEND)
    yield ""
    for part in parts:
        yield from _section(part)
    yield from (markdown_table(table, 2) for table in rest)
    if loaded.broken:
        yield "## Records that could not be read\n"
        yield from (f"- {markdown(path.name)}: {markdown(reason)}" for path, reason in loaded.broken)
        yield ""
    yield "## Files\n\nThe same numbers, unrounded and in the metrics' own units:\n"
    yield from (f"- [{markdown(name)}]({name})" for name in csvs)
    yield ""


def _section(part: Section) -> Iterable[str]:
    title = markdown(part.piece.title)
    yield f"## {title}\n\n{markdown(protocol(part.piece))}\n"
    yield from (f"- {markdown(note)}\n" for note in part.piece.notes)
    for name, _ in part.figures:
        yield f"![Score by rank: {title}](figures/{name}.png)\n"
        yield "Mean over seeds; bars: one sample standard deviation. Methods with (a, b): averaged over all (a, b).\n"
    yield from (markdown_table(table) for table in part.tables)
