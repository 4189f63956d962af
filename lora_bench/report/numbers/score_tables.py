"""The tables of scores: the frontier, the methods, the best setting of each method on each task, scores by rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.disagreements import ranking_notes
from lora_bench.report.numbers.entries import ANSWER_COLUMNS, AVERAGE, Column, Scope
from lora_bench.report.numbers.frame import ARM, COUNTS, SCOPE, SETTINGS, STATUS_COLUMNS, Row, device_prefix, rows_of
from lora_bench.report.numbers.tables import (
    ReportTable,
    TableColumn,
    build_table,
    cell_column,
    count_text,
    lost_text,
    percent,
    score_interval_text,
    summary_text,
)
from lora_bench.report.numbers.wording import chosen_note, column_title, metric_name, set_text, task_title

if TYPE_CHECKING:
    from pandas import DataFrame, Series

FRONTIER_ROWS = 4  # of a size class in print
_IDENTITY = (*ARM, "label", "size")
SUMMARY = ("mean", "std", "median", "n", "seeds", "lost_as_zero", *STATUS_COLUMNS)
_SUMMARY_AND_COSTS = (*SUMMARY, *COUNTS, "seconds")


def frontier_tables(statistics: ScopeStatistics) -> list[ReportTable]:
    """Return the table of the best methods at each number of trained values; none if nothing has such a number."""
    scope, frontier = statistics.scope, statistics.frontier
    if frontier.empty or scope.main.task != AVERAGE:
        return []
    frame = frontier.sort_values(["size_class", "mean"], ascending=[True, False], kind="stable")
    frame = frame.assign(values=10 ** frame["size_class"].astype(float), lost_as_zero=mean_with_lost_as_zero(frame))
    columns = [
        TableColumn("values", "about", lambda row: class_text(row["values"]), numeric=True),
        TableColumn("size", "setting", bold=lambda row: bool(row["best"])),
        TableColumn("targets", "targets"),
        TableColumn("adapter_params", "trained\nvalues", lambda row: count_text(row["adapter_params"]), numeric=True),
        TableColumn("mean", "average", summary_text, bold=lambda row: bool(row["best"])),
        _interval_column(),
        TableColumn("rank_first", "rank", _rank_text),
        TableColumn("of", "of", numeric=True),
        *_data_columns("rank_last", "best", "methods", "low", "high", *_IDENTITY, *_SUMMARY_AND_COSTS, "chosen_by"),
    ]
    notes = (
        f"Average of {set_text(scope.averaged)}. about: the middle of a size class, from 1/1.8 to 1.8 times it. "
        f"In each class every method has one row: {chosen_note(scope)}; of: among how many settings.",
        f"rank: the ranks that it may have in its class. Bold: it may be the best there. Printed: the {FRONTIER_ROWS} "
        f"best of each class, {scope.compare.subject} and {scope.compare.reference}; the CSV has all.",
        *(
            note
            for _, members in frame.groupby("size_class", sort=True)
            for note in ranking_notes(statistics, scope.main, members)
        ),
        *lost_notes(frame),
    )
    number = frame.groupby("size_class").cumcount()
    always = frame["label"].isin((scope.compare.subject, scope.compare.reference))
    title = f"By trained values: {scope.title}"
    printed = build_table(f"frontier {scope.title}", title, columns, frame[(number < FRONTIER_ROWS) | always], notes, 2)
    whole = build_table(f"frontier {scope.title}", title, columns, frame)
    return [replace(printed, data=whole.data)]


def method_table(statistics: ScopeStatistics) -> ReportTable:
    """Return the table with each method's chosen setting down, tasks and costs across.

    Methods that were not run at all tasks come last, without an average.
    """
    import pandas as pd

    scope = statistics.scope
    chosen = statistics.with_ranks(scope.main, scope.chosen[scope.main.task])
    frame = pd.concat([chosen.assign(lost_as_zero=mean_with_lost_as_zero(chosen)), statistics.without_main_score()])
    whole = ["n", "seeds", "rank_first", "rank_last"]
    frame[whole] = frame[whole].astype("Int64")
    for column in scope.tasks:
        entries = scope.at(column)
        texts = dict(zip(entries["arm"], _summary_texts(entries), strict=True))
        frame[f"_{column.task}"] = [texts.get(arm, "") for arm in frame["arm"]]
    average = [TableColumn("mean", score_head(scope.main), _average_text, bold=lambda row: bool(row["best"]))]
    columns = [
        TableColumn("size", "method", bold=lambda row: bool(row["best"])),
        TableColumn("targets", "targets"),
        *(average if scope.main.task == AVERAGE else []),
        _interval_column(),
        TableColumn("rank_first", "rank", _rank_text),
        TableColumn("of", "of", numeric=True),
        *(TableColumn("", score_head(column), _getter(f"_{column.task}")) for column in scope.tasks),
        *_cost_columns(scope),
        *_data_columns("rank_last", "low", "high", *_IDENTITY, *_SUMMARY_AND_COSTS, "chosen_by"),
    ]
    notes = (
        f"One setting of each method on each set of targets: {chosen_note(scope)}; of: among how many. Intervals and "
        f"ranks are of the {'average' if scope.main.task == AVERAGE else 'score'}. Bold: it may be the best.",
        *ranking_notes(statistics, scope.main, chosen),
        *lost_notes(frame),
    )
    title = f"Each method's chosen setting: {scope.title}"
    return build_table(f"methods {scope.title}", title, columns, frame, notes, 2)


def best_table(statistics: ScopeStatistics) -> ReportTable:
    """Return the table of each method's best setting on each task alone, with its interval and its rank."""
    import pandas as pd

    scope = statistics.scope
    ranked = [statistics.with_ranks(column, scope.chosen[column.task]) for column in scope.tasks]
    frame = pd.concat(ranked)
    frame = _with_scope(scope, frame).assign(lost_as_zero=mean_with_lost_as_zero(frame))
    columns = [
        TableColumn("task", "task", lambda row: column_title(Column(row["task"], row["metric"]))),
        TableColumn("size", "setting", bold=lambda row: bool(row["best"])),
        TableColumn("targets", "targets"),
        cell_column("lr"),
        TableColumn(
            "mean", "score", lambda row: summary_text(row, with_median=True), bold=lambda row: bool(row["best"])
        ),
        _interval_column(),
        TableColumn("rank_first", "rank", _rank_text),
        TableColumn("of", "of", numeric=True),
        *_cost_columns(scope),
        *_data_columns(
            *SCOPE, "metric", "rank_last", "best", "low", "high", *_IDENTITY, *_SUMMARY_AND_COSTS, "held", "chosen_by"
        ),
    ]
    notes = (
        f"Chosen on each task alone: {chosen_note(scope)}; of: among how many settings. Bold: it may be the best on "
        "the task.",
        *(
            note
            for column, members in zip(scope.tasks, ranked, strict=True)
            for note in ranking_notes(statistics, column, members)
        ),
        *lost_notes(frame),
    )
    return build_table(f"best {scope.title}", f"Best setting on each task: {scope.title}", columns, frame, notes, 2)


def entries_table(statistics: ScopeStatistics) -> ReportTable:
    """Return all entries as data: every method at every size on every task, and the averages."""
    import pandas as pd

    scope = statistics.scope
    parts = []
    for column in scope.columns:
        low, high = statistics.intervals(column)
        parts.append(scope.at(column).assign(low=low, high=high))
    frame = pd.concat(parts)
    frame = _with_scope(scope, frame).assign(lost_as_zero=mean_with_lost_as_zero(frame))
    numbers = (*_SUMMARY_AND_COSTS, "low", "high", "held", "tried", "chosen_by")
    names = (*SCOPE, "task", "metric", *_IDENTITY, *numbers, *SETTINGS, *ANSWER_COLUMNS)
    return build_table(f"settings {scope.title}", f"All settings: {scope.title}", _data_columns(*names), frame)


def rank_tables(scope: Scope) -> list[ReportTable]:
    """Return tables of the main column by rank: one per method and targets with several (a, b), one of all others."""
    entries = scope.at(scope.main)
    ranked = entries[entries["rank"].notna()]
    if ranked.empty:
        return []
    pairs = ranked.groupby(["label", "targets"], dropna=False)[["a", "b"]].transform("nunique").max(axis=1) > 1
    with_pairs, others = ranked[pairs], ranked[~pairs]
    groups = with_pairs.groupby(["label", "targets"], sort=True, dropna=False)
    tables = [_rank_table(scope, members, f"{label} {targets}", ("a", "b")) for (label, targets), members in groups]
    return [*tables, *([_rank_table(scope, others, "others", ("label", "targets"))] if len(others) else [])]


def _rank_table(scope: Scope, entries: DataFrame, name: str, labels: tuple[str, str]) -> ReportTable:
    """Return a table with ranks across."""
    ranks = sorted(entries["rank"].unique())
    texts = entries.assign(_text=_summary_texts(entries))
    keys = list(labels)
    frame = texts[keys].drop_duplicates().sort_values(keys, na_position="first")
    for rank in ranks:
        column = texts[texts["rank"] == rank].set_index(keys)["_text"]
        frame[f"_{rank}"] = [column.get(key, "") for key in frame[keys].itertuples(index=False, name=None)]
    heads = {"label": "method"}
    columns = [
        *(TableColumn(key, heads.get(key, key), numeric=key in ("a", "b")) for key in keys),
        *(TableColumn("", f"r={rank}", _getter(f"_{rank}")) for rank in ranks),
    ]
    title = f"{column_title(scope.main)} by rank: {name}; {scope.title}"
    table = build_table(f"rank {scope.title} {name}", title, columns, frame, (), 2)
    data = entries[["task", "metric", *_IDENTITY, "mean", "std", "median", "n", "seeds", "adapter_params"]]
    return replace(table, data=data)


def class_text(value: float) -> str:
    """Write the middle of a size class: `100,000` or `32,000`."""
    digits = 2
    scale = 10 ** (len(str(int(value))) - digits)
    return f"{round(value / scale) * scale:,.0f}"


def score_head(column: Column) -> str:
    """Return the heading of a column of scores: the task above the metric."""
    return "average" if column.task == AVERAGE else f"{task_title(column.task)}\n{metric_name(column.metric)}"


def _summary_texts(entries: DataFrame) -> list[str]:
    return [summary_text(row) for row in rows_of(entries[["n", "seeds", "mean", "std"]])]


def _getter(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name])


def _average_text(row: Row) -> str:
    return "" if row["n"] is None else summary_text(row)


def _interval_column() -> TableColumn:
    return TableColumn("", "95%\ninterval", lambda row: score_interval_text(row["low"], row["high"]))


def _rank_text(row: Row) -> str:
    first, last = row["rank_first"], row["rank_last"]
    if first is None:
        return ""
    return str(first) if first == last else f"{first}–{last}"


def _cost_columns(scope: Scope) -> list[TableColumn]:
    prefix = device_prefix(scope.cells)
    seconds = cell_column("seconds")
    return [
        *(cell_column(name) for name in COUNTS),
        TableColumn("seconds", f"{prefix}{seconds.head}", seconds.text, numeric=True),
        TableColumn("", "without\nscore", lost_text, numeric=True),
    ]


def _data_columns(*names: str) -> list[TableColumn]:
    return [TableColumn(name) for name in names]


def _with_scope(scope: Scope, frame: DataFrame) -> DataFrame:
    return frame.assign(**scope.values)


def mean_with_lost_as_zero(entries: DataFrame) -> Series:
    """Return the mean in which a seed without a score counts as 0."""
    return entries["mean"].fillna(0.0) * entries["n"] / entries["seeds"]


def lost_notes(frame: DataFrame) -> list[str]:
    """State the means of rows with lost seeds the other way too."""
    lost = frame[(frame["n"] < frame["seeds"]) & (frame["n"] > 0)]
    if lost.empty:
        return []
    texts = [f"{row['size']} {percent(row['lost_as_zero'])}" for row in rows_of(lost[["size", "lost_as_zero"]])]
    shown = "; ".join(texts[:8]) + (f"; {len(texts) - 8} more in the CSV" if len(texts) > 8 else "")
    return [
        "Seeds without a score are left out of means; their intervals allow for lost seeds that were the worst. With "
        f"lost seeds as 0: {shown}."
    ]
