"""Tables independent of the format they are written in, and the fields that several tables share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from lora_bench.report.numbers.entries import Column, Entry, Subset, Summary, percent, printed_score
from lora_bench.report.numbers.frame import CELL_COLUMNS, COUNTS, ENTRY_FIELDS, SCOPE, SETTINGS, cells_of
from lora_bench.report.numbers.statistics import Interval
from lora_bench.report.numbers.wording import metric_name, task_title

if TYPE_CHECKING:
    from pandas import DataFrame

SUBSET_FIELDS = (*SCOPE, "targets", "task", "metric")
MISSING_SCORE_DATA = ("id", "model", "task", "targets", "method", "rank", "a", "b", "seed", "lr", "status", "reason")
MISSING_SCORE_HEADS = ("id", "task", "method", "rank", "a", "b", "seed", "lr", "status", "reason")


@dataclass(frozen=True)
class Field:
    """The text of one field of a table.

    The text may come from outside (model names, reasons): whoever writes it must escape it.

    Attributes:
        bold: whether it is emphasised.
        numeric: whether it is a number, which is aligned to the right.
    """

    text: str
    bold: bool = False
    numeric: bool = True


@dataclass(frozen=True)
class ReportTable:
    """A table that can be written in any format.

    Attributes:
        name: unique within the report; file names derive from it.
        heads: the column headings; a line break separates two lines.
        label_columns: how many of the first columns identify a row. They are repeated when a wide table is folded.
        rows: the formatted fields.
        notes: lines below the table.
        data: the same numbers unrounded, for CSV and JSON, with a row per number (or per printed row that has only
            one).
        footer_rows: how many of the last rows summarise those above.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    label_columns: int
    rows: tuple[tuple[Field, ...], ...]
    notes: tuple[str, ...]
    data: DataFrame = field(compare=False)
    footer_rows: int = 0


T = TypeVar("T")


@dataclass(frozen=True)
class ItemColumn(Generic[T]):
    """The definition of a column of a table with one row per item, used in every format.

    Attributes:
        name: its name in CSV and JSON; empty if it is only printed.
        value: returns its unrounded value for an item.
        head: its printed heading; empty if it is only in CSV and JSON.
        format: formats its field for an item; by default the value itself is printed.
    """

    name: str
    value: Callable[[T], object]
    head: str = ""
    format: Callable[[T], Field] | None = None

    def field(self, item: T) -> Field:
        """Return the printed field of an item."""
        return self.format(item) if self.format else plain_field(self.value(item))


def item_table(
    name: str,
    title: str,
    columns: Sequence[ItemColumn[T]],
    items: Sequence[T],
    notes: tuple[str, ...],
    label_columns: int,
) -> ReportTable:
    """Return a table with one row per item; both what is printed and the data follow from the columns."""
    printed = [column for column in columns if column.head]
    return ReportTable(
        name=name,
        title=title,
        heads=tuple(column.head for column in printed),
        label_columns=label_columns,
        rows=tuple(tuple(column.field(item) for column in printed) for item in items),
        notes=notes,
        data=data_frame({column.name: column.value(item) for column in columns if column.name} for item in items),
    )


def data_frame(rows: Iterable[Mapping[str, object]]) -> DataFrame:
    """Return the data of a table as a frame of Python objects, in which integers stay integers and None stays None."""
    import pandas as pd

    return pd.DataFrame(list(rows), dtype=object)


def missing_score_tables(cells: DataFrame) -> list[ReportTable]:
    """Return a table of the cells without a score and the recorded reasons; no table if every cell has a score."""
    order = ["model", "task", "method", "rank", "a", "b", "seed", "id"]
    missing = cells[cells["score"].isna()].sort_values(order, na_position="first")
    if missing.empty:
        return []
    heads = tuple(CELL_COLUMNS[name].head for name in MISSING_SCORE_HEADS)
    rows = tuple(tuple(cell_field(name, cell[name]) for name in MISSING_SCORE_HEADS) for cell in cells_of(missing))
    data = missing[[*MISSING_SCORE_DATA]]
    return [ReportTable("unfinished", "Cells without a score", heads, 1, rows, (), data)]


def best_printed_mean(summaries: Iterable[Summary]) -> float | None:
    """Return the best mean, rounded as it is printed; None without a score."""
    return max((printed_score(summary.mean) for summary in summaries if summary.mean is not None), default=None)


def score_field(entry: Entry | None, best: float | None = None) -> Field:
    """Format an entry's summary, in bold if its mean prints as the best of its column."""
    if entry is None:
        return Field("", numeric=False)
    summary = entry.summary
    bold = best is not None and summary.mean is not None and printed_score(summary.mean) == best
    return Field(summary.text(), bold, numeric=False)


def column_head(column: Column) -> str:
    """Return the heading of a column of scores: the task above the metric."""
    return f"{task_title(column.task)}\n{metric_name(column.metric)}"


def cell_field(name: str, value: object) -> Field:
    """Format a value of a column of the cells as the column's definition says."""
    column = CELL_COLUMNS[name]
    return Field(column.text(value), numeric=not isinstance(value, str) and not column.words)


def plain_field(value: object) -> Field:
    """Format a word or a whole number; a missing one is empty."""
    return Field("" if value is None else str(value), numeric=not isinstance(value, str))


def range_field(name: str, values: Iterable[float | None]) -> Field:
    """Format the value of a column of the cells, or the smallest and the largest if they differ; a dash without one."""
    shown = [CELL_COLUMNS[name].text(value) for value in sorted({value for value in values if value is not None})]
    return Field("–".join(dict.fromkeys((shown[0], shown[-1]))) if shown else "—")


def missing_field(entries: Iterable[Entry]) -> Field:
    """Format the number of seeds without a score by status, such as `1 failed, 2 diverged`."""
    counts = dict.fromkeys(("failed", "diverged", "undefined"), 0)
    for entry in entries:
        for status, count in entry.missing.items():
            counts[status] += count
    return Field(", ".join(f"{count} {status}" for status, count in counts.items() if count) or "0")


def signed_percent(value: float | None) -> str:
    """Format a difference of metrics, ×100 and with its sign."""
    if value is None:
        return "—"
    text = percent(value)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def difference_interval_text(interval: Interval | None) -> str:
    """Format the interval of a difference as `[-1.2, +0.3]`, ×100."""
    return "—" if interval is None else f"[{signed_percent(interval.low)}, {signed_percent(interval.high)}]"


def score_interval_text(interval: Interval | None) -> str:
    """Format the interval of a score as `[90.1, 91.3]`, ×100."""
    return "—" if interval is None else f"[{percent(interval.low)}, {percent(interval.high)}]"


def p_text(value: float | None) -> str:
    """Format a p-value to two significant digits, `<0.001` if it is smaller."""
    return "—" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def p_relation(value: float | None) -> str:
    """Format a p-value to follow its name in a sentence: `= 0.013` or `< 0.001`."""
    text = p_text(value)
    return f"< {text[1:]}" if text.startswith("<") else f"= {text}"


def subset_data(subset: Subset, column: Column) -> dict[str, object]:
    """Return the unrounded data's fields that identify the subset, the task and the metric."""
    values = (*(subset.scope[name] for name in SCOPE), subset.targets, column.task, column.metric)
    return dict(zip(SUBSET_FIELDS, values, strict=True))


def entry_data(entry: Entry) -> dict[str, object]:
    """Return the unrounded data's fields that identify the method and its size."""
    return {name: getattr(entry, name) for name in ENTRY_FIELDS}


def summary_data(
    subset: Subset, column: Column, entry: Entry, summary: Summary, kind: str = "slot"
) -> dict[str, object]:
    """Return an entry's unrounded numbers with everything that identifies them.

    Args:
        subset: the subset that the entry belongs to.
        column: the task and metric.
        entry: the entry.
        summary: the numbers, usually the entry's own.
        kind: the value of the `kind` column. `slot`, the column's older word for an entry, stays for its readers.
    """
    missing = entry.missing
    numbers = {
        "failed": missing["failed"],
        "diverged": missing["diverged"],
        **{name: entry.largest(name) for name in COUNTS},
        "seconds": entry.seconds(),
        "settings_tried": entry.settings_tried,
    }
    identity = {**subset_data(subset, column), "kind": kind, **entry_data(entry)}
    return {**identity, **summary.data, **numbers, **entry.settings}


def average_data(subset: Subset, column: Column, entries: list[Entry], summary: Summary) -> dict[str, object]:
    """Return the unrounded numbers of an average over (a, b); what differs between its entries is left empty."""
    data = summary_data(subset, column, entries[0], summary, "average")
    counts = {status: sum(entry.missing[status] for entry in entries) for status in ("failed", "diverged")}
    empty = ("a", "b", *COUNTS, "seconds", "settings_tried", *SETTINGS)
    return data | dict.fromkeys(empty) | counts
