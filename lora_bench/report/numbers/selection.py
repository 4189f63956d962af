"""Which epoch is reported: best, last and held-out side by side, from the same cells."""

from __future__ import annotations

from collections.abc import Mapping

from lora_bench.report.numbers.entries import Column, Entry, Subset, Summary, summarise
from lora_bench.report.numbers.statistics import Interval, interval_data, seed_interval
from lora_bench.report.numbers.tables import (
    Field,
    ReportTable,
    data_frame,
    difference_interval_text,
    entry_data,
    plain_field,
    signed_percent,
    subset_data,
)
from lora_bench.report.numbers.wording import column_title

EPOCH_KINDS: Mapping[str, str] = {"best": "best epoch", "last": "last epoch", "held_out": "held-out epoch"}


def selection_tables(subset: Subset) -> list[ReportTable]:
    """Return a table with the best setting of each method, scored at each choice of the epoch.

    There is no table if no cell has a score.
    """
    best = [(column, entry) for column in subset.columns for entry in subset.best_entries(column).values()]
    chosen = [(column, entry) for column, entry in best if entry.scores]
    if not chosen:
        return []
    notes = [
        "The same cells, three ways to choose the epoch: best and last on the reported split, held-out by rows kept "
        "from train. best − last and best − held-out are what choosing on the reported split adds, paired by seed."
    ]
    if not any(entry.values("held_out") for _, entry in chosen):
        notes.append("held-out: not recorded here; run with --set select=held-out.")
    gain_heads = ("best − last", "95%\ninterval", "best − held-out", "95%\ninterval")
    table = ReportTable(
        name=f"epochs {subset.title}",
        title=f"Which epoch: {subset.title}",
        heads=("task", "method", *EPOCH_KINDS.values(), *gain_heads),
        label_columns=2,
        rows=tuple(_row(column, entry) for column, entry in chosen),
        notes=tuple(notes),
        data=data_frame(_data(subset, column, entry, kind) for column, entry in chosen for kind in EPOCH_KINDS),
    )
    return [table]


def _summary(entry: Entry, kind: str) -> Summary:
    return summarise(list(entry.values(kind).values()), len(entry.cells))


def _gain(entry: Entry, kind: str) -> tuple[Summary, Interval | None]:
    """Return the best epoch's score less that of another kind of epoch, paired by seed, with its interval."""
    best, other = entry.values("best"), entry.values(kind)
    differences = [best[seed] - other[seed] for seed in sorted(best.keys() & other.keys())]
    return summarise(differences, len(entry.cells)), seed_interval(differences)


def _row(column: Column, entry: Entry) -> tuple[Field, ...]:
    summaries = [_summary(entry, kind) for kind in EPOCH_KINDS]
    scores = [summary.text() if summary.n else "—" for summary in summaries]
    for kind in ("last", "held_out"):
        gain, interval = _gain(entry, kind)
        scores += [signed_percent(gain.mean), difference_interval_text(interval)]
    return (
        plain_field(column_title(column)),
        plain_field(entry.size),
        *(Field(text, numeric=False) for text in scores),
    )


def _data(subset: Subset, column: Column, entry: Entry, kind: str) -> dict[str, object]:
    summary = _summary(entry, kind)
    gain, interval = _gain(entry, kind)
    numbers = {
        "epoch": kind,
        **summary.data,
        "best_less_this": gain.mean,
        **interval_data(interval),
    }
    return subset_data(subset, column) | entry_data(entry) | numbers
