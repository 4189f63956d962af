"""Tables that fit where they are shown: a terminal drops columns before it breaks ids, a pipe gets all of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDE = 10_000  # columns of a pipe or a file


def show(console: Console, table: Table, droppable: Sequence[str] = ()) -> None:
    """Print a table. `droppable`: headers of columns that a narrow terminal does without, the first one first."""
    if console.is_terminal:
        console.print(_fitted(console, table, droppable))
    else:
        Console(file=console.file, width=WIDE, highlight=False, markup=False).print(table, soft_wrap=True)


def _fitted(console: Console, table: Table, droppable: Sequence[str]) -> Table:
    for header in droppable:
        if Measurement.get(console, console.options.update(max_width=WIDE), table).maximum <= console.width:
            break
        table = _without(table, header)
    return table


def _without(table: Table, header: str) -> Table:
    kept = [column for column in table.columns if column.header != header]
    smaller = copy(table)
    smaller.columns = [replace(column, _index=index) for index, column in enumerate(kept)]
    return smaller
