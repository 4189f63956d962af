"""Learning curves: the reported metric by epoch, of the best setting of each method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_bench.report.figures.captions import column_title
from lora_bench.report.figures.drawing import Look, band, compose, in_pages, label_axes, looks, parted
from lora_bench.report.numbers.slots import Column, Piece, Slot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One task: for each method (epoch, mean, std) over the seeds that have a value, in the metric's units."""

    column: Column
    curves: Mapping[str, Curve]


def panels(piece: Piece) -> tuple[Panel, ...]:
    """The tasks that have epochs."""
    found = [
        Panel(column, {label: points for label, slot in piece.chosen(column).items() if (points := curve(slot))})
        for column in piece.columns
    ]
    return tuple(panel for panel in found if panel.curves)


def curve(slot: Slot) -> Curve:
    """Mean and sample standard deviation (0 for one seed) by epoch, over the cells that have a score."""
    by_epoch: dict[int, list[float]] = {}
    for cell in slot.cells:
        for epoch in cell["record"].epochs if cell["score"] is not None else ():
            value = epoch.metrics.get(cell["metric"])
            if value is not None:
                by_epoch.setdefault(epoch.epoch, []).append(value)
    return tuple(
        (float(epoch), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for epoch, values in sorted(by_epoch.items())
    )


def curve_figures(piece: Piece) -> list[Figure]:
    """A figure a page of four panels, for each part of the methods."""
    found = panels(piece)
    labels = {label for panel in found for label in panel.curves}
    look = looks(labels)
    heading = [piece.title, "best setting of each method by epoch; mean ± sample std over seeds"]
    made = []
    for part in parted(labels):
        own = [replace(panel, curves={k: v for k, v in panel.curves.items() if k in part}) for panel in found]
        pages = in_pages([panel for panel in own if panel.curves])
        made += [compose(heading, page, lambda ax, panel: _paint(ax, panel, look), look) for page in pages]
    return made


def _paint(ax: Axes, panel: Panel, look: Mapping[str, Look]) -> dict[str, Any]:
    from matplotlib.ticker import MaxNLocator

    handles = {label: band(ax, look[label], points) for label, points in panel.curves.items()}
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if {epoch for points in panel.curves.values() for epoch, _, _ in points} == {1.0}:
        ax.set_xlim(0.5, 1.5)
        ax.set_xticks([1])
    label_axes(ax, column_title(panel.column), "epoch")
    return handles
