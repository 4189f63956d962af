"""The report's tables, independent of where they are written: accuracy by rank, the methods, what did not finish."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.report.captions import choice_notes, column_title, metric_name, task_title, uneven_notes
from lora_bench.report.frame import SCOPE, SETTINGS, plain_rows
from lora_bench.report.slots import Column, Entry, Piece, Slot, average, by_rank, order, pieces, plain_score

if TYPE_CHECKING:
    import pandas as pd

UNFINISHED = ("id", "model", "task", "targets", "method", "rank", "a", "b", "seed", "lr", "status", "reason")
_FACTS = ("adapter\nparams", "head\nparams", "no\nscore")
_SHORT = ("id", "task", "method", "rank", "a", "b", "seed", "lr", "status", "reason")


@dataclass(frozen=True)
class Field:
    """One place of a table as text from anywhere: whoever writes it escapes it. A `number` is aligned to the right."""

    text: str
    strong: bool = False
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table to be written in any form. `data` holds the same numbers unrounded, one row a place, for CSV.

    The first `labels` columns say which row it is; the last `footer` rows summarise those above.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    labels: int
    rows: tuple[tuple[Field, ...], ...]
    notes: tuple[str, ...]
    data: tuple[Mapping[str, object], ...]
    footer: int = 0


def tables(frame: pd.DataFrame) -> tuple[Table, ...]:
    """Every table of the frame: for each piece the methods, then by rank; at the end what did not finish."""
    found = []
    for piece in pieces(frame):
        found += [method_table(piece), *rank_tables(piece)]
    return (*found, *unfinished(frame))


def method_table(piece: Piece) -> Table:
    """Methods (with rank, a, b) down, tasks across; in each column the best, as printed, is strong."""
    by_row: dict[tuple[Any, ...], dict[Column, Slot]] = {}
    for column, slots in piece.columns.items():
        for slot in slots:
            by_row.setdefault((slot.rank is None, slot.label, slot.rank, slot.a, slot.b), {})[column] = slot
    ordered = sorted(by_row, key=lambda key: (not key[0], order(key[1:])))
    best = {column: _best(slot.entry for slot in slots) for column, slots in piece.columns.items()}
    every = [slot for cells in piece.columns.values() for slot in cells]
    return Table(
        name=f"methods {piece.title}",
        title=f"Methods: {piece.title}",
        heads=("method", "rank", "a", "b", *map(_head, piece.columns), *_FACTS),
        labels=4,
        rows=tuple(_method_row(by_row[key], piece.columns, best) for key in ordered),
        notes=choice_notes(every),
        data=tuple(
            _datum(piece, column, slot, slot.entry)
            for key in ordered
            for column, slot in by_row[key].items()
        ),
    )  # fmt: skip


def rank_tables(piece: Piece) -> list[Table]:
    """For each task: a table a method that has (a, b), with their average below, and one of the other methods."""
    found = []
    for column, slots in piece.columns.items():
        ranked = by_rank(slots)
        paired = {label: ranks for label, ranks in ranked.items() if _has_pairs(ranks)}
        single = {label: ranks for label, ranks in ranked.items() if label not in paired}
        found += [_pair_table(piece, column, label, ranks) for label, ranks in paired.items()]
        found += [_single_table(piece, column, single)] if single else []
    return found


def unfinished(frame: pd.DataFrame) -> list[Table]:
    """The cells without a score, with the reason recorded; nothing when every cell has one."""
    rows = plain_rows(frame[frame["score"].isna()], UNFINISHED)
    rows.sort(key=lambda row: order(row[name] for name in ("model", "task", "method", "rank", "a", "b", "seed", "id")))
    if not rows:
        return []
    fields = tuple(tuple(_plain(row[name], name) for name in _SHORT) for row in rows)
    data = tuple({name: row[name] for name in UNFINISHED} for row in rows)
    return [Table("unfinished", "Cells without a score", _SHORT, 1, fields, (), data)]


def _pair_table(piece: Piece, column: Column, label: str, ranks: dict[int, list[Slot]]) -> Table:
    at = {(rank, slot.pair): slot for rank, slots in ranks.items() for slot in slots}
    pairs = sorted({pair for _, pair in at}, key=order)
    mean = {rank: average(slots) for rank, slots in ranks.items()}
    rows = [(_plain(a), _plain(b), *(_entry(at.get((rank, (a, b)))) for rank in ranks)) for a, b in pairs]
    last = (_plain("average"), _plain(None), *(Field(mean[rank].text(), number=False) for rank in ranks))
    slots = [slot for slots in ranks.values() for slot in slots]
    return Table(
        name=f"rank {piece.title} {column.task} {label}",
        title=f"{column_title(column)} by rank: {label}; {piece.title}",
        heads=("a", "b", *(f"r={rank}" for rank in ranks)),
        labels=2,
        rows=(*rows, last),
        notes=(*choice_notes(slots), *uneven_notes(ranks, len(pairs))),
        data=(
            *(_datum(piece, column, slot, slot.entry) for slot in slots),
            *(_mean_datum(piece, column, ranks[rank][0], mean[rank]) for rank in ranks),
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
        rows=tuple((_plain(label), *(_entry(at.get((label, rank))) for rank in ranks)) for label in methods),
        notes=choice_notes(at.values()),
        data=tuple(_datum(piece, column, slot, slot.entry) for slot in at.values()),
    )


def _method_row(
    cells: Mapping[Column, Slot], columns: Iterable[Column], best: Mapping[Column, float | None]
) -> tuple[Field, ...]:
    slot = next(iter(cells.values()))
    failed = sum(cell.total - len(cell.scores) for cell in cells.values())
    return (
        *(_plain(value) for value in (slot.label, slot.rank, slot.a, slot.b)),
        *(_entry(cells.get(column), best[column]) for column in columns),
        _span(cell.adapter_params for cell in cells.values()),
        _span(cell.head_params for cell in cells.values()),
        _plain(failed),
    )


def _has_pairs(ranks: Mapping[int, Sequence[Slot]]) -> bool:
    return any(slot.pair != (None, None) for slots in ranks.values() for slot in slots)


def _best(entries: Iterable[Entry]) -> float | None:
    return max((plain_score(entry.mean) for entry in entries if entry.mean is not None), default=None)


def _entry(slot: Slot | None, best: float | None = None) -> Field:
    if slot is None:
        return Field("", number=False)
    entry = slot.entry
    return Field(entry.text(), best is not None and entry.mean is not None and plain_score(entry.mean) == best, False)


def _head(column: Column) -> str:
    return f"{task_title(column.task)}\n{metric_name(column.metric)}"


def _plain(value: object, name: str = "") -> Field:
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return Field(text, number=not isinstance(value, str) and name != "reason")


def _span(values: Iterable[int | None]) -> Field:
    known = sorted({value for value in values if value is not None})
    return Field("–".join(f"{value:,}" for value in dict.fromkeys((known[0], known[-1]))) if known else "—")


def _datum(piece: Piece, column: Column, slot: Slot, entry: Entry, kind: str = "slot") -> dict[str, object]:
    scope = {name: piece.scope[name] for name in SCOPE}
    place = {"targets": piece.targets, "task": column.task, "metric": column.metric, "kind": kind}
    which = {"method": slot.method, "init": slot.init, "rank": slot.rank, "a": slot.a, "b": slot.b}
    numbers = {
        "mean": entry.mean, "std": entry.std, "median": entry.median, "n": entry.n, "seeds": entry.total,
        "adapter_params": slot.adapter_params, "head_params": slot.head_params, "settings_tried": slot.tried,
    }  # fmt: skip
    return {**scope, **place, **which, **numbers, **{name: slot.settings[name] for name in SETTINGS}}


def _mean_datum(piece: Piece, column: Column, slot: Slot, entry: Entry) -> dict[str, object]:
    whole = _datum(piece, column, slot, entry, "average")
    return whole | dict.fromkeys(("a", "b", "adapter_params", "head_params", "settings_tried", *SETTINGS))
