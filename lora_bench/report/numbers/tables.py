"""Tables independent of the format they are written in: a frame, and one definition for each column.

A column's definition says how it is called, in data and in print, where its value comes from and how it is formatted.
Terminal, Markdown, LaTeX, CSV, JSON and the page all use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_bench.report.numbers.frame import CELL_COLUMNS, STATUS_COLUMNS, Row, is_missing, rows_of

if TYPE_CHECKING:
    from pandas import DataFrame

MISSING_SCORE_DATA = ("id", "model", "task", "targets", "method", "rank", "a", "b", "seed", "lr", "status", "reason")
MISSING_SCORE_HEADS = ("id", "task", "method", "rank", "a", "b", "seed", "lr", "status", "reason")
DASH = "—"


@dataclass(frozen=True)
class Field:
    """The text of one field of a table.

    The text may come from outside (model names, reasons): whoever writes it must escape it.

    Attributes:
        bold: Whether it is emphasised.
        numeric: Whether it is a number, which is aligned to the right.
    """

    text: str
    bold: bool = False
    numeric: bool = True


@dataclass(frozen=True)
class ReportTable:
    """A table that can be written in any format.

    Attributes:
        name: Unique within the report; file names derive from it.
        heads: The column headings; a line break separates two lines.
        label_columns: How many of the first columns identify a row. They are repeated when a wide table is folded.
        rows: The formatted fields; none for a table that is only data.
        notes: Lines below the table.
        data: The same numbers in full, for CSV and JSON.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    label_columns: int
    rows: tuple[tuple[Field, ...], ...]
    notes: tuple[str, ...]
    data: DataFrame = field(compare=False)

    @property
    def is_data(self) -> bool:
        """Whether it is written as CSV and JSON alone."""
        return not self.heads


@dataclass(frozen=True)
class TableColumn:
    """The definition of a column, used in every format.

    Attributes:
        name: The frame's column, and the name in CSV and JSON; empty if it is only printed.
        head: Its printed heading; empty if it is only data.
        text: Formats it from the row; by default its value is printed as it is.
        numeric: Whether it is aligned to the right.
        bold: Says of a row whether the field is emphasised.
    """

    name: str
    head: str = ""
    text: Callable[[Row], str] | None = None
    numeric: bool = False
    bold: Callable[[Row], bool] | None = None

    def field(self, row: Row) -> Field:
        """Return the printed field of a row."""
        text = self.text(row) if self.text is not None else str("" if row[self.name] is None else row[self.name])
        return Field(text, bool(self.bold and self.bold(row)), self.numeric)


def build_table(
    name: str,
    title: str,
    columns: Sequence[TableColumn],
    frame: DataFrame,
    notes: Iterable[str] = (),
    label_columns: int = 1,
) -> ReportTable:
    """Return a table with one row per row of a frame."""
    printed = [column for column in columns if column.head]
    names = list(dict.fromkeys(column.name for column in columns if column.name))
    return ReportTable(
        name=name,
        title=title,
        heads=tuple(column.head for column in printed),
        label_columns=label_columns,
        rows=tuple(tuple(column.field(row) for column in printed) for row in rows_of(frame)) if printed else (),
        notes=tuple(notes),
        data=frame[names],
    )


def printed_tables(tables: Iterable[ReportTable]) -> list[ReportTable]:
    """Return the tables that are not only data."""
    return [table for table in tables if not table.is_data]


def missing_score_tables(cells: DataFrame) -> list[ReportTable]:
    """Return a table of the cells without a score and the recorded reasons; no table if every cell has a score."""
    order = ["model", "task", "method", "rank", "a", "b", "seed", "id"]
    missing = cells[cells["score"].isna()].sort_values(order, na_position="first")
    if missing.empty:
        return []
    columns = [cell_column(name, name in MISSING_SCORE_HEADS) for name in MISSING_SCORE_DATA]
    return [build_table("unfinished", "Cells without a score", columns, missing)]


def cell_column(name: str, printed: bool = True) -> TableColumn:
    """Return the column of a table for a column of the cells, formatted as its definition says."""
    column = CELL_COLUMNS[name]
    numeric = column.dtype != "object" or name in _NUMERIC
    return TableColumn(name, column.head if printed else "", lambda row: column.text(row[name]), numeric)


_NUMERIC = ("lr", "head_lr", "alpha", "epochs", "batch_size", "max_length", "weight_decay", "warmup", "clip")


def percent(value: float | None, digits: int = 1) -> str:
    """Format a metric in [-1, 1] as it is printed: ×100, one decimal, no negative zero; a dash without a value."""
    if is_missing(value) or value is None:
        return DASH
    text = f"{100 * value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def signed_percent(value: float | None) -> str:
    """Format a difference of metrics, ×100 and with its sign."""
    text = percent(value)
    return text if text == DASH or text.startswith("-") or float(text) == 0 else f"+{text}"


def difference_interval_text(low: float | None, high: float | None) -> str:
    """Format the interval of a difference as `[-1.2, +0.3]`, ×100."""
    return DASH if is_missing(low) else f"[{signed_percent(low)}, {signed_percent(high)}]"


def score_interval_text(low: float | None, high: float | None) -> str:
    """Format the interval of a score as `[90.1, 91.3]`, ×100."""
    return DASH if is_missing(low) else f"[{percent(low)}, {percent(high)}]"


def p_text(value: float | None) -> str:
    """Format a p-value to two significant digits, `<0.001` if it is smaller."""
    if is_missing(value) or value is None:
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def p_relation(value: float | None) -> str:
    """Format a p-value to follow its name in a sentence: `= 0.013` or `< 0.001`."""
    text = p_text(value)
    return f"< {text[1:]}" if text.startswith("<") else f"= {text}"


def count_text(value: float | None) -> str:
    """Format a whole number with separators of thousands; a dash without a value."""
    return DASH if is_missing(value) or value is None else f"{int(value):,}"


def summary_text(row: Row, with_median: bool = False) -> str:
    """Format an entry as `91.2 ± 0.3 (5)`: mean ± sample deviation (seeds), all ×100.

    The count is `(4/5)` if a seed has no score, and a dagger marks fewer than three scores.
    """
    n, total = row["n"], row["seeds"]
    count = f"({n})" if n == total else f"({n}/{total})"
    if not n:
        return f"{DASH} {count}"
    spread = "" if is_missing(row["std"]) else f" ± {percent(row['std'])}"
    median = f"; {percent(row['median'])}" if spread and with_median else ""
    return f"{percent(row['mean'])}{spread}{median} {count}{'†' if n < 3 else ''}"


def lost_text(row: Row) -> str:
    """Format the number of seeds without a score by status, such as `1 failed, 2 diverged`."""
    return ", ".join(f"{row[name]} {name}" for name in STATUS_COLUMNS if row[name]) or "0"
