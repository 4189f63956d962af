"""The tables written out: to a terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_bench.report.figures.layout import folds, is_right
from lora_bench.report.formats.escaping import ascii_only, markdown
from lora_bench.report.numbers.tables import Field, Table
from lora_bench.text import clean, sheet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

SHOWN = 60


def print_table(table: Table, console: Console) -> None:
    """Print a table; one wider than the console is folded into parts, each with the label columns.

    Of a long table the first rows and the summary are shown: the files hold all of it.
    """
    _say(console, table.title, "bold")
    short, left_out = _shortened(table)
    for at, part in enumerate(folds(short, console.width)):
        console.print(*([""] if at else []), _rich(short, part, console), sep="\n")
    if left_out:
        _say(console, f"… {left_out} more rows in the files.", "dim")
    for note in table.notes:
        _say(console, note, "dim")
    console.print()


def print_lines(lines: Iterable[str], console: Console, style: str = "", whole: bool = False) -> None:
    """Print lines of text from anywhere, wrapped to the console unless they must stay `whole`."""
    for line in lines:
        _say(console, line, style, whole)


def markdown_table(table: Table, level: int = 3) -> str:
    """The table as GitHub's Markdown: heading, table, notes."""
    right = [is_right(table, column) for column in range(len(table.heads))]
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


def json_report(content: Mapping[str, object], tables: Iterable[Table]) -> str:
    """The report as JSON: `content`, and the tables with their unrounded numbers, one object a place."""
    found = [
        {
            "name": table.name,
            "title": table.title,
            "notes": table.notes,
            "rows": [_known_numbers(row) for row in table.data],
        }
        for table in tables
    ]
    return json.dumps({**content, "tables": found}, indent=1, allow_nan=False) + "\n"


def _known_numbers(row: Mapping[str, object]) -> dict[str, object]:
    """A row without what it does not have; long as the list of settings is, that is much of it."""
    return {name: value for name, value in row.items() if value is not None}


def _shortened(table: Table) -> tuple[Table, int]:
    left_out = len(table.rows) - SHOWN - table.footer
    if left_out <= 0:
        return table, 0
    return replace(table, rows=table.rows[:SHOWN] + table.rows[len(table.rows) - table.footer :]), left_out


def _say(console: Console, line: str, style: str, whole: bool = False) -> None:
    from rich.text import Text

    console.print(Text(_known(line, console), style=style), soft_wrap=whole)


def _known(text: str, console: Console) -> str:
    cleaned = clean(text)
    return ascii_only(cleaned) if console.options.ascii_only else cleaned


def _strong(field: Field) -> str:
    return f"**{markdown(field.text)}**" if field.strong else markdown(field.text)


def _line(fields: Iterable[str]) -> str:
    return f"| {' | '.join(fields)} |"


def _rich(table: Table, columns: Sequence[int], console: Console) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        head = Text("\n".join(_known(part, console) for part in table.heads[column].split("\n")))
        shown.add_column(head, justify="right" if is_right(table, column) else "left", overflow="fold")
    for at, row in enumerate(table.rows):
        if table.footer and at == len(table.rows) - table.footer:
            shown.add_section()
        fields = (row[column] for column in columns)
        shown.add_row(*(Text(_known(field.text, console), style="bold" if field.strong else "") for field in fields))
    return shown
