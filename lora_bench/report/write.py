"""Writing the report: all of its files, and what the terminal shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.errors import DONE, SOME_FAILED
from lora_bench.records.files import write_atomically
from lora_bench.report.content import Content, Section
from lora_bench.report.escaping import escape_markdown, file_stems
from lora_bench.report.figures.catalogue import Picture, all_figures
from lora_bench.report.figures.encoding import EncodedFigure, FigureEncoder
from lora_bench.report.formats.html import html_page
from lora_bench.report.formats.latex import latex_document, latex_table
from lora_bench.report.formats.render import csv_table, json_report, markdown_table, print_lines, print_table
from lora_bench.report.numbers.tables import ReportTable, printed_tables

if TYPE_CHECKING:
    from rich.console import Console

MARKDOWN_ROWS = 120  # longer tables are on the page and in tables/ alone
PRINTED_TABLES = 5  # of a scope, on the terminal; the files contain all of them
PAGE, MARKDOWN, LATEX, JSON = "report.html", "report.md", "report.tex", "report.json"
Pictures = Mapping[str, Sequence[Picture]]  # by section's stem


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report.

    Attributes:
        page: The HTML page.
        reports: The whole report in other formats.
        tables: CSV and LaTeX.
        figures: PNG, SVG and PDF.
        broken: The files that could not be read as records.
    """

    page: Path
    reports: tuple[Path, ...]
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    broken: tuple[Path, ...]

    @property
    def code(self) -> int:
        """The exit code: SOME_FAILED if a record could not be read, else DONE."""
        return SOME_FAILED if self.broken else DONE


def write(content: Content, out: Path, encoder: FigureEncoder) -> ReportFiles:
    """Write the report to `out`, each file whole or not at all; the HTML page comes last."""
    stems = file_stems([table.name for table in content.tables])
    tables = dict(zip(stems, content.tables, strict=True))
    # Worker processes, if any, encode the figures while the other files are written.
    encoded_figures: list[tuple[str, EncodedFigure]] = []
    pictures: dict[str, list[Picture]] = {}
    for section in content.sections:
        for picture, figure in all_figures(section.statistics, section.stem):
            pictures.setdefault(section.stem, []).append(picture)
            encoded_figures.append((picture.name, encoder.encode(figure)))
    in_latex = {stem: latex_table(table) for stem, table in tables.items() if not table.is_data}
    table_paths = _save(out, _table_files(tables, in_latex))
    reports = {
        MARKDOWN: "\n".join(_markdown_lines(content, pictures, sorted(tables))).encode(),
        LATEX: latex_document("Report", _latex_paragraphs(content), in_latex.values()).encode(),
        JSON: json_report(_json_content(content), content.tables).encode(),
        PAGE: html_page(content).encode(),
    }
    figure_paths: list[Path] = []
    for name, encoded in encoded_figures:
        figure_paths += _save(out, {f"figures/{name}.{kind}": data for kind, data in encoded().items()})
    *other_paths, page_path = _save(out, reports)
    broken = tuple(path for path, _ in content.broken)
    return ReportFiles(page_path, tuple(other_paths), tuple(table_paths), tuple(figure_paths), broken)


def print_report(content: Content, console: Console) -> None:
    """Print the report."""
    print_lines([content.status_line, ""], console)
    for section in content.sections:
        print_lines([section.scope.title], console, "bold underline")
        print_lines([*section.protocol, "", *section.answer, ""], console)
        for table in printed_tables(section.tables)[:PRINTED_TABLES]:
            print_table(table, console)
    for table in content.other_tables:
        print_table(table, console)
    print_lines([*content.findings, *content.legend, ""], console, "dim")


def print_verdict(content: Content, console: Console) -> None:
    """Print what a verdict says: the answer and its table; the page has all else."""
    print_lines([content.status_line, ""], console)
    for section in content.sections:
        print_lines([section.scope.title], console, "bold underline")
        print_lines([*section.answer, ""], console)
        for table in printed_tables(section.tables)[:1]:
            print_table(table, console)
    print_lines([*content.findings, ""] if content.findings else [], console)


def print_frontiers(files: ReportFiles, console: Console) -> None:
    """Print where the figures of score against trained values are."""
    figures = [path for path in files.figures if path.name.startswith("frontier") and path.suffix == ".png"]
    print_lines([*(f"Figure: {path}" for path in figures), ""], console, whole=True)


def print_files(files: ReportFiles, console: Console) -> None:
    """Print what was written; the last line is the page's path, not wrapped."""
    names = ", ".join(path.name for path in files.reports)
    counts = f"{len(files.tables)} table files, {len(files.figures)} figure files"
    print_lines([f"Written beside it: {names}, {counts}."], console)
    print_lines([str(files.page)], console, whole=True)


def _table_files(tables: Mapping[str, ReportTable], in_latex: Mapping[str, str]) -> dict[str, bytes]:
    csv_files = {f"tables/{stem}.csv": csv_table(table).encode() for stem, table in tables.items()}
    return csv_files | {f"tables/{stem}.tex": text.encode() for stem, text in in_latex.items()}


def _save(out: Path, files: Mapping[str, bytes]) -> list[Path]:
    for name, data in files.items():
        write_atomically(out / name, data)
    return [out / name for name in files]


def _json_content(content: Content) -> dict[str, object]:
    return {
        "summary": content.status_line,
        "sections": [
            {"title": section.scope.title, "protocol": section.protocol, "answer": section.answer}
            for section in content.sections
        ],
        "findings": content.findings,
        "unreadable": [{"file": path.name, "reason": reason} for path, reason in content.broken],
    }


def _latex_paragraphs(content: Content) -> Iterator[str]:
    """Yield what stands above the tables of the LaTeX document."""
    yield content.status_line
    yield from content.legend
    for section in content.sections:
        yield from (f"{section.scope.title}: {line}" for line in section.protocol)
        yield from section.answer
    yield from content.findings
    yield from (f"Cannot read {path.name}: {reason}" for path, reason in content.broken)


def _markdown_lines(content: Content, pictures: Pictures, table_stems: Iterable[str]) -> Iterator[str]:
    yield f"# Report\n\n{escape_markdown(content.status_line)}\n"
    for section in content.sections:
        yield from _markdown_section(section, pictures.get(section.stem, ()))
    yield from (markdown_table(table, 2) for table in content.other_tables)
    yield _bullets(content.findings)
    yield "## How to read\n"
    yield _bullets(content.legend)
    if content.broken:
        yield "## Records that could not be read\n"
        yield _bullets(f"{path.name}: {reason}" for path, reason in content.broken)
    yield "## Files\n\nThe same numbers, to 12 digits and in the metrics' own units, and for LaTeX:\n"
    yield from (f"- [{stem}.csv](tables/{stem}.csv), [{stem}.tex](tables/{stem}.tex)" for stem in table_stems)
    yield ""


def _markdown_section(section: Section, pictures: Sequence[Picture]) -> Iterator[str]:
    """Yield the answer, then each table or figure in its order: the frontier's figure stands before its table."""
    yield f"## {escape_markdown(section.scope.title)}\n"
    yield _bullets((*section.answer, *section.protocol))
    yield from _markdown_pictures(pictures[:1])
    printed = printed_tables(section.tables)
    yield from (markdown_table(table) for table in printed if len(table.rows) <= MARKDOWN_ROWS)
    yield from _markdown_pictures(pictures[1:])


def _markdown_pictures(pictures: Iterable[Picture]) -> Iterator[str]:
    for picture in pictures:
        caption = escape_markdown(picture.caption)
        yield f"![{escape_markdown(picture.title)}](figures/{picture.name}.png)\n\n{caption}\n"


def _bullets(lines: Iterable[str]) -> str:
    return "".join(f"- {escape_markdown(line)}\n" for line in lines)
