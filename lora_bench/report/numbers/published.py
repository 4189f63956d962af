"""Against the published numbers: what `published.json` holds beside what was run here, if they may be compared.

The file holds only what was read in the named source, or in a source that repeats it (`secondary`), with the protocol
as far as it was found; null is what was not found. Nothing in it is from memory.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from lora_bench.report.figures.captions import metric_name, task_title
from lora_bench.report.numbers.intervals import slot_interval
from lora_bench.report.numbers.slots import Column, Piece, Slot
from lora_bench.report.numbers.statistics import Interval, half_width, widened
from lora_bench.report.numbers.tables import Field, Table, interval_text, plain, signed
from lora_bench.tasks import TASKS

_TARGETS = {"qv": ("query", "value")}
_EPOCH = {"best": "best epoch", "last": "last epoch", "held-out": "held-out epoch"}


@dataclass(frozen=True)
class Published:
    """One published value, x100 as printed, `spread` its ± (or None), with where it is from and how it was made."""

    row: str
    method: str
    rank: int | None
    targets: tuple[str, ...] | None
    model: str
    params: str
    task: str
    metric: str
    value: float
    spread: float | None
    source: str
    table: str
    tag: str
    secondary: bool
    start: str | None
    epochs: int | None
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A published value against the nearest slot here: difference and interval x1, verdict, and why."""

    published: Published
    slot: Slot | None
    difference: float | None
    interval: Interval | None
    verdict: str
    because: str


@cache
def published() -> tuple[Published, ...]:
    """Every published value of the data file."""
    text = resources.files("lora_bench.report").joinpath("published.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return tuple(_value(content, row, task) for row in content["rows"] for task in row["values"])


def verdicts(pieces: Sequence[Piece]) -> tuple[Verdict, ...]:
    """Each published value with what was run here, whether that is comparable or not."""
    return tuple(_verdict(value, pieces) for value in published())


def published_table(found: Sequence[Verdict]) -> Table:
    """The verdicts as a table."""
    return Table(
        name="published",
        title="Against the published numbers",
        heads=("row", "model", "task", "published", "here", "difference", "95%\ninterval", "verdict", "because"),
        labels=1,
        rows=tuple(_row(each) for each in found),
        notes=(
            "difference: the mean here less the published value (a median of 5 seeds where its protocol is known). "
            "interval: of both, over seeds and examples here and over the published ± where one is printed. within: it "
            "holds zero. *: as repeated by another source.",
            "Of LoRA-Mini no number could be read; of LoRA-XS and CoRA none on RoBERTa-base.",
        ),
        data=tuple(_datum(each) for each in found),
    )


def sentences(found: Sequence[Verdict]) -> list[str]:
    """The verdicts counted, in words."""
    counts = {kind: sum(each.verdict == kind for each in found) for kind in ("within", "outside", "not comparable")}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return [f"Of {len(found)} published values: {told}."]


def _value(content: Mapping[str, Any], row: Mapping[str, Any], task: str) -> Published:
    protocol = content["protocols"][row["protocol"]]
    value, *spread = row["values"][task]
    return Published(
        **{name: row[name] for name in ("row", "method", "rank", "model", "params", "table", "tag", "secondary")},
        task=task, metric=row.get("metric", {}).get(task, TASKS[task].main_metric), value=value,
        targets=tuple(row["targets"]) if row["targets"] else None, spread=spread[0] if spread else None,
        source=content["sources"][row["source"]], protocol=protocol, epochs=row.get("epochs", {}).get(task),
        start="mnli" if task in protocol["mnli_start"] else protocol["start"],
    )  # fmt: skip


def _verdict(value: Published, pieces: Sequence[Piece]) -> Verdict:
    candidates = [
        (_reasons(value, piece, column, slot), column, slot)
        for piece in pieces
        for column, slots in piece.columns.items()
        if column.task == value.task
        for slot in slots
        if slot.method == value.method and slot.init is None
    ]
    if not candidates:
        return Verdict(value, None, None, None, "not comparable", "not run here")
    reasons, column, slot = min(candidates, key=lambda each: (len(each[0]), -(each[2].entry.mean or 0.0)))
    if reasons or slot.entry.mean is None:
        return Verdict(value, slot, None, None, "not comparable", "; ".join(reasons) or "no score")
    return _compared(value, column, slot)


def _compared(value: Published, column: Column, slot: Slot) -> Verdict:
    mean = statistics.fmean(slot.scores.values())
    difference, interval = mean - value.value / 100, slot_interval(column, slot)
    other = _other_settings(value, slot)
    if interval is None:
        return Verdict(value, slot, difference, None, "not comparable", "; ".join(("fewer than 3 seeds here", *other)))
    seeds = value.protocol["seeds"]
    half = half_width(value.spread / 100, seeds) if value.spread is not None and seeds else 0.0
    both = widened(interval, mean, half)
    shifted = Interval(both.low - value.value / 100, both.high - value.value / 100)
    verdict = "within" if shifted.low <= 0 <= shifted.high else "outside"
    return Verdict(value, slot, difference, shifted, verdict, "; ".join(other))


def _reasons(value: Published, piece: Piece, column: Column, slot: Slot) -> list[str]:
    """Why the two must not be compared; nothing if they may."""
    scope, protocol = piece.scope, value.protocol
    checks = (
        (_model(scope["model"]) != value.model, f"other model ({scope['model']})"),
        (_other_rows(value.task, slot), "not GLUE's rows"),
        (scope["split"] != protocol["split"], f"other split ({scope['split']})"),
        (value.rank is not None and slot.rank != value.rank, f"other rank (r={slot.rank})"),
        (value.targets is not None and _targets(piece) != value.targets, f"other targets ({piece.targets})"),
        (value.start is None, "what it starts from is not found"),
        (value.start == "mnli" and scope["start"] != "mnli", "MNLI start there"),
        (value.start == "pretrained" and scope["start"] != "pretrained", f"other start ({scope['start']})"),
        (column.metric != value.metric, f"metric variant ({metric_name(value.metric)})"),
        (protocol["select"] is None, "how its epoch was chosen is not found"),
        (protocol["select"] not in (None, scope["select"]), f"{_EPOCH.get(str(protocol['select']))} there"),
    )
    return [reason for applies, reason in checks if applies]


def _other_settings(value: Published, slot: Slot) -> Iterable[str]:
    """What differs without forbidding the comparison: a recipe is part of what is compared."""
    for name, there in (("epochs", value.epochs), ("max_length", value.protocol["max_length"])):
        if there is not None and slot.settings[name] != there:
            yield f"{name.replace('_', ' ')} {slot.settings[name]} here, {there} there"


def _model(name: str) -> str:
    return name.partition("@")[0].rpartition("/")[2]


def _targets(piece: Piece) -> tuple[str, ...]:
    named = piece.targets or ""
    return _TARGETS.get(named, tuple(sorted(part.strip() for part in named.split(","))))


def _other_rows(task: str, slot: Slot) -> bool:
    """Whether some cell was evaluated on another number of rows than GLUE has."""
    counts = {cell["record"].data.eval_rows for cell in slot.cells if cell["record"].data is not None}
    return counts != {TASKS[task].eval_rows}


def _row(each: Verdict) -> tuple[Field, ...]:
    value, slot = each.published, each.slot
    spread = "" if value.spread is None else f" ± {value.spread:g}"
    task = f"{task_title(value.task)} ({metric_name(value.metric)})"
    return (
        plain(f"{value.row}{'*' if value.secondary else ''}"), plain(value.model), plain(task),
        Field(f"{value.value:g}{spread}", number=False),
        Field(f"{slot.size}: {slot.entry.text()}" if slot else "—", number=False),
        Field(signed(each.difference)), Field(interval_text(each.interval), number=False),
        Field(each.verdict, each.verdict == "within", number=False), plain(each.because),
    )  # fmt: skip


def _datum(each: Verdict) -> dict[str, object]:
    value, slot, interval = each.published, each.slot, each.interval
    here = slot.entry if slot else None
    return {
        "row": value.row, "model": value.model, "method": value.method, "rank": value.rank, "params": value.params,
        "task": value.task, "metric": value.metric, "published": round(value.value / 100, 6),
        "published_spread": None if value.spread is None else round(value.spread / 100, 6), "source": value.source,
        "table": value.table, "tag": value.tag, "secondary": value.secondary, "start": value.start,
        "select": value.protocol["select"], "published_seeds": value.protocol["seeds"],
        "here": slot.size if slot else None, "mean": here.mean if here else None,
        "median": here.median if here else None, "std": here.std if here else None, "n": here.n if here else None,
        "difference": each.difference,
        "low": interval.low if interval else None, "high": interval.high if interval else None,
        "verdict": each.verdict, "because": each.because,
    }  # fmt: skip
