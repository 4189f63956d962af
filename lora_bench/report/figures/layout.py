"""How a table is cut into parts that fit a width, each with the label columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_bench.report.numbers.tables import Table
from lora_bench.text import clean

GAP = 2
_WRAPPED = frozenset({"reason", "because"})
_WRAPPED_WIDTH = 30


def is_right(table: Table, column: int) -> bool:
    """Whether a column is of numbers."""
    return all(row[column].number for row in table.rows[: len(table.rows) - table.footer])


def folds(table: Table, width: int) -> list[list[int]]:
    """The columns of each part: as few parts as fit the width, and those as even as they can be."""
    widths = [_width(table, column) + GAP for column in range(len(table.heads))]
    room = width + GAP - sum(widths[: table.labels])
    values = list(range(table.labels, len(widths)))
    fewest = len(_fill(values, widths, room))
    rooms = range(1, max(1, room) + 1)
    evenest = next(fit for space in rooms if len(fit := _fill(values, widths, space)) == fewest)
    return [[*range(table.labels), *fold] for fold in evenest]


def _fill(columns: Iterable[int], widths: Sequence[int], room: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for column in columns:
        if parts[-1] and sum(widths[known] for known in parts[-1]) + widths[column] > room:
            parts.append([])
        parts[-1].append(column)
    return parts


def _width(table: Table, column: int) -> int:
    from rich.cells import cell_len

    head = table.heads[column]
    longest = max(cell_len(clean(row[column].text)) for row in table.rows)
    return max(*map(cell_len, head.split("\n")), min(longest, _WRAPPED_WIDTH) if head in _WRAPPED else longest)
