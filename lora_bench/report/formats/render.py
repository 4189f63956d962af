"""The tables on a terminal, as Markdown, as CSV and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_bench.report.escaping import ascii_only, escape_markdown
from lora_bench.report.formats.folding import fold_columns, is_right_aligned
from lora_bench.report.numbers.frame import rows_of
from lora_bench.report.numbers.tables import Field, ReportTable
from lora_bench.text import clean, sheet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

DIGITS = 12  # of a number in CSV and JSON
MAX_ROWS = 60  # of a table on the terminal


def print_table(table: ReportTable, console: Console) -> None:
    """Print a table, folded into parts if it is wider than the console.

    Of a long table only the first rows are printed; the files contain all of it.
    """
    _print_line(console, table.title, "bold")
    shortened = replace(table, rows=table.rows[:MAX_ROWS])
    left_out = len(table.rows) - len(shortened.rows)
    for index, columns in enumerate(fold_columns(shortened, console.width)):
        console.print(*([""] if index else []), _rich_table(shortened, columns, console), sep="\n")
    if left_out:
        _print_line(console, f"… {left_out} more rows in the files.", "dim")
    for note in table.notes:
        _print_line(console, note, "dim")
    console.print()


def print_lines(lines: Iterable[str], console: Console, style: str = "", whole: bool = False) -> None:
    """Print lines of text from anywhere.

    Args:
        lines: The text; it need not be escaped.
        console: Where to print.
        style: A style of rich.
        whole: Do not wrap the lines to the width of the console.
    """
    for line in lines:
        _print_line(console, line, style, whole)


def markdown_table(table: ReportTable, level: int = 3) -> str:
    """Return heading, table and notes as GitHub's Markdown; `level` is that of the heading."""
    right_aligned = [is_right_aligned(table, column) for column in range(len(table.heads))]
    lines = [
        f"{'#' * level} {escape_markdown(table.title)}",
        "",
        _markdown_line("<br>".join(escape_markdown(part) for part in head.split("\n")) for head in table.heads),
        _markdown_line("---:" if right else ":---" for right in right_aligned),
        *(_markdown_line(_markdown_field(field) for field in row) for row in table.rows),
        "",
        *(f"{escape_markdown(note)}\n" for note in table.notes),
    ]
    return "\n".join(lines)


def csv_table(table: ReportTable) -> str:
    """Return the table's data as CSV, to `DIGITS` significant digits and in the metric's units."""
    import pandas as pd

    rows = [[sheet(_steady(value)) for value in row.values()] for row in rows_of(table.data)]
    return pd.DataFrame(rows, columns=table.data.columns, dtype=object).to_csv(index=False, lineterminator="\n")


def json_report(content: Mapping[str, object], tables: Iterable[ReportTable]) -> str:
    """Return `content` and the tables' data as JSON.

    Values that are None are left out of the rows, because most of the many settings are None in most rows.
    """
    table_data = [
        {
            "name": table.name,
            "title": table.title,
            "notes": table.notes,
            "rows": [
                {name: _steady(value) for name, value in row.items() if value is not None}
                for row in rows_of(table.data)
            ],
        }
        for table in tables
    ]
    return json.dumps({**content, "tables": table_data}, indent=1, allow_nan=False) + "\n"


def _steady(value: object) -> object:
    """Round a number so that the order in which a processor sums does not show."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _print_line(console: Console, line: str, style: str, whole: bool = False) -> None:
    from rich.text import Text

    console.print(Text(_printable(line, console), style=style), soft_wrap=whole)


def _printable(text: str, console: Console) -> str:
    cleaned = clean(text)
    return ascii_only(cleaned) if console.options.ascii_only else cleaned


def _markdown_field(field: Field) -> str:
    return f"**{escape_markdown(field.text)}**" if field.bold else escape_markdown(field.text)


def _markdown_line(fields: Iterable[str]) -> str:
    return f"| {' | '.join(fields)} |"


def _rich_table(table: ReportTable, columns: Sequence[int], console: Console) -> Table:
    """Return some columns of a table for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rich_table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        head = Text("\n".join(_printable(part, console) for part in table.heads[column].split("\n")))
        rich_table.add_column(head, justify="right" if is_right_aligned(table, column) else "left", overflow="fold")
    for row in table.rows:
        fields = (row[column] for column in columns)
        rich_table.add_row(
            *(Text(_printable(field.text, console), style="bold" if field.bold else "") for field in fields)
        )
    return rich_table
