"""Tables independent of the format they are written in, and the fields that several tables share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_bench.report.numbers.entries import Column, Entry, Subset, Summary, percent, printed_score
from lora_bench.report.numbers.rows import COUNTS, SCOPE, SETTINGS, CellRow, sort_key
from lora_bench.report.numbers.statistics import Interval
from lora_bench.report.numbers.wording import metric_name, task_title

MISSING_SCORE_DATA = ("id", "model", "task", "targets", "method", "rank", "a", "b", "seed", "lr", "status", "reason")
_MISSING_SCORE_HEADS = ("id", "task", "method", "rank", "a", "b", "seed", "lr", "status", "reason")


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
        data: the same numbers unrounded, for CSV and JSON, with one mapping per number (or per row where a row has only
            one).
        footer_rows: how many of the last rows summarise those above.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    label_columns: int
    rows: tuple[tuple[Field, ...], ...]
    notes: tuple[str, ...]
    data: tuple[Mapping[str, object], ...]
    footer_rows: int = 0


def missing_score_tables(rows: Iterable[CellRow]) -> list[ReportTable]:
    """Return a table of the cells without a score and the recorded reasons; no table if every cell has a score."""
    missing = [row for row in rows if row["score"] is None]
    order = ("model", "task", "method", "rank", "a", "b", "seed", "id")
    missing.sort(key=lambda row: sort_key(row[name] for name in order))
    if not missing:
        return []
    fields = tuple(tuple(plain_field(row[name], name) for name in _MISSING_SCORE_HEADS) for row in missing)
    data = tuple({name: row[name] for name in MISSING_SCORE_DATA} for row in missing)
    return [ReportTable("unfinished", "Cells without a score", _MISSING_SCORE_HEADS, 1, fields, (), data)]


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


def plain_field(value: object, name: str = "") -> Field:
    """Format a setting, a count or a word; the `reason` column is always text."""
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return Field(text, numeric=not isinstance(value, str) and name != "reason")


def range_field(values: Iterable[float | None], form: str = ",") -> Field:
    """Format a number, or the smallest and the largest if they differ; a dash without a number."""
    shown = [f"{value:{form}}" for value in sorted({value for value in values if value is not None})]
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
    scope: dict[str, object] = {name: subset.scope[name] for name in SCOPE}
    return scope | {"targets": subset.targets, "task": column.task, "metric": column.metric}


def entry_data(entry: Entry) -> dict[str, object]:
    """Return the unrounded data's fields that identify the method and its size."""
    return {"method": entry.method, "init": entry.init, "rank": entry.rank, "a": entry.a, "b": entry.b}


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
        "mean": summary.mean,
        "std": summary.std,
        "median": summary.median,
        "n": summary.n,
        "seeds": summary.total,
        "failed": missing["failed"],
        "diverged": missing["diverged"],
        **{name: entry.largest(name) for name in COUNTS},
        "seconds": entry.seconds(),
        "settings_tried": entry.settings_tried,
    }
    return {**subset_data(subset, column), "kind": kind, **entry_data(entry), **numbers, **entry.settings}


def average_data(subset: Subset, column: Column, entries: list[Entry], summary: Summary) -> dict[str, object]:
    """Return the unrounded numbers of an average over (a, b); what differs between its entries is left empty."""
    data = summary_data(subset, column, entries[0], summary, "average")
    counts = {status: sum(entry.missing[status] for entry in entries) for status in ("failed", "diverged")}
    empty = ("a", "b", *COUNTS, "seconds", "settings_tried", *SETTINGS)
    return data | dict.fromkeys(empty) | counts
