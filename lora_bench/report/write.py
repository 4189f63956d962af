"""The report written out: every file of it, and what the terminal shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.files import write_atomically
from lora_bench.report.content import Content, Section
from lora_bench.report.figures.captions import LEGEND
from lora_bench.report.figures.catalogue import figures
from lora_bench.report.figures.encoding import Encoded, Helpers
from lora_bench.report.formats.escaping import markdown, stems
from lora_bench.report.formats.html import page
from lora_bench.report.formats.latex import latex_document, latex_table
from lora_bench.report.formats.render import csv_table, json_report, markdown_table, print_lines, print_table
from lora_bench.report.numbers.tables import Table

if TYPE_CHECKING:
    from rich.console import Console

PAGE, MARKDOWN, LATEX, JSON = "report.html", "report.md", "report.tex", "report.json"
Pictures = Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Written:
    """The files: the page, the other whole reports, tables (CSV and LaTeX), figures (PNG, SVG, PDF)."""

    page: Path
    reports: tuple[Path, ...]
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]


def write(content: Content, out: Path, helpers: Helpers) -> Written:
    """Write every file of the report to `out`, each whole or not at all; the page comes last."""
    named = dict(zip(stems([table.name for table in content.tables]), content.tables, strict=True))
    waiting: list[tuple[str, Encoded]] = []
    pictures: dict[str, list[tuple[str, str]]] = {}
    for section in content.sections:
        for caption, name, figure in figures(section.piece, section.stem):
            pictures.setdefault(section.stem, []).append((caption, name))
            waiting.append((name, helpers.encode(figure)))
    written = _save(out, _table_files(named))
    reports = {
        MARKDOWN: "\n".join(_markdown(content, pictures, sorted(named))).encode(),
        LATEX: latex_document("Report", _opening(content), content.tables).encode(),
        JSON: json_report(_facts(content), content.tables).encode(),
        PAGE: page(content).encode(),
    }
    drawn: list[Path] = []
    for name, ready in waiting:
        drawn += _save(out, {f"figures/{name}.{kind}": data for kind, data in ready().items()})
    *others, last = _save(out, reports)
    return Written(last, tuple(others), tuple(written), tuple(drawn))


def show(content: Content, console: Console) -> None:
    """Print the report."""
    print_lines([content.summary, ""], console)
    for section in content.sections:
        print_lines([section.piece.title], console, "bold underline")
        print_lines([*section.protocol, ""], console)
        for table in section.tables:
            print_table(table, console)
        print_lines([*section.findings, ""], console)
    for table in content.rest:
        print_table(table, console)
    print_lines([*content.findings, *LEGEND, ""], console, "dim")


def show_files(written: Written, console: Console) -> None:
    """Say what was written; the page's path is the last line, whole."""
    names = ", ".join(path.name for path in written.reports)
    counts = f"{len(written.tables)} table files, {len(written.figures)} figure files"
    print_lines([f"Written beside it: {names}, {counts}."], console)
    print_lines([str(written.page)], console, whole=True)


def _table_files(named: Mapping[str, Table]) -> dict[str, bytes]:
    found = {f"tables/{name}.csv": csv_table(table).encode() for name, table in named.items()}
    return found | {f"tables/{name}.tex": latex_table(table).encode() for name, table in named.items()}


def _save(out: Path, files: Mapping[str, bytes]) -> list[Path]:
    for name, data in files.items():
        write_atomically(out / name, data)
    return [out / name for name in files]


def _facts(content: Content) -> dict[str, object]:
    return {
        "summary": content.summary,
        "sections": [
            {"title": each.piece.title, "protocol": each.protocol, "findings": each.findings}
            for each in content.sections
        ],
        "findings": content.findings,
        "unreadable": [{"file": path.name, "reason": reason} for path, reason in content.broken],
    }  # fmt: skip


def _opening(content: Content) -> Iterator[str]:
    yield content.summary
    yield from LEGEND
    for section in content.sections:
        yield from (f"{section.piece.title}: {line}" for line in section.protocol)
        yield from section.findings
    yield from content.findings
    yield from (f"Cannot read {path.name}: {reason}" for path, reason in content.broken)


def _markdown(content: Content, pictures: Pictures, names: Iterable[str]) -> Iterator[str]:
    yield f"# Report\n\n{markdown(content.summary)}\n\n## How to read\n"
    yield _bullets(LEGEND)
    for section in content.sections:
        yield from _markdown_section(section, pictures.get(section.stem, ()))
    yield from (markdown_table(table, 2) for table in content.rest)
    yield _bullets(content.findings)
    if content.broken:
        yield "## Records that could not be read\n"
        yield _bullets(f"{path.name}: {reason}" for path, reason in content.broken)
    yield "## Files\n\nThe same numbers, unrounded and in the metrics' own units, and for LaTeX:\n"
    yield from (f"- [{name}.csv](tables/{name}.csv), [{name}.tex](tables/{name}.tex)" for name in names)
    yield ""


def _markdown_section(section: Section, pictures: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"## {markdown(section.piece.title)}\n"
    yield _bullets((*section.protocol, *section.findings))
    for caption, name in pictures:
        yield f"![{markdown(caption)}](figures/{name}.png)\n\n{markdown(caption)}\n"
    yield from (markdown_table(table) for table in section.tables)


def _bullets(lines: Iterable[str]) -> str:
    return "".join(f"- {markdown(line)}\n" for line in lines)
