"""The data behind the interactive table and charts of the HTML page; `assets/page.js` reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_bench.report.content import Content
from lora_bench.report.figures import cost_plots, rank_plots
from lora_bench.report.figures.drawing import MethodStyle, method_styles
from lora_bench.report.numbers.entries import Column, Entry, Subset
from lora_bench.report.numbers.frame import ENTRY_FIELDS, SCOPE, SETTINGS, CellRow, cells_of, device_prefix, group_by
from lora_bench.report.numbers.wording import column_title, metric_name, task_title
from lora_bench.text import clean

if TYPE_CHECKING:
    from pandas import DataFrame

# From matplotlib's markers and line styles to plotly's.
_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "x": "x",
    "*": "star",
}
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
_FIXED_COLUMNS = ("task", "method", "rank", "a", "b")
_NUMBERS = ("mean", "std", "median", "n", "seeds", "adapter_params", "adapter_bytes", "seconds")


def page_data(content: Content) -> dict[str, Any]:
    """Return the settings as lists under `columns`, their cells, and the charts of each task.

    A setting is everything but the seed: its cells differ in nothing else.
    """
    keys = (*SCOPE, "metric", "targets", *SETTINGS, "init")
    varying = tuple(name for name in keys if name != "metric" and _varies(content.cells, name))
    columns = (*_FIXED_COLUMNS, *varying)
    by_seed = content.cells.sort_values(["seed", "id"])
    settings = [cells_of(group) for group in group_by(by_seed, (*_FIXED_COLUMNS, *keys))]
    setting_index = {cell["id"]: index for index, cells in enumerate(settings) for cell in cells}
    tasks = dict(zip(content.cells["task"], content.cells["metric"], strict=True))
    return {
        "columns": [*columns, *_NUMBERS, "lost"],
        "labels": len(columns),
        "settings": [_setting_data(cells, columns) for cells in settings],
        "cells": [[_cell_data(cell) for cell in cells] for cells in settings],
        "metrics": {task: metric_name(metric) for task, metric in tasks.items()},
        "titles": {task: clean(task_title(task)) for task in tasks},
        "seconds": f"{device_prefix(cell for cells in settings for cell in cells)}seconds",
        "charts": [chart for section in content.sections for chart in _charts(section.subset, setting_index)],
    }


def _varies(frame: DataFrame, name: str) -> bool:
    """Whether a column has two values within some task; None and the default start do not count as values.

    For `init` a single other start is enough.
    """
    known = frame[frame[name].notna() & (frame[name] != "default")]
    return bool((known.groupby("task")[name].nunique() > (0 if name == "init" else 1)).any())


def shared_settings(frame: DataFrame) -> dict[str, str]:
    """Return the settings that all cells have in common, as text."""
    names = [name for name in (*SCOPE, "targets", *SETTINGS) if frame[name].nunique(dropna=False) == 1]
    return {name: str(frame[name].iloc[0]) for name in names if frame[name].notna().all()}


def _setting_data(cells: Sequence[CellRow], columns: Sequence[str]) -> list[Any]:
    entry = Entry(**{name: cells[0][name] for name in ENTRY_FIELDS}, cells=tuple(cells))
    summary = entry.summary
    numbers = [
        _rounded(summary.mean),
        _rounded(summary.std),
        _rounded(summary.median),
        summary.n,
        summary.total,
        entry.largest("adapter_params"),
        entry.largest("adapter_bytes"),
        _rounded(entry.seconds()),
    ]
    missing = ", ".join(f"{count} {status}" for status, count in sorted(entry.missing.items()))
    return [*(_cleaned(cells[0][name]) for name in columns), *numbers, missing]


def _cell_data(cell: CellRow) -> list[Any]:
    """Return [id, seed, status, score, main metric by epoch, the same on held-out rows, reason].

    The seed is text: JavaScript's numbers do not hold all 63 bits.
    """
    epochs, metric = cell["record"].epochs, cell["metric"]
    return [
        cell["id"],
        str(cell["seed"]),
        cell["status"],
        _rounded(cell["score"]),
        [_rounded(epoch.metrics.get(metric)) for epoch in epochs],
        [_rounded((epoch.held_out or {}).get(metric)) for epoch in epochs if epoch.held_out],
        clean(cell["reason"] or ""),
    ]


def _charts(subset: Subset, setting_index: Mapping[str, int]) -> list[dict[str, Any]]:
    styles = method_styles({entry.label for entries in subset.columns.values() for entry in entries})
    panels = {panel.column: panel for panel in rank_plots.rank_panels(subset)}
    fronts = {cost: _front_data(subset, cost) for cost in cost_plots.COSTS}
    return [
        {
            "piece": clean(subset.title),
            "task": clean(column_title(column)),
            "looks": _style_data(styles, entries),
            "points": [_point_data(entry, setting_index) for entry in entries if entry.scores],
            "rank": _rank_data(panels[column]) if column in panels else None,
            "fronts": {cost: fronts[cost].get(column, []) for cost in cost_plots.COSTS},
        }
        for column, entries in subset.columns.items()
    ]


def _style_data(styles: Mapping[str, MethodStyle], entries: Sequence[Entry]) -> list[list[str]]:
    """Return [label, colour, symbol, dash] of each method, in the order of the legend."""
    labels = {entry.label for entry in entries}
    return [
        [label, style.colour, _SYMBOLS[style.marker], _plotly_dash(style)]
        for label, style in styles.items()
        if label in labels
    ]


def _plotly_dash(style: MethodStyle) -> str:
    # A pattern given by its lengths has no name in plotly.
    return _DASHES.get(style.dashes, "longdash") if isinstance(style.dashes, str) else "longdash"


def _point_data(entry: Entry, setting_index: Mapping[str, int]) -> list[Any]:
    """Return [label, index of the setting, rank, params, bytes, seconds, mean, std]."""
    costs = [cost_of(entry) for cost_of in cost_plots.COSTS.values()]
    return [
        entry.label,
        setting_index[entry.cells[0]["id"]],
        entry.rank,
        *(None if cost is None else _rounded(float(cost)) for cost in costs),
        _rounded(entry.summary.mean),
        _rounded(entry.summary.std),
    ]


def _rank_data(panel: rank_plots.RankPanel) -> dict[str, Any]:
    lines = {
        label: [[rank, _rounded(summary.mean), _rounded(summary.std), summary.n] for rank, summary in line.items()]
        for label, line in panel.lines.items()
    }
    return {"lines": lines, "levels": {label: _rounded(summary.mean) for label, summary in panel.levels.items()}}


def _front_data(subset: Subset, cost: str) -> dict[Column, list[list[float]]]:
    return {
        panel.column: [[point.cost, point.mean] for point in panel.front]
        for panel in cost_plots.cost_panels(subset, cost)
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _cleaned(value: object) -> object:
    return clean(value) if isinstance(value, str) else value
