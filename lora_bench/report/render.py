"""The tables written out: to a terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lora_bench.report.tables import Field, Table
from lora_bench.report.text import ascii_only, clean, markdown, sheet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

_GAP = 2
_WRAPPED, _WRAPPED_WIDTH = "reason", 30


def print_table(table: Table, console: Console) -> None:
    """Print a table; one wider than the console is folded into parts, each with the label columns."""
    _say(console, table.title, "bold")
    for at, part in enumerate(_folds(table, console.width)):
        console.print(*([""] if at else []), _rich(table, part, console), sep="\n")
    for note in table.notes:
        _say(console, note, "dim")
    console.print()


def print_lines(lines: Iterable[str], console: Console, style: str = "") -> None:
    """Print lines of text from anywhere, wrapped to the console."""
    for line in lines:
        _say(console, line, style)


def markdown_table(table: Table, level: int = 3) -> str:
    """The table as GitHub's Markdown: heading, table, notes."""
    right = [_right(table, column) for column in range(len(table.heads))]
    lines = [
        f"{'#' * level} {markdown(table.title)}",
        "",
        _line("<br>".join(markdown(part) for part in head.split("\n")) for head in table.heads),
        _line("---:" if number else ":---" for number in right),
        *(_line(_strong(field) for field in row) for row in table.rows),
        "",
        *(f"{markdown(note)}\n" for note in table.notes),
    ]
    return "\n".join(lines)


def csv_table(table: Table) -> str:
    """The table's numbers, unrounded and in the metric's units, one row a place."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.data[0])
    writer.writerows([sheet(value) for value in row.values()] for row in table.data)
    return text.getvalue()


def _say(console: Console, line: str, style: str) -> None:
    from rich.text import Text

    console.print(Text(_known(line, console), style=style), soft_wrap=False)


def _known(text: str, console: Console) -> str:
    cleaned = clean(text)
    return ascii_only(cleaned) if console.options.ascii_only else cleaned


def _strong(field: Field) -> str:
    return f"**{markdown(field.text)}**" if field.strong else markdown(field.text)


def _line(fields: Iterable[str]) -> str:
    return f"| {' | '.join(fields)} |"


def _right(table: Table, column: int) -> bool:
    return all(row[column].number for row in table.rows[: len(table.rows) - table.footer])


def _rich(table: Table, columns: Sequence[int], console: Console) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        head = Text("\n".join(_known(part, console) for part in table.heads[column].split("\n")))
        shown.add_column(head, justify="right" if _right(table, column) else "left", overflow="fold")
    for at, row in enumerate(table.rows):
        if table.footer and at == len(table.rows) - table.footer:
            shown.add_section()
        fields = (row[column] for column in columns)
        shown.add_row(*(Text(_known(field.text, console), style="bold" if field.strong else "") for field in fields))
    return shown


def _folds(table: Table, width: int) -> list[list[int]]:
    """The columns of each part: as few parts as fit the width, and those as even as they can be."""
    widths = [_width(table, column) + _GAP for column in range(len(table.heads))]
    room = width + _GAP - sum(widths[: table.labels])
    values = list(range(table.labels, len(widths)))
    fewest = len(_fill(values, widths, room))
    rooms = range(1, max(1, room) + 1)
    evenest = next(fit for space in rooms if len(fit := _fill(values, widths, space)) == fewest)
    return [[*range(table.labels), *fold] for fold in evenest]


def _fill(columns: Iterable[int], widths: Sequence[int], room: int) -> list[list[int]]:
    folds: list[list[int]] = [[]]
    for column in columns:
        if folds[-1] and sum(widths[known] for known in folds[-1]) + widths[column] > room:
            folds.append([])
        folds[-1].append(column)
    return folds


def _width(table: Table, column: int) -> int:
    from rich.cells import cell_len

    head = table.heads[column]
    longest = max(cell_len(clean(row[column].text)) for row in table.rows)
    return max(*map(cell_len, head.split("\n")), min(longest, _WRAPPED_WIDTH) if head == _WRAPPED else longest)
