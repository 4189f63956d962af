"""How a table is folded into parts that fit a width, each with the label columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_bench.report.numbers.tables import ReportTable
from lora_bench.text import clean

GAP = 2  # characters between two columns
_WRAPPED_HEADS = frozenset({"reason", "because"})  # columns of sentences, which may be wrapped
_WRAPPED_WIDTH = 30


def is_right_aligned(table: ReportTable, column: int) -> bool:
    """Whether a column contains only numbers."""
    return all(row[column].numeric for row in table.rows)


def fold_columns(table: ReportTable, width: int) -> list[list[int]]:
    """Divide a table's columns into parts.

    Args:
        table: The table.
        width: The available width in characters.

    Returns:
        The indices of the columns of each part, each with the label columns first: as few parts as possible, and
        among those the division with the narrowest widest part.
    """
    widths = [_column_width(table, column) + GAP for column in range(len(table.heads))]
    available = width + GAP - sum(widths[: table.label_columns])
    columns = list(range(table.label_columns, len(widths)))
    fewest = len(_fill_parts(columns, widths, available))
    narrower = range(1, max(1, available) + 1)
    most_even = next(parts for limit in narrower if len(parts := _fill_parts(columns, widths, limit)) == fewest)
    return [[*range(table.label_columns), *part] for part in most_even]


def _fill_parts(columns: Iterable[int], widths: Sequence[int], available: int) -> list[list[int]]:
    """Put columns into a part while they fit, then begin the next; a column that is too wide gets its own part."""
    parts: list[list[int]] = [[]]
    for column in columns:
        if parts[-1] and sum(widths[placed] for placed in parts[-1]) + widths[column] > available:
            parts.append([])
        parts[-1].append(column)
    return parts


def _column_width(table: ReportTable, column: int) -> int:
    """Return the width of a column in terminal cells."""
    from rich.cells import cell_len

    head = table.heads[column]
    longest = max(cell_len(clean(row[column].text)) for row in table.rows)
    text_width = min(longest, _WRAPPED_WIDTH) if head in _WRAPPED_HEADS else longest
    return max(*map(cell_len, head.split("\n")), text_width)
