"""The data behind the interactive table and charts of the HTML page; `assets/page.js` reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_bench.report.content import Content
from lora_bench.report.figures.rank_plots import RankPanel, compare_ranks, rank_panels, target_sets
from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.entries import Column
from lora_bench.report.numbers.frame import COUNTS, SCOPE, SETTINGS, Row, device_prefix, group_ids, is_missing, rows_of
from lora_bench.report.numbers.wording import column_title, metric_name, task_title
from lora_bench.text import clean

if TYPE_CHECKING:
    from pandas import DataFrame

_FIXED_COLUMNS = ("task", "method", "rank", "a", "b")
_NUMBERS = ("mean", "std", "median", "n", "seeds", "adapter_params", "adapter_bytes", "seconds")


def page_data(content: Content) -> dict[str, Any]:
    """Return the settings as lists under `columns`, their cells, and the charts of each scope's columns.

    A setting is everything but the seed: its cells differ in nothing else.
    """
    keys = (*SCOPE, "metric", "targets", *SETTINGS, "init")
    varying = tuple(name for name in keys if name != "metric" and _varies(content.cells, name))
    columns = (*_FIXED_COLUMNS, *varying)
    numbers = group_ids(content.cells, (*_FIXED_COLUMNS, *keys))
    cells = content.cells.assign(page_setting=numbers).sort_values(["page_setting", "seed", "id"], kind="stable")
    tasks = dict(zip(cells["task"], cells["metric"], strict=True))
    return {
        "columns": [*columns, *_NUMBERS, "lost"],
        "labels": len(columns),
        "settings": _settings_data(cells, columns),
        "cells": _cells_data(cells),
        "metrics": {task: metric_name(metric) for task, metric in tasks.items()},
        "titles": {task: clean(task_title(task)) for task in tasks},
        "seconds": f"{device_prefix(cells)}seconds",
        "charts": [
            chart
            for section in content.sections
            for chart in _charts(
                section.statistics, dict(zip(cells.index.tolist(), cells["page_setting"].tolist(), strict=True))
            )
        ],
    }


def shared_settings(frame: DataFrame) -> dict[str, str]:
    """Return the settings that all cells have in common, as text."""
    names = [name for name in (*SCOPE, "targets", *SETTINGS) if frame[name].nunique(dropna=False) == 1]
    return {name: str(frame[name].iloc[0]) for name in names if frame[name].notna().all()}


def _varies(frame: DataFrame, name: str) -> bool:
    """Whether a column has two values within some task; for `init` a single other start is enough."""
    known = frame[frame[name].notna()]
    return bool((known.groupby("task")[name].nunique() > (0 if name == "init" else 1)).any())


def _settings_data(cells: DataFrame, columns: tuple[str, ...]) -> list[list[Any]]:
    grouped = cells.groupby("page_setting")
    scores = grouped["score"]
    frame = grouped.head(1).set_index("page_setting")[list(columns)]
    frame = frame.assign(mean=scores.mean(), std=scores.std(ddof=1), median=scores.median(), n=scores.count())
    frame = frame.assign(seeds=grouped.size(), **{name: grouped[name].max() for name in COUNTS[::2]})
    frame = frame.assign(seconds=grouped["seconds"].mean())
    lost = cells[cells["score"].isna()]
    names = lost["status"].replace({"done": "undefined", "oom": "failed"})
    counts: dict[int, list[str]] = {}
    for (setting, status), count in sorted(Counter(zip(lost["page_setting"], names, strict=True)).items()):
        counts.setdefault(setting, []).append(f"{count} {status}")
    rows = rows_of(frame[[*columns, *_NUMBERS]])
    texts = [", ".join(counts.get(setting, [])) for setting in frame.index]
    return [[*map(_plain, row.values()), text] for row, text in zip(rows, texts, strict=True)]


def _cells_data(cells: DataFrame) -> list[list[list[Any]]]:
    """Return the cells of each setting: [id, seed, status, score, main metric by epoch, held-out metric, reason].

    The seed is text: JavaScript's numbers do not hold all 63 bits.
    """
    data: list[list[list[Any]]] = []
    names = ["page_setting", "id", "seed", "status", "score", "metric", "reason", "record"]
    for setting, cell_id, seed, status, score, metric, reason, record in cells[names].itertuples(
        index=False, name=None
    ):
        if setting == len(data):
            data.append([])
        epochs = record.epochs
        data[setting].append(
            [
                cell_id,
                str(seed),
                status,
                _plain(score),
                [_plain(epoch.metrics.get(metric), 4) for epoch in epochs],
                [_plain(epoch.held_out.get(metric), 4) for epoch in epochs if epoch.held_out],
                clean(reason or ""),
            ]
        )
    return data


def _charts(statistics: ScopeStatistics, numbers: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return a chart for each column of a scope, the main one first."""
    scope = statistics.scope
    shown = scope.cells[scope.cells["entry"] >= 0]
    setting_of_entry = {entry: int(numbers[cell]) for entry, cell in zip(shown["entry"], shown.index, strict=True)}
    panels = {
        targets: {panel.column: panel for panel in ranked}
        for targets in target_sets(statistics)
        if compare_ranks(ranked := rank_panels(statistics, targets))
    }
    columns = [scope.main, *(column for column in scope.columns if column != scope.main)]
    return [
        {
            "scope": scope.title,
            "column": clean(column_title(column)),
            "subject": scope.compare.subject,
            "reference": scope.compare.reference,
            "points": _points(statistics, column, setting_of_entry),
            "ranks": {
                clean(targets): _rank_data(by_column[column])
                for targets, by_column in panels.items()
                if column in by_column
            },
        }
        for column in columns
    ]


def _points(statistics: ScopeStatistics, column: Column, setting_of_entry: Mapping[int, int]) -> list[list[Any]]:
    """Return a list for each entry.

    It has the label, size, targets, setting or None, params, bytes, seconds, mean, low, high, seeds, and 1 if the entry
    is the chosen one of its method, targets and size class, else 0.
    """
    low, high = statistics.intervals(column)
    entries = statistics.scope.at(column).assign(low=low, high=high)
    sized = entries[(entries["n"] > 0) & (entries["adapter_params"].fillna(0) > 0)]
    chosen = [statistics.chosen_by_class(members).index for _, members in sized.groupby("targets", dropna=False)]
    entries = entries.assign(chosen=entries.index.isin({entry for index in chosen for entry in index}).astype(int))
    entries = entries.assign(page_setting=entries.index.map(lambda entry: setting_of_entry.get(entry)))
    return [_point(row) for row in rows_of(entries[entries["n"] > 0])]


def _point(row: Row) -> list[Any]:
    setting = row["page_setting"]
    numbers = (
        row[name] for name in ("adapter_params", "adapter_bytes", "seconds", "mean", "low", "high", "n", "chosen")
    )
    return [
        clean(row["label"]),
        clean(row["size"]),
        clean(row["targets"] or ""),
        None if setting is None else int(setting),
        *map(_plain, numbers),
    ]


def _rank_data(panel: RankPanel) -> dict[str, Any]:
    lines = {
        clean(label): [[_plain(value) for value in point] for point in points] for label, points in panel.lines.items()
    }
    return {"lines": lines, "levels": {clean(label): _plain(score) for label, score in panel.levels.items()}}


def _plain(value: object, digits: int = 6) -> object:
    """Return a value for JSON: rounded numbers, clean text, None for what is missing."""
    if is_missing(value):
        return None
    if isinstance(value, float):
        return round(value, digits)
    return clean(value) if isinstance(value, str) else value
