"""The table of all methods: a row per setting, with its rates, trained values, bytes, scores and calibration.

It is for results with few settings of each method; where there are many, other tables show those that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_bench.records.schema import Record
from lora_bench.report.numbers.calibration import AFTER, MEASURES, calibration_frame
from lora_bench.report.numbers.collapsed import collapsed_notes
from lora_bench.report.numbers.comparisons import ScopeStatistics, is_decided
from lora_bench.report.numbers.entries import AVERAGE, Column, Scope
from lora_bench.report.numbers.frame import ARM, COUNTS, Row, is_missing, rows_of
from lora_bench.report.numbers.score_tables import SUMMARY, lost_notes, mean_with_lost_as_zero, score_head
from lora_bench.report.numbers.tables import (
    DASH,
    ReportTable,
    TableColumn,
    build_table,
    count_text,
    score_interval_text,
    signed_percent,
    summary_text,
)
from lora_bench.report.numbers.wording import chosen_note, main_name, set_text, task_title

if TYPE_CHECKING:
    from pandas import DataFrame

MAX_SETTINGS = 4  # of a method on one set of targets (chosen): with more, a row per setting is no overview
_PRINTED = {"ece": "ECE", "nll": "NLL"}
_SETTING = ("arm", "kind", *ARM, "label", "size", *COUNTS)
_RATES = ("lr", "head_lr", "searched", "edges")
_COMPARED = ("difference", "low", "high", "holm", "verdict")
_EDGE = "*"


def overview_tables(statistics: ScopeStatistics) -> list[ReportTable]:
    """Return the table of all methods; none of a single method, of many settings of one, and of a verdict."""
    import pandas as pd

    scope = statistics.scope
    settings = scope.entries.groupby(["label", "targets"], dropna=False)["arm"].nunique()
    if scope.compare.looks or len(settings) < 2 or settings.max() > MAX_SETTINGS:
        return []
    data = pd.concat([_column_data(statistics, column) for column in scope.columns], ignore_index=True)
    data = data.sort_values(["kind", "label", "targets", "adapter_params", "arm"], na_position="last", kind="stable")
    rows: dict[int, dict[str, Row]] = {}
    for row in rows_of(data):
        rows.setdefault(row["arm"], {})[row["task"]] = row
    frame = data.drop_duplicates("arm")[[*_SETTING]]
    frame = frame.assign(by_task=pd.Series(rows).reindex(frame["arm"]).set_axis(frame.index))
    main = data[data["task"] == scope.main.task]
    main_entries = scope.at(scope.main).index.tolist()
    notes = (*_notes(scope, data), *lost_notes(main), *collapsed_notes(scope, main_entries))
    title = f"All methods: {scope.title}"
    label_columns = 1 if frame["size"].is_unique else 2
    table = build_table(f"overview {scope.title}", title, _columns(scope, data), frame, notes, label_columns)
    return [replace(table, data=data.assign(**scope.values).drop(columns="arm"))]


def _column_data(statistics: ScopeStatistics, column: Column) -> DataFrame:
    """Return a row per entry of a column: its setting, scores, rates, calibration, and difference to the reference."""
    import pandas as pd

    scope = statistics.scope
    entries = scope.at(column)
    low, high = statistics.intervals(column)
    entries = entries.assign(low=low, high=high, lost_as_zero=mean_with_lost_as_zero(entries))
    records = _records(scope, column)
    rates = pd.DataFrame([_rates(records.get(arm)) for arm in entries["arm"]], entries.index, [*_RATES])
    default = statistics.default[statistics.default["task"] == column.task].set_index("entry")
    compared = default[[*_COMPARED]].add_prefix("against_")
    kinds = scope.cells.drop_duplicates("arm").set_index("arm")["kind"]
    frame = entries.assign(kind=entries["arm"].map(kinds))
    frame = frame[[*_SETTING, "task", "metric", *SUMMARY, "low", "high"]].join(rates).join(compared)
    return frame.join(_calibration(scope, _tasks_of(scope, column)), on="arm")


def _tasks_of(scope: Scope, column: Column) -> tuple[str, ...]:
    return scope.averaged if column.task == AVERAGE else (column.task,)


def _records(scope: Scope, column: Column) -> dict[int, Record]:
    """Return a record of each shown setting of a task, by arm."""
    cells = scope.cells[(scope.cells["entry"] >= 0) & (scope.cells["task"] == column.task)].drop_duplicates("arm")
    return dict(zip(cells["arm"].tolist(), cells["record"].tolist(), strict=True))


def _rates(record: Record | None) -> tuple[object, ...]:
    """Return the values of `_RATES`; None for the average."""
    if record is None:
        return None, None, None, None
    search = record.search
    names = [", ".join(search.settings), ", ".join(search.edges)] if search is not None else ["", ""]
    return record.cell.lr, record.cell.head_lr, *(name or None for name in names)


def _calibration(scope: Scope, tasks: tuple[str, ...]) -> DataFrame:
    """Return the means and deviations over seeds of each measure by arm, averaged by seed over the tasks with classes.

    As for scores, a seed counts if it has a value on each of those tasks.
    """
    cells = calibration_frame(scope, tasks)
    measures = [*MEASURES, *AFTER.values()]
    cells = cells[cells["task"].isin(cells["task"][cells["nll"].notna()])]
    number = cells["task"].nunique()
    by_seed = cells.groupby(["arm", "seed"])[measures]
    complete = by_seed.mean().where(by_seed.count() == number)
    by_arm = complete.groupby("arm")
    return by_arm.mean().join(by_arm.std(ddof=1).add_suffix("_std"))


def _columns(scope: Scope, data: DataFrame) -> list[TableColumn]:
    main = scope.main
    averages = [main] if main.task == AVERAGE else []
    return [
        TableColumn("size", "setting"),
        TableColumn("targets", "targets"),
        *([TableColumn("kind", "group")] if data["kind"].notna().any() else []),
        *(_of_task(column, f"rate\n{task_title(column.task)}", _rates_text, numeric=True) for column in scope.tasks),
        TableColumn("adapter_params", "trained\nvalues", lambda row: count_text(row["adapter_params"]), numeric=True),
        TableColumn("adapter_bytes", "adapter\nbytes", lambda row: count_text(row["adapter_bytes"]), numeric=True),
        *(_of_task(column, score_head(column), summary_text) for column in averages),
        _of_task(main, "95%\ninterval", lambda row: score_interval_text(row["low"], row["high"])),
        *(_of_task(column, score_head(column), summary_text) for column in scope.tasks),
        *(
            _of_task(main, head + ending, _measure_text(name))
            for measure, head in _PRINTED.items()
            for name, ending in ((measure, ""), (AFTER[measure], "\nafter"))
            if data[name][data["task"] == main.task].notna().any()
        ),
        *(_compared_columns(scope) if _is_compared(data) else []),
    ]


def _is_compared(data: DataFrame) -> bool:
    """Whether any setting is compared with the reference method, which other results may not have."""
    return bool(data["against_verdict"].notna().any())


def _compared_columns(scope: Scope) -> list[TableColumn]:
    head = f"difference\nto {scope.compare.reference}"
    return [
        _of_task(scope.main, head, lambda row: signed_percent(row["against_difference"]), numeric=True),
        _of_task(scope.main, "verdict", _verdict_text, bold=lambda row: is_decided(_verdict_text(row))),
    ]


def _of_task(
    column: Column,
    head: str,
    text: Callable[[Row], str],
    numeric: bool = False,
    bold: Callable[[Row], bool] | None = None,
) -> TableColumn:
    """Return a column of what a setting has on one task or on the average; empty for one that was not run there."""

    def shown(row: Row) -> str:
        entry = row["by_task"].get(column.task)
        return "" if entry is None else text(entry)

    def is_bold(row: Row) -> bool:
        entry = row["by_task"].get(column.task)
        return entry is not None and bold is not None and bold(entry)

    return TableColumn("", head, shown, numeric, is_bold)


def _rates_text(row: Row) -> str:
    """Write the rate, and the head's if it was searched too; a star marks one at an edge of what was tried."""
    searched, edges = ((row[name] or "").split(", ") for name in ("searched", "edges"))
    names = ("lr", "head_lr") if "head_lr" in searched else ("lr",)
    texts = [f"{row[name]:.3g}{_EDGE if name in edges else ''}" for name in names if not is_missing(row[name])]
    return " / ".join(texts)


def _measure_text(name: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        mean, std = row[name], row[f"{name}_std"]
        if is_missing(mean):
            return ""
        return f"{mean:.3f}" if is_missing(std) else f"{mean:.3f} ± {std:.3f}"

    return text


def _verdict_text(row: Row) -> str:
    return str(row["against_verdict"] or DASH)


def _notes(scope: Scope, data: DataFrame) -> list[str]:
    main, reference = main_name(scope), scope.compare.reference
    first = f"A row for each setting. Intervals are on {main}"
    if _is_compared(data):
        first += (
            f", as difference and verdict: those of the table of each method against {reference}, which has one "
            f"setting of each method, {chosen_note(scope)}. {DASH}: not in that table"
        )
    notes = [f"{first}."]
    rates = "rate: the learning rate on each task"
    if data["searched"].notna().any():
        rates += f", searched on held-out training rows; {_EDGE}: the lowest or the highest that was tried"
    notes.append(f"{rates}. adapter bytes: the saved adapter, without the head.")
    if data["nll"][data["task"] == scope.main.task].notna().any():
        tasks = _tasks_of(scope, scope.main)
        classified = [task for task in tasks if data["nll"][data["task"] == task].notna().any()]
        after = (
            " after: of probabilities averaged over the posterior; scores are of the trained point."
            if data[list(AFTER.values())].notna().any(axis=None)
            else ""
        )
        notes.append(
            f"ECE and NLL: expected calibration error and mean negative log-likelihood on the rows that are scored, by "
            f"seed the mean over {set_text(classified)}, ± the deviation over seeds; lower is better.{after}"
        )
    return notes
