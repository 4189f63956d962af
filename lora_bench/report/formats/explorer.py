"""What the page's table and charts are made of: every setting with its cells, and the charts of every task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lora_bench.report.content import Content
from lora_bench.report.figures import cost_plots, rank_plots
from lora_bench.report.figures.captions import column_title, metric_name, task_title
from lora_bench.report.figures.drawing import Look, looks
from lora_bench.report.numbers.rows import SCOPE, SETTINGS, SLOT, Key, Row, device_kind, split_by
from lora_bench.report.numbers.slots import Column, Piece, Slot, entry, slot_of
from lora_bench.text import clean

_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross"}
_SYMBOLS |= {"x": "x", "*": "star"}
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
_ALWAYS = ("task", "method", "rank", "a", "b")
_NUMBERS = ("mean", "std", "median", "n", "seeds", "adapter_params", "adapter_bytes", "seconds")


def page_data(content: Content) -> dict[str, Any]:
    """Settings as lists under `columns`, their cells, charts by task, and what stands before `seconds`."""
    keys = (*SCOPE, "metric", "targets", *SETTINGS, "init")
    varying = tuple(name for name in keys if name != "metric" and _varies(content.rows, name))
    columns = (*_ALWAYS, *varying)
    groups = split_by(content.rows, (*_ALWAYS, *keys))
    at = {cell["id"]: number for number, (_, cells) in enumerate(groups) for cell in cells}
    return {
        "columns": [*columns, *_NUMBERS, "lost"],
        "labels": len(columns),
        "settings": [_setting(cells, columns) for _, cells in groups],
        "cells": [[_cell(cell) for cell in sorted(cells, key=_seed)] for _, cells in groups],
        "metrics": {row["task"]: metric_name(row["metric"]) for row in content.rows},
        "titles": {row["task"]: clean(task_title(row["task"])) for row in content.rows},
        "seconds": f"{device_kind(content.rows)}seconds",
        "charts": [chart for section in content.sections for chart in _charts(section.piece, at)],
    }


def _varies(rows: Sequence[Row], name: str) -> bool:
    """Whether a setting has two values within a task; none, and the default start, are no values."""
    if len({row[name] for row in rows} - {None, "default"}) < (1 if name == "init" else 2):
        return False
    found = Counter(
        task for task, value in {(row["task"], row[name]) for row in rows} if value not in (None, "default")
    )
    return name == "init" or max(found.values()) > 1


def shared_settings(rows: Sequence[Row]) -> dict[str, str]:
    """What all cells have in common, as text."""
    names = [name for name in (*SCOPE, "targets", *SETTINGS) if len({row[name] for row in rows}) == 1]
    return {name: str(rows[0][name]) for name in names if rows[0][name] is not None}


def _seed(cell: Row) -> Key:
    return cell["seed"], cell["id"]


def _setting(cells: Sequence[Row], columns: Sequence[str]) -> list[Any]:
    slot = slot_of(tuple(cells[0][name] for name in SLOT), cells)
    found = entry([cell["score"] for cell in cells if cell["score"] is not None], len(cells))
    numbers = [
        _short(found.mean), _short(found.std), _short(found.median), found.n, found.total,
        slot.largest("adapter_params"), slot.largest("adapter_bytes"), _short(slot.seconds()),
    ]  # fmt: skip
    lost = ", ".join(f"{count} {kind}" for kind, count in sorted(slot.lost.items()))
    return [*(_known(cells[0][name]) for name in columns), *numbers, lost]


def _cell(cell: Row) -> list[Any]:
    """[id, seed, status, score, main metric by epoch, the same on what was held out, reason]."""
    epochs, metric = cell["record"].epochs, cell["metric"]
    held = [_short((epoch.held_out or {}).get(metric)) for epoch in epochs if epoch.held_out]
    return [
        cell["id"], str(cell["seed"]), cell["status"], _short(cell["score"]),
        [_short(epoch.metrics.get(metric)) for epoch in epochs], held, clean(cell["reason"] or ""),
    ]  # fmt: skip


def _charts(piece: Piece, at: Mapping[str, int]) -> list[dict[str, Any]]:
    look = looks({slot.label for slots in piece.columns.values() for slot in slots})
    ranks = {panel.column: panel for panel in rank_plots.panels(piece)}
    return [
        {
            "piece": clean(piece.title), "task": clean(column_title(column)), "looks": _looks(look, slots),
            "points": [_point(slot, at) for slot in slots if slot.scores],
            "rank": _rank(ranks[column]) if column in ranks else None,
            "fronts": {kind: _front(piece, column, kind) for kind in cost_plots.COSTS},
        }
        for column, slots in piece.columns.items()
    ]  # fmt: skip


def _looks(look: Mapping[str, Look], slots: Sequence[Slot]) -> list[list[str]]:
    """[name, colour, symbol, dash] of each method, in the legend's order."""
    here = {slot.label for slot in slots}
    return [
        [
            label,
            each.colour,
            _SYMBOLS[each.marker],
            _DASHES.get(each.dashes, "longdash") if _plain(each) else "longdash",
        ]
        for label, each in look.items()
        if label in here
    ]


def _plain(look: Look) -> bool:
    return isinstance(look.dashes, str)


def _point(slot: Slot, at: Mapping[str, int]) -> list[Any]:
    """[method, setting, rank, params, bytes, seconds, mean, std]."""
    costs = [None if (value := cost(slot)) is None else _short(float(value)) for cost in cost_plots.COSTS.values()]
    return [slot.label, at[slot.cells[0]["id"]], slot.rank, *costs, _short(slot.entry.mean), _short(slot.entry.std)]


def _rank(panel: rank_plots.Panel) -> dict[str, Any]:
    lines = {
        label: [[rank, _short(found.mean), _short(found.std), found.n] for rank, found in entries.items()]
        for label, entries in panel.lines.items()
    }
    return {"lines": lines, "levels": {label: _short(found.mean) for label, found in panel.levels.items()}}


def _front(piece: Piece, column: Column, kind: str) -> list[list[float]]:
    found = {panel.column: panel for panel in cost_plots.panels(piece, kind)}
    return [[point.cost, point.mean] for point in found[column].front] if column in found else []


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _known(value: object) -> object:
    return clean(value) if isinstance(value, str) else value
