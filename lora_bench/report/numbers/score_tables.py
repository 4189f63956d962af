"""The tables of scores: methods by task with what they cost, score by rank, the best setting of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_bench.report.figures.captions import choice_notes, column_title, uneven_notes
from lora_bench.report.numbers.intervals import slot_interval
from lora_bench.report.numbers.rows import COUNTS, device_kind, order
from lora_bench.report.numbers.slots import Column, Piece, Slot, average, by_rank, has_pairs
from lora_bench.report.numbers.tables import (
    Field,
    Table,
    best_printed,
    column_head,
    datum,
    level_text,
    lost_field,
    mean_datum,
    plain,
    score_field,
    span,
)


def method_table(piece: Piece) -> Table:
    """Methods (with rank, a, b) down, tasks and costs across; in each column the best, as printed, is strong."""
    by_row: dict[tuple[Any, ...], dict[Column, Slot]] = {}
    for column, slots in piece.columns.items():
        for slot in slots:
            by_row.setdefault((slot.rank is None, slot.label, slot.rank, slot.a, slot.b), {})[column] = slot
    ordered = sorted(by_row, key=lambda key: (not key[0], order(key[1:])))
    best = {column: best_printed(slot.entry for slot in slots) for column, slots in piece.columns.items()}
    every = [slot for cells in piece.columns.values() for slot in cells]
    return Table(
        name=f"methods {piece.title}",
        title=f"Methods: {piece.title}",
        heads=("method", "rank", "a", "b", *map(column_head, piece.columns), *_cost_heads(piece)),
        labels=4,
        rows=tuple(_method_row(by_row[key], piece.columns, best) for key in ordered),
        notes=choice_notes(every),
        data=tuple(
            datum(piece, column, slot, slot.entry) for key in ordered for column, slot in by_row[key].items()
        ),
    )  # fmt: skip


def best_table(piece: Piece) -> Table:
    """For each task the best setting of each method, with its interval and its cost."""
    chosen = [(column, slot) for column in piece.columns for slot in piece.chosen(column).values()]
    best = {column: best_printed(slot.entry for slot in slots) for column, slots in piece.columns.items()}
    return Table(
        name=f"best {piece.title}",
        title=f"Best setting of each method: {piece.title}",
        heads=("task", "method", "rank", "a", "b", "lr", "score", "95%\ninterval", "of", *_cost_heads(piece)),
        labels=2,
        rows=tuple(_best_row(piece, column, slot, best[column]) for column, slot in chosen),
        notes=(
            "of: the number of settings (rank, a, b and all else) that it is the best of; the more, the more that "
            "flatters it. A setting with fewer than 3 scores is chosen only where there is none with 3.",
        ),
        data=tuple(_best_datum(piece, column, slot) for column, slot in chosen),
    )  # fmt: skip


def rank_tables(piece: Piece) -> list[Table]:
    """For each task: a table a method that has (a, b), with their average below, and one of the other methods."""
    found = []
    for column, slots in piece.columns.items():
        ranked = by_rank(slots)
        paired = {label: ranks for label, ranks in ranked.items() if has_pairs(ranks)}
        single = {label: ranks for label, ranks in ranked.items() if label not in paired}
        found += [_pair_table(piece, column, label, ranks) for label, ranks in paired.items()]
        found += [_single_table(piece, column, single)] if single else []
    return found


def _pair_table(piece: Piece, column: Column, label: str, ranks: dict[int, list[Slot]]) -> Table:
    at = {(rank, slot.pair): slot for rank, slots in ranks.items() for slot in slots}
    pairs = sorted({pair for _, pair in at}, key=order)
    mean = {rank: average(slots) for rank, slots in ranks.items()}
    rows = [(plain(a), plain(b), *(score_field(at.get((rank, (a, b)))) for rank in ranks)) for a, b in pairs]
    last = (plain("average"), plain(None), *(Field(mean[rank].text(), number=False) for rank in ranks))
    slots = [slot for slots in ranks.values() for slot in slots]
    return Table(
        name=f"rank {piece.title} {column.task} {label}",
        title=f"{column_title(column)} by rank: {label}; {piece.title}",
        heads=("a", "b", *(f"r={rank}" for rank in ranks)),
        labels=2,
        rows=(*rows, last),
        notes=(*choice_notes(slots), *uneven_notes(ranks, len(pairs))),
        data=(
            *(datum(piece, column, slot, slot.entry) for slot in slots),
            *(mean_datum(piece, column, ranks[rank], mean[rank]) for rank in ranks),
        ),
        footer=1,
    )


def _single_table(piece: Piece, column: Column, methods: dict[str, dict[int, list[Slot]]]) -> Table:
    ranks = sorted({rank for found in methods.values() for rank in found})
    at = {(label, rank): slots[0] for label, found in methods.items() for rank, slots in found.items()}
    return Table(
        name=f"rank {piece.title} {column.task} others",
        title=f"{column_title(column)} by rank: methods without (a, b); {piece.title}",
        heads=("method", *(f"r={rank}" for rank in ranks)),
        labels=1,
        rows=tuple((plain(label), *(score_field(at.get((label, rank))) for rank in ranks)) for label in methods),
        notes=choice_notes(at.values()),
        data=tuple(datum(piece, column, slot, slot.entry) for slot in at.values()),
    )


def _method_row(
    cells: Mapping[Column, Slot], columns: Mapping[Column, Sequence[Slot]], best: Mapping[Column, float | None]
) -> tuple[Field, ...]:
    slot = next(iter(cells.values()))
    return (
        *(plain(value) for value in (slot.label, slot.rank, slot.a, slot.b)),
        *(score_field(cells.get(column), best[column]) for column in columns),
        *_costs(list(cells.values())),
    )


def _best_row(piece: Piece, column: Column, slot: Slot, best: float | None) -> tuple[Field, ...]:
    interval = Field(level_text(slot_interval(column, slot)), number=False)
    return (
        plain(column_title(column)), *(plain(value) for value in (slot.label, slot.rank, slot.a, slot.b)),
        plain(slot.settings["lr"]), score_field(slot, best), interval,
        plain(_tried(piece, column, slot)), *_costs([slot]),
    )  # fmt: skip


def _best_datum(piece: Piece, column: Column, slot: Slot) -> dict[str, object]:
    interval = slot_interval(column, slot)
    ends = {"low": interval.low if interval else None, "high": interval.high if interval else None}
    return datum(piece, column, slot, slot.entry, "best") | ends | {"settings_tried": _tried(piece, column, slot)}


def _tried(piece: Piece, column: Column, slot: Slot) -> int:
    return sum(other.tried for other in piece.columns[column] if other.label == slot.label)


def _cost_heads(piece: Piece) -> tuple[str, ...]:
    kind = device_kind(cell for slots in piece.columns.values() for slot in slots for cell in slot.cells)
    sizes = ("adapter\nparams", "head\nparams", "adapter\nbytes", "bytes\nas fp16")
    return *sizes, f"{kind}seconds\na cell", "without\nscore"


def _costs(slots: Sequence[Slot]) -> tuple[Field, ...]:
    counts = (span(slot.largest(name) for slot in slots) for name in COUNTS)
    return *counts, span((slot.seconds() for slot in slots), ",.1f"), lost_field(slots)
