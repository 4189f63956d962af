"""Learning curves: the reported metric by epoch, for the chosen setting of a few methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.report.figures.drawing import (
    LEVEL_STYLES,
    MethodStyle,
    compose_figure,
    draw_interval_line,
    label_axes,
    method_styles,
    paginate,
)
from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.entries import Column
from lora_bench.report.numbers.wording import column_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

Curve = Sequence[tuple[float, float, float, float]]
MAX_METHODS = 6


@dataclass(frozen=True)
class CurvePanel:
    """The curves of one task: for each label (epoch, mean, mean - std, mean + std), in the metric's units."""

    column: Column
    curves: Mapping[str, Curve]


def curve_panels(statistics: ScopeStatistics) -> list[CurvePanel]:
    """Return the panels of the tasks that have several epochs, and more than what all methods are compared with."""
    scope = statistics.scope
    arms = drawn_arms(statistics)
    panels = []
    for column in scope.tasks:
        entries = scope.at(column)
        curves = {}
        for arm, label in arms.items():
            cells = scope.cells[scope.cells["entry"].isin(entries[entries["arm"] == arm].index)]
            if curve := learning_curve(cells):
                curves[label] = curve
        only_levels = curves.keys() <= LEVEL_STYLES.keys() and len(curves) < len(arms)
        if max((len(curve) for curve in curves.values()), default=0) > 1 and not only_levels:
            panels.append(CurvePanel(column, curves))
    return panels


def drawn_arms(statistics: ScopeStatistics) -> dict[int, str]:
    """Return the chosen arms of the main column: reference and subject, head and full, then the best ones."""
    scope = statistics.scope
    chosen = scope.chosen[scope.main.task].sort_values("mean", ascending=False, kind="stable")
    best = chosen.drop_duplicates("label")
    first = (scope.compare.subject, scope.compare.reference, *LEVEL_STYLES)
    ordered = sorted(zip(best["label"], best["arm"], best["size"], strict=True), key=lambda item: item[0] not in first)
    return {arm: size for _, arm, size in ordered[:MAX_METHODS]}


def learning_curve(cells: DataFrame) -> Curve:
    """Return the mean and the sample standard deviation by epoch, over the cells that have a score."""
    by_epoch: dict[int, list[float]] = {}
    scored = cells[cells["score"].notna()]
    for record, metric in zip(scored["record"], scored["metric"], strict=True):
        for epoch in record.epochs:
            value = epoch.metrics.get(metric)
            if value is not None:
                by_epoch.setdefault(epoch.epoch, []).append(value)
    return [(float(epoch), *_mean_and_band(values)) for epoch, values in sorted(by_epoch.items())]


def _mean_and_band(values: Sequence[float]) -> tuple[float, float, float]:
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else 0.0
    return mean, mean - std, mean + std


def curve_figures(statistics: ScopeStatistics) -> list[Figure]:
    """Return a figure for each page of panels."""
    panels = curve_panels(statistics)
    styles = method_styles({label for panel in panels for label in panel.curves})
    heading = [f"{statistics.scope.title}: score by epoch"]
    return [
        compose_figure(heading, page, lambda ax, panel: _paint_panel(ax, panel, styles), styles)
        for page in paginate(panels)
    ]


def _paint_panel(ax: Axes, panel: CurvePanel, styles: Mapping[str, MethodStyle]) -> dict[str, Any]:
    from matplotlib.ticker import MaxNLocator

    handles = {label: draw_interval_line(ax, styles[label], curve) for label, curve in panel.curves.items()}
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_axes(ax, column_title(panel.column), "epoch")
    return handles
