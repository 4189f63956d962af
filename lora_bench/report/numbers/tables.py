"""What a table is, independent of where it is written, and the fields that all tables share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_bench.report.figures.captions import metric_name, task_title
from lora_bench.report.numbers.rows import COUNTS, SCOPE, SETTINGS, Row, order
from lora_bench.report.numbers.slots import Column, Entry, Piece, Slot, percent, plain_score
from lora_bench.report.numbers.statistics import Interval

UNFINISHED = ("id", "model", "task", "targets", "method", "rank", "a", "b", "seed", "lr", "status", "reason")
_SHORT = ("id", "task", "method", "rank", "a", "b", "seed", "lr", "status", "reason")


@dataclass(frozen=True)
class Field:
    """One place of a table as text from anywhere: whoever writes it escapes it. A `number` is aligned to the right."""

    text: str
    strong: bool = False
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table to be written in any form. `data` holds the same numbers unrounded, one row a place, for CSV and JSON.

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


def unfinished(rows: Iterable[Row]) -> list[Table]:
    """The cells without a score, with the reason recorded; nothing when every cell has one."""
    found = [row for row in rows if row["score"] is None]
    found.sort(key=lambda row: order(row[name] for name in ("model", "task", "method", "rank", "a", "b", "seed", "id")))
    if not found:
        return []
    fields = tuple(tuple(plain(row[name], name) for name in _SHORT) for row in found)
    data = tuple({name: row[name] for name in UNFINISHED} for row in found)
    return [Table("unfinished", "Cells without a score", _SHORT, 1, fields, (), data)]


def best_printed(entries: Iterable[Entry]) -> float | None:
    """The best mean, as printed."""
    return max((plain_score(entry.mean) for entry in entries if entry.mean is not None), default=None)


def score_field(slot: Slot | None, best: float | None = None) -> Field:
    """The numbers of a slot, strong when they print as the best."""
    if slot is None:
        return Field("", number=False)
    entry = slot.entry
    return Field(entry.text(), best is not None and entry.mean is not None and plain_score(entry.mean) == best, False)


def column_head(column: Column) -> str:
    """Task over metric."""
    return f"{task_title(column.task)}\n{metric_name(column.metric)}"


def plain(value: object, name: str = "") -> Field:
    """A setting, a count or a word as it is."""
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return Field(text, number=not isinstance(value, str) and name != "reason")


def span(values: Iterable[float | None], form: str = ",") -> Field:
    """A number, or the least and the largest where they differ; a dash where there is none."""
    shown = [f"{value:{form}}" for value in sorted({value for value in values if value is not None})]
    return Field("–".join(dict.fromkeys((shown[0], shown[-1]))) if shown else "—")


def lost_field(slots: Iterable[Slot]) -> Field:
    """How many seeds have no score, by how they ended."""
    counts = dict.fromkeys(("failed", "diverged", "undefined"), 0)
    for slot in slots:
        for kind, count in slot.lost.items():
            counts[kind] += count
    return Field(", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "0")


def signed(value: float | None) -> str:
    """A difference of metrics, x100, with its sign."""
    if value is None:
        return "—"
    text = percent(value)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def interval_text(interval: Interval | None) -> str:
    """`[-1.2, +0.3]`, x100."""
    return "—" if interval is None else f"[{signed(interval.low)}, {signed(interval.high)}]"


def level_text(interval: Interval | None) -> str:
    """`[90.1, 91.3]`, x100."""
    return "—" if interval is None else f"[{percent(interval.low)}, {percent(interval.high)}]"


def p_text(value: float | None) -> str:
    """A p-value to two digits that count."""
    return "—" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def p_words(value: float | None) -> str:
    """`= 0.013` or `< 0.001`, after the name of the p-value."""
    text = p_text(value)
    return f"< {text[1:]}" if text.startswith("<") else f"= {text}"


def place(piece: Piece, column: Column) -> dict[str, object]:
    """Which piece, task and metric a row of data is of."""
    scope: dict[str, object] = {name: piece.scope[name] for name in SCOPE}
    return scope | {"targets": piece.targets, "task": column.task, "metric": column.metric}


def which(slot: Slot) -> dict[str, object]:
    """Which method and size."""
    return {"method": slot.method, "init": slot.init, "rank": slot.rank, "a": slot.a, "b": slot.b}


def datum(piece: Piece, column: Column, slot: Slot, entry: Entry, kind: str = "slot") -> dict[str, object]:
    """A slot's numbers, unrounded, with everything that says what they are of."""
    lost = slot.lost
    numbers = {
        "mean": entry.mean, "std": entry.std, "median": entry.median, "n": entry.n, "seeds": entry.total,
        "failed": lost["failed"], "diverged": lost["diverged"], **{name: slot.largest(name) for name in COUNTS},
        "seconds": slot.seconds(), "settings_tried": slot.tried,
    }  # fmt: skip
    return {**place(piece, column), "kind": kind, **which(slot), **numbers, **slot.settings}


def mean_datum(piece: Piece, column: Column, slots: list[Slot], entry: Entry) -> dict[str, object]:
    """The same for an average over (a, b): what differs between its slots is left empty."""
    whole = datum(piece, column, slots[0], entry, "average")
    counts = {kind: sum(slot.lost[kind] for slot in slots) for kind in ("failed", "diverged")}
    empty = ("a", "b", *COUNTS, "seconds", "settings_tried", *SETTINGS)
    return whole | dict.fromkeys(empty) | counts
