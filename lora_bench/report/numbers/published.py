"""Comparison with published numbers: the values of `published.json` beside what was run here, where comparable.

The file contains only what was read in the named source, or in a source that repeats it (`secondary`), with the
protocol as far as it is stated there; null stands for what is not stated. Nothing in it is from memory.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from lora_bench.report.numbers.entries import Column, Entry, Subset
from lora_bench.report.numbers.intervals import score_interval
from lora_bench.report.numbers.statistics import Interval, half_width, widen
from lora_bench.report.numbers.tables import (
    Field,
    ItemColumn,
    ReportTable,
    difference_interval_text,
    item_table,
    signed_percent,
)
from lora_bench.report.numbers.wording import metric_name, task_title
from lora_bench.tasks import TASKS

_TARGETS = {"qv": ("query", "value")}
_EPOCH_NAMES = {"best": "best epoch", "last": "last epoch", "held-out": "held-out epoch"}


@dataclass(frozen=True)
class PublishedValue:
    """One published value, with its source and its protocol.

    Attributes:
        row: the row's name in the published table.
        value: the score ×100, as printed.
        spread: the printed ±; None if there is none.
        source: the paper.
        table: the table in the paper.
        tag: how the value was obtained; `READ` if it was read in the source.
        secondary: whether another source than the original repeats it.
        start: what training starts from; None if that is not stated.
        epochs: the number of epochs; None if it is not stated.
        protocol: the protocol as in `published.json`.
    """

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
class PublishedComparison:
    """A published value compared with the most similar entry here.

    Attributes:
        published: the published value.
        entry: the most similar entry; None if the method was not run on the task.
        difference: the mean here less the published value, in the metric's units.
        interval: the 95% interval of the difference.
        verdict: `within` if the interval contains zero, else `outside`; or `not comparable`.
        reason: why they are not comparable, or what else differs.
    """

    published: PublishedValue
    entry: Entry | None
    difference: float | None
    interval: Interval | None
    verdict: str
    reason: str


@cache
def published_values() -> tuple[PublishedValue, ...]:
    """Read all published values of the data file."""
    text = resources.files("lora_bench.report").joinpath("published.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return tuple(_published_value(content, row, task) for row in content["rows"] for task in row["values"])


def compare_with_published(subsets: Sequence[Subset]) -> tuple[PublishedComparison, ...]:
    """Compare each published value with what was run here, whether that is comparable or not."""
    return tuple(_compare(value, subsets) for value in published_values())


def published_table(comparisons: Sequence[PublishedComparison]) -> ReportTable:
    """Return the comparisons as a table."""
    return item_table(
        name="published",
        title="Against the published numbers",
        columns=_COLUMNS,
        items=comparisons,
        label_columns=1,
        notes=(
            "difference: the mean here less the published value (a median of 5 seeds where its protocol is known). "
            "interval: of both, over seeds and examples here and over the published ± where one is printed. within: it "
            "holds zero. *: as repeated by another source.",
            "Of LoRA-Mini no number could be read; of LoRA-XS and CoRA none on RoBERTa-base.",
        ),
    )


def sentences(comparisons: Sequence[PublishedComparison]) -> list[str]:
    """Count the verdicts in a sentence."""
    verdicts = [comparison.verdict for comparison in comparisons]
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in ("within", "outside", "not comparable"))
    return [f"Of {len(comparisons)} published values: {counts}."]


def _published_value(content: Mapping[str, Any], row: Mapping[str, Any], task: str) -> PublishedValue:
    protocol = content["protocols"][row["protocol"]]
    value, *spread = row["values"][task]
    return PublishedValue(
        **{name: row[name] for name in ("row", "method", "rank", "model", "params", "table", "tag", "secondary")},
        task=task,
        metric=row.get("metric", {}).get(task, TASKS[task].main_metric),
        value=value,
        targets=tuple(row["targets"]) if row["targets"] else None,
        spread=spread[0] if spread else None,
        source=content["sources"][row["source"]],
        protocol=protocol,
        epochs=row.get("epochs", {}).get(task),
        start="mnli" if task in protocol["mnli_start"] else protocol["start"],
    )


def _compare(value: PublishedValue, subsets: Sequence[Subset]) -> PublishedComparison:
    """Compare a published value with the entry that differs from it in the fewest respects, the best one if several."""
    candidates = [
        (_incomparable_reasons(value, subset, column, entry), column, entry)
        for subset in subsets
        for column, entries in subset.columns.items()
        if column.task == value.task
        for entry in entries
        if entry.method == value.method and entry.init is None
    ]
    if not candidates:
        return PublishedComparison(value, None, None, None, "not comparable", "not run here")
    reasons, column, entry = min(
        candidates, key=lambda candidate: (len(candidate[0]), -(candidate[2].summary.mean or 0.0))
    )
    if reasons or entry.summary.mean is None:
        return PublishedComparison(value, entry, None, None, "not comparable", "; ".join(reasons) or "no score")
    return _compare_values(value, column, entry)


def _compare_values(value: PublishedValue, column: Column, entry: Entry) -> PublishedComparison:
    """Compare a published value with an entry of the same protocol, by the interval of their difference."""
    mean = statistics.fmean(entry.scores.values())
    difference, interval = mean - value.value / 100, score_interval(column, entry)
    differing = _differing_settings(value, entry)
    if interval is None:
        reason = "; ".join(("fewer than 3 seeds here", *differing))
        return PublishedComparison(value, entry, difference, None, "not comparable", reason)
    seeds = value.protocol["seeds"]
    half = half_width(value.spread / 100, seeds) if value.spread is not None and seeds else 0.0
    both = widen(interval, mean, half)
    shifted = Interval(both.low - value.value / 100, both.high - value.value / 100)
    verdict = "within" if shifted.low <= 0 <= shifted.high else "outside"
    return PublishedComparison(value, entry, difference, shifted, verdict, "; ".join(differing))


def _incomparable_reasons(value: PublishedValue, subset: Subset, column: Column, entry: Entry) -> list[str]:
    """Return why a published value and an entry must not be compared; empty if they may be."""
    scope, protocol = subset.scope, value.protocol
    checks = (
        (_model_name(scope["model"]) != value.model, f"other model ({scope['model']})"),
        (_has_other_rows(value.task, entry), "not GLUE's rows"),
        (scope["split"] != protocol["split"], f"other split ({scope['split']})"),
        (value.rank is not None and entry.rank != value.rank, f"other rank (r={entry.rank})"),
        (value.targets is not None and _target_names(subset) != value.targets, f"other targets ({subset.targets})"),
        (value.start is None, "what it starts from is not found"),
        (value.start == "mnli" and scope["start"] != "mnli", "MNLI start there"),
        (value.start == "pretrained" and scope["start"] != "pretrained", f"other start ({scope['start']})"),
        (column.metric != value.metric, f"metric variant ({metric_name(value.metric)})"),
        (protocol["select"] is None, "how its epoch was chosen is not found"),
        (protocol["select"] not in (None, scope["select"]), f"{_EPOCH_NAMES.get(str(protocol['select']))} there"),
    )
    return [reason for applies, reason in checks if applies]


def _differing_settings(value: PublishedValue, entry: Entry) -> Iterable[str]:
    """Yield the settings that differ but do not forbid the comparison, because they are part of what is compared."""
    for name, there in (("epochs", value.epochs), ("max_length", value.protocol["max_length"])):
        if there is not None and entry.settings[name] != there:
            yield f"{name.replace('_', ' ')} {entry.settings[name]} here, {there} there"


def _model_name(name: str) -> str:
    """Strip the owner and the revision: `FacebookAI/roberta-base@abc` becomes `roberta-base`."""
    return name.partition("@")[0].rpartition("/")[2]


def _target_names(subset: Subset) -> tuple[str, ...]:
    targets = subset.targets or ""
    return _TARGETS.get(targets, tuple(sorted(name.strip() for name in targets.split(","))))


def _has_other_rows(task: str, entry: Entry) -> bool:
    """Whether some cell was evaluated on another number of rows than GLUE has."""
    counts = {cell["record"].data.eval_rows for cell in entry.cells if cell["record"].data is not None}
    return counts != {TASKS[task].eval_rows}


def _published_field(comparison: PublishedComparison) -> Field:
    value = comparison.published
    spread = "" if value.spread is None else f" ± {value.spread:g}"
    return Field(f"{value.value:g}{spread}", numeric=False)


def _here_field(comparison: PublishedComparison) -> Field:
    entry = comparison.entry
    return Field(f"{entry.size}: {entry.summary.text()}" if entry else "—", numeric=False)


def _fraction(percentage: float | None) -> float | None:
    # Division by 100 leaves digits that nobody published.
    return None if percentage is None else round(percentage / 100, 6)


_column = ItemColumn[PublishedComparison]
_COLUMNS = (
    _column("row", lambda c: c.published.row),
    _column("", lambda c: f"{c.published.row}{'*' if c.published.secondary else ''}", "row"),
    _column("model", lambda c: c.published.model, "model"),
    _column("method", lambda c: c.published.method),
    _column("rank", lambda c: c.published.rank),
    _column("params", lambda c: c.published.params),
    _column("task", lambda c: c.published.task),
    _column("", lambda c: f"{task_title(c.published.task)} ({metric_name(c.published.metric)})", "task"),
    _column("metric", lambda c: c.published.metric),
    _column("published", lambda c: _fraction(c.published.value), "published", _published_field),
    _column("published_spread", lambda c: _fraction(c.published.spread)),
    _column("source", lambda c: c.published.source),
    _column("table", lambda c: c.published.table),
    _column("tag", lambda c: c.published.tag),
    _column("secondary", lambda c: c.published.secondary),
    _column("start", lambda c: c.published.start),
    _column("select", lambda c: c.published.protocol["select"]),
    _column("published_seeds", lambda c: c.published.protocol["seeds"]),
    _column("here", lambda c: c.entry and c.entry.size, "here", _here_field),
    _column("mean", lambda c: c.entry and c.entry.summary.mean),
    _column("median", lambda c: c.entry and c.entry.summary.median),
    _column("std", lambda c: c.entry and c.entry.summary.std),
    _column("n", lambda c: c.entry and c.entry.summary.n),
    _column("difference", lambda c: c.difference, "difference", lambda c: Field(signed_percent(c.difference))),
    _column(
        "low",
        lambda c: c.interval and c.interval.low,
        "95%\ninterval",
        lambda c: Field(difference_interval_text(c.interval), numeric=False),
    ),
    _column("high", lambda c: c.interval and c.interval.high),
    _column(
        "verdict", lambda c: c.verdict, "verdict", lambda c: Field(c.verdict, c.verdict == "within", numeric=False)
    ),
    _column("because", lambda c: c.reason, "because"),
)
