"""Comparison with published numbers: the values of `published.json` beside what was run here, where comparable.

The file contains only what was read in the named source, or in a source that repeats it (`secondary`), with the
protocol as far as it is stated there; null stands for what is not stated. Nothing in it is from memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.entries import Column, Scope, short_model
from lora_bench.report.numbers.frame import Row, rows_of
from lora_bench.report.numbers.statistics import half_width
from lora_bench.report.numbers.tables import (
    ReportTable,
    TableColumn,
    build_table,
    difference_interval_text,
    percent,
    signed_percent,
    summary_text,
)
from lora_bench.report.numbers.wording import metric_name, set_text, task_title
from lora_bench.tasks import TASKS

if TYPE_CHECKING:
    from pandas import DataFrame

_TARGETS = {"qv": ("query", "value")}
# The six tasks that most papers report.
_SIX = ("sst2", "mrpc", "cola", "qnli", "rte", "stsb")
_EPOCH_NAMES = {"best": "best epoch", "last": "last epoch", "held-out": "held-out epoch"}


@dataclass(frozen=True)
class PublishedValue:
    """One published value, with its source and its protocol.

    Attributes:
        row: The row's name in the published table.
        value: The score ×100, as printed.
        spread: The printed ±; None if there is none.
        source: The paper.
        table: The table in the paper.
        tag: How the value was obtained; `READ` if it was read in the source.
        secondary: Whether another source than the original repeats it.
        start: What training starts from; None if that is not stated.
        epochs: The number of epochs; None if it is not stated.
        protocol: The protocol as in `published.json`.
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


@cache
def published_values() -> tuple[PublishedValue, ...]:
    """Read all published values of the data file."""
    text = resources.files("lora_bench.report").joinpath("published.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return tuple(_published_value(content, row, task) for row in content["rows"] for task in row["values"])


def published_tables(statistics: Sequence[ScopeStatistics]) -> list[ReportTable]:
    """Return the table of averages with their protocols, and each value beside what was run here."""
    return [_average_table(), _value_table(compare_with_published(statistics))]


def compare_with_published(statistics: Sequence[ScopeStatistics]) -> DataFrame:
    """Compare each published value with what was run here, whether that is comparable or not.

    Returns:
        A row per value: the published value with its source and protocol; the most similar entry here, if there is one;
        `difference`, the mean here less the published value, with its interval; `verdict`: within if the interval holds
        zero, else outside, or not comparable; `because`, why not, or what else differs.
    """
    import pandas as pd

    candidates = [_candidates(scope_statistics) for scope_statistics in statistics]
    return pd.DataFrame([_compare(value, candidates) for value in published_values()])


def sentences(comparisons: DataFrame) -> list[str]:
    """Count the verdicts, and say what LoRA's best-known number is."""
    verdicts = comparisons["verdict"].tolist()
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in ("within", "outside", "not comparable"))
    averages = {(row["source"], row["row"]): row for row in _averages()}
    lora = averages["LoRA, arXiv 2106.09685", "LoRA r=8"]
    others = [averages["RED", "LoRA"], averages["C3A", "LoRA r=8"]]
    held_out = " and ".join(f"{100 * row['average']:.1f} ({row['source']})" for row in others)
    return [
        f"Of {len(verdicts)} published values: {counts}.",
        f"LoRA's {100 * lora['average']:.1f} (RoBERTa-base, average of {set_text(_SIX)}) is of runs that start from "
        f"MNLI on three tasks, at the best epoch on the reported split; with held-out rows, others report {held_out} "
        "for LoRA.",
    ]


def _averages() -> list[dict[str, Any]]:
    """Return the average of the six tasks for each published row that has all of them."""
    rows: dict[tuple[str, ...], dict[str, PublishedValue]] = {}
    for value in published_values():
        rows.setdefault((value.source, value.table, value.model, value.row), {})[value.task] = value
    averages: list[dict[str, Any]] = []
    for values in rows.values():
        if set(_SIX) <= set(values):
            first = values[_SIX[0]]
            average = math.fsum(values[task].value for task in _SIX) / len(_SIX) / 100
            averages.append(_identity(first) | {"average": round(average, 6)})
    return averages


def _average_table() -> ReportTable:
    import pandas as pd

    columns = [
        TableColumn("row", "row", _row_text),
        TableColumn("model", "model"),
        TableColumn("params", "trained\nvalues"),
        TableColumn("average", "average", lambda row: percent(row["average"]), numeric=True),
        TableColumn("protocol", "protocol"),
        TableColumn("source", "source"),
        *(TableColumn(name) for name in ("method", "rank", "table", "tag", "secondary", "published_seeds", "select")),
    ]
    frame = pd.DataFrame(_averages()).sort_values(["model", "protocol"], kind="stable", ascending=[False, True])
    notes = (f"Average of {set_text(_SIX)}, computed from the published values. *: as repeated by another source.",)
    title = "Published averages and what they are averages of"
    return build_table("published averages", title, columns, frame, notes, 2)


def _value_table(comparisons: DataFrame) -> ReportTable:
    return build_table(
        name="published",
        title="Against the published numbers",
        columns=_COLUMNS,
        frame=comparisons,
        label_columns=1,
        notes=(
            "difference: the mean here less the published value (a median of 5 seeds where its protocol is known). "
            "interval: of both, over seeds and examples here and over the published ± where one is printed. within: "
            "it holds zero. *: as repeated by another source.",
            "Of LoRA-Mini no number could be read; of LoRA-XS and CoRA none on RoBERTa-base.",
        ),
    )


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


def _candidates(statistics: ScopeStatistics) -> list[tuple[Scope, Column, Row]]:
    """Return the entries of a scope with their intervals."""
    candidates: list[tuple[Scope, Column, Row]] = []
    for column in statistics.scope.tasks:
        low, high = statistics.intervals(column)
        cells = statistics.scope.cells
        rows = cells["record"].map(lambda record: record.data.eval_rows if record.data is not None else None)
        most, least = rows.groupby(cells["entry"]).max(), rows.groupby(cells["entry"]).min()
        entries = statistics.scope.at(column).assign(low=low, high=high, most_rows=most, least_rows=least)
        candidates += [(statistics.scope, column, row) for row in rows_of(entries)]
    return candidates


def _compare(value: PublishedValue, scopes: Sequence[Sequence[tuple[Scope, Column, Row]]]) -> dict[str, object]:
    """Compare a published value with the entry that differs from it in the fewest respects, the best one if several."""
    identity = _identity(value) | {
        "task": value.task,
        "metric": value.metric,
        "published": _fraction(value.value),
        "published_spread": _fraction(value.spread),
        "start": value.start,
    }
    candidates = [
        (_incomparable_reasons(value, scope, column, row), row)
        for entries in scopes
        for scope, column, row in entries
        if column.task == value.task and row["method"] == value.method and row["init"] is None
    ]
    if not candidates:
        return identity | _outcome(None, None, None, None, "not comparable", "not run here")
    reasons, row = min(candidates, key=lambda candidate: (len(candidate[0]), -(candidate[1]["mean"] or 0.0)))
    if reasons or row["mean"] is None:
        return identity | _outcome(row, None, None, None, "not comparable", "; ".join(reasons) or "no score")
    return identity | _compare_values(value, row)


def _compare_values(value: PublishedValue, row: Row) -> dict[str, object]:
    """Compare a published value with an entry of the same protocol, by the interval of their difference."""
    difference = row["mean"] - value.value / 100
    differing = _differing_settings(value, row)
    if row["low"] is None:
        reason = "; ".join(("fewer than 3 seeds here", *differing))
        return _outcome(row, difference, None, None, "not comparable", reason)
    half = _published_half_width(value)
    low = difference - math.hypot(row["mean"] - row["low"], half)
    high = difference + math.hypot(row["high"] - row["mean"], half)
    return _outcome(row, difference, low, high, "within" if low <= 0 <= high else "outside", "; ".join(differing))


def _published_half_width(value: PublishedValue) -> float:
    """Return half of Student's 95% interval of a published mean; 0 where its spread or its seeds are not stated."""
    seeds = value.protocol["seeds"]
    if value.spread is None or not seeds:
        return 0.0
    return half_width(value.spread / 100, seeds)


def _outcome(
    row: Row | None, difference: float | None, low: float | None, high: float | None, verdict: str, because: str
) -> dict[str, object]:
    here = {name: row[name] if row else None for name in ("mean", "median", "std", "n", "seeds", "size")}
    return {**here, "difference": difference, "low": low, "high": high, "verdict": verdict, "because": because}


def _identity(value: PublishedValue) -> dict[str, Any]:
    """Return the columns that say what was published where, and under which protocol."""
    return {
        "row": value.row,
        "model": value.model,
        "method": value.method,
        "rank": value.rank,
        "params": value.params,
        "source": value.source,
        "table": value.table,
        "tag": value.tag,
        "secondary": value.secondary,
        "protocol": value.protocol["words"],
        "select": value.protocol["select"],
        "published_seeds": value.protocol["seeds"],
    }


def _incomparable_reasons(value: PublishedValue, scope: Scope, column: Column, row: Row) -> list[str]:
    """Return why a published value and an entry must not be compared; empty if they may be."""
    here, protocol, start = scope.values, value.protocol, scope.start_of(column)
    checks = (
        (short_model(here["model"]) != value.model, f"other model ({here['model']})"),
        ({row["most_rows"], row["least_rows"]} != {TASKS[value.task].eval_rows}, "not GLUE's rows"),
        (here["split"] != protocol["split"], f"{protocol['split']} there"),
        (value.rank is not None and row["rank"] != value.rank, f"other rank (r={row['rank']})"),
        (value.targets is not None and _target_names(row) != value.targets, f"other targets ({row['targets']})"),
        (value.start is None, "what it starts from is not found"),
        (value.start == "mnli" and start != "mnli", "MNLI start there"),
        (value.start == "pretrained" and start != "pretrained", f"other start ({start})"),
        (column.metric != value.metric, f"metric variant ({metric_name(value.metric)})"),
        (protocol["select"] is None, "how its epoch was chosen is not found"),
        (protocol["select"] not in (None, here["select"]), f"{_EPOCH_NAMES.get(str(protocol['select']))} there"),
    )
    return [reason for applies, reason in checks if applies]


def _differing_settings(value: PublishedValue, row: Row) -> Iterable[str]:
    """Return the settings that differ but do not forbid the comparison, because they are part of what is compared."""
    there = {"epochs": value.epochs, "max_length": value.protocol["max_length"]}
    return [
        f"{name.replace('_', ' ')} {row[name]} here, {count} there"
        for name, count in there.items()
        if count is not None and row[name] != count
    ]


def _target_names(row: Row) -> tuple[str, ...]:
    targets = row["targets"] or ""
    return _TARGETS.get(targets, tuple(sorted(name.strip() for name in targets.split(","))))


def _row_text(row: Row) -> str:
    return f"{row['row']}{'*' if row['secondary'] else ''}"


def _published_text(row: Row) -> str:
    spread = "" if row["published_spread"] is None else f" ± {100 * row['published_spread']:.4g}"
    return f"{100 * row['published']:.4g}{spread}"


def _fraction(percentage: float | None) -> float | None:
    # Division by 100 leaves digits that nobody published.
    return None if percentage is None else round(percentage / 100, 6)


_COLUMNS = (
    TableColumn("row", "row", _row_text),
    TableColumn("model", "model"),
    TableColumn("task", "task", lambda row: f"{task_title(row['task'])} ({metric_name(row['metric'])})"),
    TableColumn("published", "published", _published_text),
    TableColumn("protocol", "protocol"),
    TableColumn("size", "here", lambda row: f"{row['size']}: {summary_text(row)}" if row["size"] else "—"),
    TableColumn("difference", "difference", lambda row: signed_percent(row["difference"]), numeric=True),
    TableColumn("low", "95%\ninterval", lambda row: difference_interval_text(row["low"], row["high"])),
    TableColumn("verdict", "verdict", bold=lambda row: row["verdict"] == "within"),
    TableColumn("because", "because"),
    *(
        TableColumn(name)
        for name in ("method", "rank", "params", "metric", "published_spread", "source", "table", "tag")
    ),
    *(
        TableColumn(name)
        for name in ("secondary", "start", "select", "published_seeds", "mean", "median", "std", "n", "high")
    ),
)
