"""Which epoch is reported: best, last and held-out side by side, from the same cells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_bench.report.numbers.entries import Column, Scope
from lora_bench.report.numbers.frame import SCOPE
from lora_bench.report.numbers.tables import ReportTable, TableColumn, build_table, percent, signed_percent
from lora_bench.report.numbers.wording import column_title

if TYPE_CHECKING:
    from pandas import DataFrame

KINDS = {"best": "best epoch", "last": "last epoch", "held_out": "held-out epoch"}
_IDENTITY = ("size", "targets", "method", "init", "rank", "a", "b")


def epoch_tables(scope: Scope) -> list[ReportTable]:
    """Return a table with a row per task, over the chosen setting of each method; its data has a row per setting.

    There is no table if no cell has a score.
    """
    import pandas as pd

    settings = pd.concat([_settings(scope, column) for column in scope.tasks])
    if settings.empty:
        return []
    grouped = settings.groupby(["task", "metric"], sort=False)
    frame = grouped[[*KINDS, *_GAINS]].mean()
    for name in _GAINS:
        frame[f"{name}_least"], frame[f"{name}_most"] = grouped[name].min(), grouped[name].max()
    frame = frame.assign(settings=grouped.size()).reset_index()
    columns = [
        TableColumn("task", "task", lambda row: column_title(Column(row["task"], row["metric"]))),
        TableColumn("settings", "settings", numeric=True),
        *(_score_column(name, head) for name, head in KINDS.items()),
        *(column for name, head in _GAINS.items() for column in _gain_columns(name, head)),
    ]
    notes = [
        "The chosen setting of each method, the same cells, three ways to choose the epoch: best and last on the "
        "reported split, held-out by rows kept from train. What choosing on the reported split adds: mean over "
        "settings, [least, most]."
    ]
    if settings["held_out"].isna().all():
        notes.append("held-out: not recorded here; run with --set select=held-out.")
    table = build_table(f"epochs {scope.title}", f"Which epoch: {scope.title}", columns, frame, notes)
    names = ("task", "metric", *_IDENTITY, *KINDS, *_GAINS, "n")
    data = settings.assign(**scope.values)[[*SCOPE, *names]]
    return [replace(table, data=data)]


_GAINS = {"best_less_last": "best − last", "best_less_held_out": "best − held-out"}


def _settings(scope: Scope, column: Column) -> DataFrame:
    """Return the chosen setting of each method on a task, with its mean at each choice of the epoch."""
    chosen = scope.chosen[column.task]
    cells = scope.cells[scope.cells["entry"].isin(chosen.index) & scope.cells["score"].notna()]
    means = cells.groupby("entry")[list(KINDS)].mean()
    gains = {
        name: (cells["best"] - cells[kind]).groupby(cells["entry"]).mean()
        for name, kind in zip(_GAINS, ("last", "held_out"), strict=True)
    }
    joined: DataFrame = chosen[["task", "metric", *_IDENTITY, "n"]].join(means, how="inner").assign(**gains)
    return joined


def _score_column(name: str, head: str) -> TableColumn:
    return TableColumn(name, head, lambda row: percent(row[name]), numeric=True)


def _gain_columns(name: str, head: str) -> list[TableColumn]:
    return [
        TableColumn(name, head, lambda row: signed_percent(row[name]), numeric=True),
        TableColumn(
            f"{name}_least",
            "least,\nmost",
            lambda row: f"[{signed_percent(row[f'{name}_least'])}, {signed_percent(row[f'{name}_most'])}]",
        ),
    ]
