"""Which epoch is reported: best, last and held-out side by side, from the same cells."""

from __future__ import annotations

from collections.abc import Mapping

from lora_bench.report.figures.captions import column_title
from lora_bench.report.numbers.slots import Column, Entry, Piece, Slot, entry
from lora_bench.report.numbers.statistics import Interval, over_seeds
from lora_bench.report.numbers.tables import Field, Table, interval_text, place, plain, signed, which

KINDS: Mapping[str, str] = {"best": "best epoch", "last": "last epoch", "held_out": "held-out epoch"}


def selection_tables(piece: Piece) -> list[Table]:
    """For the best setting of each method: the score by each way to choose the epoch; nothing without a score."""
    chosen = [(column, slot) for column in piece.columns for slot in piece.chosen(column).values() if slot.scores]
    if not chosen:
        return []
    every = {kind: any(slot.values(kind) for _, slot in chosen) for kind in KINDS}
    notes = [
        "The same cells, three ways to choose the epoch: best and last on the reported split, held-out by rows kept "
        "from train. best − last and best − held-out are what choosing on the reported split adds, paired by seed."
    ]
    if not every["held_out"]:
        notes.append("held-out: not recorded here; run with --set select=held-out.")
    table = Table(
        name=f"epochs {piece.title}",
        title=f"Which epoch: {piece.title}",
        heads=("task", "method", *KINDS.values(), "best − last", "95%\ninterval", "best − held-out", "95%\ninterval"),
        labels=2,
        rows=tuple(_row(column, slot) for column, slot in chosen),
        notes=tuple(notes),
        data=tuple(_datum(piece, column, slot, kind) for column, slot in chosen for kind in KINDS),
    )
    return [table]


def _entry(slot: Slot, kind: str) -> Entry:
    return entry(list(slot.values(kind).values()), len(slot.cells))


def _gain(slot: Slot, kind: str) -> tuple[Entry, Interval | None]:
    best, other = slot.values("best"), slot.values(kind)
    found = [best[seed] - other[seed] for seed in sorted(best.keys() & other.keys())]
    return entry(found, len(slot.cells)), over_seeds(found)


def _row(column: Column, slot: Slot) -> tuple[Field, ...]:
    scores = (Field(found.text() if (found := _entry(slot, kind)).n else "—", number=False) for kind in KINDS)
    gains = [_gain(slot, kind) for kind in ("last", "held_out")]
    shown = (Field(text, number=False) for gain, ends in gains for text in (signed(gain.mean), interval_text(ends)))
    return plain(column_title(column)), plain(slot.size), *scores, *shown


def _datum(piece: Piece, column: Column, slot: Slot, kind: str) -> dict[str, object]:
    found = _entry(slot, kind)
    gain, ends = _gain(slot, kind)
    return place(piece, column) | which(slot) | {
        "epoch": kind, "mean": found.mean, "std": found.std, "median": found.median, "n": found.n, "seeds": found.total,
        "best_less_this": gain.mean, "low": ends.low if ends else None, "high": ends.high if ends else None,
    }  # fmt: skip
