"""Score against cost (trained values, bytes on disk, seconds), with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.report.figures.drawing import (
    MethodStyle,
    compose_figure,
    draw_level,
    label_axes,
    method_styles,
    paginate,
)
from lora_bench.report.numbers.entries import Column, Entry, Subset
from lora_bench.report.numbers.frame import device_prefix
from lora_bench.report.numbers.wording import column_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS: Mapping[str, Callable[[Entry], float | None]] = {
    "params": lambda entry: entry.largest("adapter_params"),
    "bytes": lambda entry: entry.largest("adapter_bytes"),
    "seconds": lambda entry: entry.seconds(),
}
_COST_NAMES = {"params": "trained adapter values", "bytes": "adapter bytes on disk", "seconds": "seconds a cell"}


@dataclass(frozen=True)
class CostPoint:
    """An entry's cost and its score, in the metric's units."""

    label: str
    cost: float
    mean: float
    std: float


@dataclass(frozen=True)
class CostPanel:
    """The entries of one task.

    Attributes:
        points: the entries with a cost above zero.
        free: the entries that cost nothing, which are drawn as levels.
        front: the Pareto front of `points`.
    """

    column: Column
    points: tuple[CostPoint, ...]
    free: tuple[CostPoint, ...]
    front: tuple[CostPoint, ...]


def pareto_front(points: Iterable[CostPoint]) -> tuple[CostPoint, ...]:
    """Return the points for which no other point costs as much or less and has the same mean or a better one."""
    front: list[CostPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.mean, point.label)):
        if not front or point.mean > front[-1].mean:
            front.append(point)
    return tuple(front)


def cost_panels(subset: Subset, cost: str) -> tuple[CostPanel, ...]:
    """Return the panels of the tasks that have entries with that cost, which is a key of `COSTS`."""
    panels = [_cost_panel(column, entries, COSTS[cost]) for column, entries in subset.columns.items()]
    return tuple(panel for panel in panels if panel.points)


def cost_figures(subset: Subset, cost: str) -> list[Figure]:
    """Return a figure for each page of four panels."""
    panels = cost_panels(subset, cost)
    cells = (cell for entries in subset.columns.values() for entry in entries for cell in entry.cells)
    cost_name = f"{device_prefix(cells) if cost == 'seconds' else ''}{_COST_NAMES[cost]}"
    styles = method_styles({point.label for panel in panels for point in (*panel.points, *panel.free)})
    heading = [subset.title, f"mean over seeds; every setting against {cost_name}; the front has ± sample std"]
    return [
        compose_figure(
            heading, page, lambda ax, panel: _paint_panel(ax, panel, styles, cost_name), (*styles, "Pareto front")
        )
        for page in paginate(panels)
    ]


def _cost_panel(column: Column, entries: Sequence[Entry], cost_of: Callable[[Entry], float | None]) -> CostPanel:
    candidates = [(entry, entry.summary.mean, cost_of(entry)) for entry in entries]
    points = [
        CostPoint(entry.label, float(cost), mean, entry.summary.std or 0.0)
        for entry, mean, cost in candidates
        if mean is not None and cost is not None
    ]
    # The axis of costs is logarithmic and cannot show zero.
    costly = tuple(point for point in points if point.cost > 0)
    return CostPanel(column, costly, tuple(point for point in points if point.cost == 0), pareto_front(costly))


def _paint_panel(ax: Axes, panel: CostPanel, styles: Mapping[str, MethodStyle], x_label: str) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for label in sorted({point.label for point in panel.points}):
        points = [point for point in panel.points if point.label == label]
        handles[label] = ax.scatter(
            [point.cost for point in points],
            [100 * point.mean for point in points],
            s=18,
            marker=styles[label].marker,
            color=styles[label].colour,
            alpha=0.75,
            linewidths=0.8,
            zorder=3,
        )
    for point in panel.free:
        handles.setdefault(point.label, draw_level(ax, styles[point.label], point.mean))
    handles["Pareto front"] = _draw_front(ax, panel.front)
    _set_log_axis(ax)
    label_axes(ax, column_title(panel.column), x_label)
    return handles


def _set_log_axis(ax: Axes) -> None:
    """Make the x axis logarithmic, with ticks such as 1k, 2k, 5k, or only powers of ten over a long range."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    steps = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_locator(NullLocator())


def _draw_front(ax: Axes, front: Sequence[CostPoint]) -> Any:
    """Draw the front as steps with error bars and return the line for the legend."""
    costs, means = [point.cost for point in front], [100 * point.mean for point in front]
    deviations = [100 * point.std for point in front]
    ax.errorbar(costs, means, yerr=deviations, fmt="none", ecolor="#555555", elinewidth=0.8, capsize=2)
    (line,) = ax.step(costs, means, where="post", color="#555555", linewidth=1, zorder=2)
    return line
