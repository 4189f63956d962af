"""Learning curves: the reported metric by epoch, of the best setting of each method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.report.captions import column_title
from lora_bench.report.drawing import Look, band, compose, in_pages, label_axes, looks
from lora_bench.report.slots import Column, Piece, Slot

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
    """A figure a page of four panels."""
    found = panels(piece)
    look = looks({label for panel in found for label in panel.curves})
    heading = [piece.title, "best setting of each method by epoch; mean ± sample std over seeds"]
    return [compose(heading, page, lambda ax, panel: _paint(ax, panel, look), look) for page in in_pages(found)]


def _paint(ax: Axes, panel: Panel, look: Mapping[str, Look]) -> dict[str, Any]:
    from matplotlib.ticker import MaxNLocator

    handles = {label: band(ax, look[label], points) for label, points in panel.curves.items()}
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_axes(ax, column_title(panel.column), "epoch")
    return handles
