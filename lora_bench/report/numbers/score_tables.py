"""The tables of scores: methods by task with their costs, score by rank, the best setting of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_bench.report.numbers.entries import Column, Entry, Subset, average_summary, group_by_rank, has_pairs
from lora_bench.report.numbers.frame import CELL_COLUMNS, COUNTS, device_prefix, sort_key
from lora_bench.report.numbers.intervals import score_interval
from lora_bench.report.numbers.statistics import interval_data
from lora_bench.report.numbers.tables import (
    Field,
    ReportTable,
    average_data,
    best_printed_mean,
    cell_field,
    column_head,
    data_frame,
    missing_field,
    plain_field,
    range_field,
    score_field,
    score_interval_text,
    summary_data,
)
from lora_bench.report.numbers.wording import column_title, selection_notes, uneven_notes

_SIZE = ("method", "rank", "a", "b")


def method_table(subset: Subset) -> ReportTable:
    """Return the table with methods (by rank, a, b) down and tasks and costs across."""
    by_size: dict[tuple[Any, ...], dict[Column, Entry]] = {}
    for column, entries in subset.columns.items():
        for entry in entries:
            key = (entry.rank is None, entry.label, entry.rank, entry.a, entry.b)
            by_size.setdefault(key, {})[column] = entry
    # Methods without a rank (head, full) come first.
    ordered = sorted(by_size, key=lambda key: (not key[0], sort_key(key[1:])))
    best = {column: best_printed_mean(entry.summary for entry in entries) for column, entries in subset.columns.items()}
    all_entries = [entry for entries in subset.columns.values() for entry in entries]
    return ReportTable(
        name=f"methods {subset.title}",
        title=f"Methods: {subset.title}",
        heads=(*_cell_heads(*_SIZE), *map(column_head, subset.columns), *_cost_heads(subset)),
        label_columns=4,
        rows=tuple(_method_row(by_size[key], subset.columns, best) for key in ordered),
        notes=selection_notes(all_entries),
        data=data_frame(
            summary_data(subset, column, entry, entry.summary)
            for key in ordered
            for column, entry in by_size[key].items()
        ),
    )


def best_table(subset: Subset) -> ReportTable:
    """Return the table of each method's best setting per task, with its interval and its costs."""
    chosen = [(column, entry) for column in subset.columns for entry in subset.best_entries(column).values()]
    best = {column: best_printed_mean(entry.summary for entry in entries) for column, entries in subset.columns.items()}
    return ReportTable(
        name=f"best {subset.title}",
        title=f"Best setting of each method: {subset.title}",
        heads=(*_cell_heads("task", *_SIZE, "lr"), "score", "95%\ninterval", "of", *_cost_heads(subset)),
        label_columns=2,
        rows=tuple(_best_row(subset, column, entry, best[column]) for column, entry in chosen),
        notes=(
            "of: the number of settings (rank, a, b and all else) that it is the best of; the more, the more that "
            "flatters it. A setting with fewer than 3 scores is chosen only where there is none with 3.",
        ),
        data=data_frame(_best_data(subset, column, entry) for column, entry in chosen),
    )


def rank_tables(subset: Subset) -> list[ReportTable]:
    """Return for each task a table per method with (a, b), and one table of all other methods with a rank."""
    tables = []
    for column, entries in subset.columns.items():
        methods = group_by_rank(entries)
        paired = {label: ranks for label, ranks in methods.items() if has_pairs(ranks)}
        others = {label: ranks for label, ranks in methods.items() if label not in paired}
        tables += [_pair_table(subset, column, label, ranks) for label, ranks in paired.items()]
        tables += [_others_table(subset, column, others)] if others else []
    return tables


def _pair_table(subset: Subset, column: Column, label: str, ranks: dict[int, list[Entry]]) -> ReportTable:
    """Return the table of one method: (a, b) down, ranks across, and the average over (a, b) in the last row."""
    by_size = {(rank, entry.pair): entry for rank, entries in ranks.items() for entry in entries}
    pairs = sorted({pair for _, pair in by_size}, key=sort_key)
    averages = {rank: average_summary(entries) for rank, entries in ranks.items()}
    rows = [
        (plain_field(a), plain_field(b), *(score_field(by_size.get((rank, (a, b)))) for rank in ranks))
        for a, b in pairs
    ]
    average_fields = (Field(averages[rank].text(), numeric=False) for rank in ranks)
    entries = [entry for entries in ranks.values() for entry in entries]
    return ReportTable(
        name=f"rank {subset.title} {column.task} {label}",
        title=f"{column_title(column)} by rank: {label}; {subset.title}",
        heads=("a", "b", *(f"r={rank}" for rank in ranks)),
        label_columns=2,
        rows=(*rows, (plain_field("average"), plain_field(None), *average_fields)),
        notes=(*selection_notes(entries), *uneven_notes(ranks, len(pairs))),
        data=data_frame(
            [
                *(summary_data(subset, column, entry, entry.summary) for entry in entries),
                *(average_data(subset, column, ranks[rank], averages[rank]) for rank in ranks),
            ]
        ),
        footer_rows=1,
    )


def _others_table(subset: Subset, column: Column, methods: dict[str, dict[int, list[Entry]]]) -> ReportTable:
    """Return the table of the methods without (a, b): methods down, ranks across."""
    ranks = sorted({rank for by_rank in methods.values() for rank in by_rank})
    by_size = {(label, rank): entries[0] for label, by_rank in methods.items() for rank, entries in by_rank.items()}
    return ReportTable(
        name=f"rank {subset.title} {column.task} others",
        title=f"{column_title(column)} by rank: methods without (a, b); {subset.title}",
        heads=("method", *(f"r={rank}" for rank in ranks)),
        label_columns=1,
        rows=tuple(
            (plain_field(label), *(score_field(by_size.get((label, rank))) for rank in ranks)) for label in methods
        ),
        notes=selection_notes(by_size.values()),
        data=data_frame(summary_data(subset, column, entry, entry.summary) for entry in by_size.values()),
    )


def _cell_heads(*names: str) -> tuple[str, ...]:
    return tuple(CELL_COLUMNS[name].head for name in names)


def _size_fields(entry: Entry) -> tuple[Field, ...]:
    values = (entry.label, entry.rank, entry.a, entry.b)
    return tuple(cell_field(name, value) for name, value in zip(_SIZE, values, strict=True))


def _method_row(
    entries: Mapping[Column, Entry], columns: Mapping[Column, Sequence[Entry]], best: Mapping[Column, float | None]
) -> tuple[Field, ...]:
    """Format the entries of one method at one size; tasks without an entry stay empty."""
    return (
        *_size_fields(next(iter(entries.values()))),
        *(score_field(entries.get(column), best[column]) for column in columns),
        *_cost_fields(list(entries.values())),
    )


def _best_row(subset: Subset, column: Column, entry: Entry, best: float | None) -> tuple[Field, ...]:
    return (
        plain_field(column_title(column)),
        *_size_fields(entry),
        cell_field("lr", entry.settings["lr"]),
        score_field(entry, best),
        Field(score_interval_text(score_interval(column, entry)), numeric=False),
        plain_field(_settings_tried(subset, column, entry)),
        *_cost_fields([entry]),
    )


def _best_data(subset: Subset, column: Column, entry: Entry) -> dict[str, object]:
    limits = interval_data(score_interval(column, entry))
    settings_tried = {"settings_tried": _settings_tried(subset, column, entry)}
    return summary_data(subset, column, entry, entry.summary, "best") | limits | settings_tried


def _settings_tried(subset: Subset, column: Column, entry: Entry) -> int:
    """Return the number of settings of a method on a task, over all of its sizes."""
    return sum(other.settings_tried for other in subset.columns[column] if other.label == entry.label)


def _cost_heads(subset: Subset) -> tuple[str, ...]:
    prefix = device_prefix(cell for entries in subset.columns.values() for entry in entries for cell in entry.cells)
    return *_cell_heads(*COUNTS), f"{prefix}{CELL_COLUMNS['seconds'].head}", "without\nscore"


def _cost_fields(entries: Sequence[Entry]) -> tuple[Field, ...]:
    counts = (range_field(name, (entry.largest(name) for entry in entries)) for name in COUNTS)
    return *counts, range_field("seconds", (entry.seconds() for entry in entries)), missing_field(entries)
