"""Learning curves: the reported metric by epoch, for the best setting of each method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_bench.report.figures.drawing import (
    MethodStyle,
    compose_figure,
    divide_methods,
    draw_band,
    label_axes,
    method_styles,
    paginate,
)
from lora_bench.report.numbers.entries import Column, Entry, Subset
from lora_bench.report.numbers.wording import column_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class CurvePanel:
    """The curves of one task: for each method (epoch, mean, std) over seeds, in the metric's units."""

    column: Column
    curves: Mapping[str, Curve]


def curve_panels(subset: Subset) -> tuple[CurvePanel, ...]:
    """Return the panels of the tasks that have epochs."""
    panels = []
    for column in subset.columns:
        curves = {label: learning_curve(entry) for label, entry in subset.best_entries(column).items()}
        panels.append(CurvePanel(column, {label: curve for label, curve in curves.items() if curve}))
    return tuple(panel for panel in panels if panel.curves)


def learning_curve(entry: Entry) -> Curve:
    """Return the mean and the sample standard deviation (0 for one seed) by epoch, over the cells that have a score."""
    by_epoch: dict[int, list[float]] = {}
    for cell in entry.cells:
        for epoch in cell["record"].epochs if cell["score"] is not None else ():
            value = epoch.metrics.get(cell["metric"])
            if value is not None:
                by_epoch.setdefault(epoch.epoch, []).append(value)
    return tuple(
        (float(epoch), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for epoch, values in sorted(by_epoch.items())
    )


def curve_figures(subset: Subset) -> list[Figure]:
    """Return a figure for each page of four panels and each group of methods."""
    panels = curve_panels(subset)
    labels = {label for panel in panels for label in panel.curves}
    styles = method_styles(labels)
    heading = [subset.title, "best setting of each method by epoch; mean ± sample std over seeds"]
    figures = []
    for group in divide_methods(labels):
        selected = [
            replace(panel, curves={label: curve for label, curve in panel.curves.items() if label in group})
            for panel in panels
        ]
        pages = paginate([panel for panel in selected if panel.curves])
        figures += [
            compose_figure(heading, page, lambda ax, panel: _paint_panel(ax, panel, styles), styles) for page in pages
        ]
    return figures


def _paint_panel(ax: Axes, panel: CurvePanel, styles: Mapping[str, MethodStyle]) -> dict[str, Any]:
    from matplotlib.ticker import MaxNLocator

    handles = {label: draw_band(ax, styles[label], curve) for label, curve in panel.curves.items()}
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if {epoch for curve in panel.curves.values() for epoch, _, _ in curve} == {1.0}:
        ax.set_xlim(0.5, 1.5)
        ax.set_xticks([1])
    label_axes(ax, column_title(panel.column), "epoch")
    return handles
