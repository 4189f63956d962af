"""Score against what it costs (trained values, bytes on disk, seconds), with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.report.figures.captions import column_title
from lora_bench.report.figures.drawing import Look, compose, in_pages, label_axes, level, looks
from lora_bench.report.numbers.rows import device_kind
from lora_bench.report.numbers.slots import Column, Piece, Slot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS: Mapping[str, Callable[[Slot], float | None]] = {
    "params": lambda slot: slot.largest("adapter_params"),
    "bytes": lambda slot: slot.largest("adapter_bytes"),
    "seconds": lambda slot: slot.seconds(),
}
_WORDS = {"params": "trained adapter values", "bytes": "adapter bytes on disk", "seconds": "seconds a cell"}


@dataclass(frozen=True)
class Point:
    """A slot in the plane of cost and score (metric's units)."""

    label: str
    cost: float
    mean: float
    std: float


@dataclass(frozen=True)
class Panel:
    """One task: what has a cost, what costs nothing (drawn as a level), and the front."""

    column: Column
    points: tuple[Point, ...]
    free: tuple[Point, ...]
    front: tuple[Point, ...]


def pareto(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other beats: none that costs as much or less has the same mean or a better one."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.mean, each.label)):
        if not front or point.mean > front[-1].mean:
            front.append(point)
    return tuple(front)


def panels(piece: Piece, kind: str) -> tuple[Panel, ...]:
    """The tasks of the piece that have something with that cost."""
    found = [_panel(column, slots, COSTS[kind]) for column, slots in piece.columns.items()]
    return tuple(panel for panel in found if panel.points)


def cost_figures(piece: Piece, kind: str) -> list[Figure]:
    """A figure a page of four panels."""
    found = panels(piece, kind)
    device = device_kind(cell for slots in piece.columns.values() for slot in slots for cell in slot.cells)
    words = f"{device if kind == 'seconds' else ''}{_WORDS[kind]}"
    look = looks({point.label for panel in found for point in (*panel.points, *panel.free)})
    heading = [piece.title, f"mean over seeds; every setting against {words}; the front has ± sample std"]
    return [
        compose(heading, page, lambda ax, panel: _paint(ax, panel, look, words), (*look, "Pareto front"))
        for page in in_pages(found)
    ]


def _panel(column: Column, slots: Sequence[Slot], cost: Callable[[Slot], float | None]) -> Panel:
    known = [(slot, slot.entry.mean, cost(slot)) for slot in slots]
    found = [
        Point(slot.label, float(at), mean, slot.entry.std or 0.0)
        for slot, mean, at in known
        if mean is not None and at is not None
    ]
    points = tuple(point for point in found if point.cost > 0)
    return Panel(column, points, tuple(point for point in found if point.cost == 0), pareto(points))


def _paint(ax: Axes, panel: Panel, look: Mapping[str, Look], across: str) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for label in sorted({point.label for point in panel.points}):
        mine = [point for point in panel.points if point.label == label]
        handles[label] = ax.scatter(
            [point.cost for point in mine], [100 * point.mean for point in mine], s=18, marker=look[label].marker,
            color=look[label].colour, alpha=0.75, linewidths=0.8, zorder=3,
        )  # fmt: skip
    for point in panel.free:
        handles.setdefault(point.label, level(ax, look[point.label], point.mean))
    handles["Pareto front"] = _front(ax, panel.front)
    _log_axis(ax)
    label_axes(ax, column_title(panel.column), across)
    return handles


def _log_axis(ax: Axes) -> None:
    """1k, 2k, 5k, or powers of ten alone where there are many."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    steps = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_locator(NullLocator())


def _front(ax: Axes, front: Sequence[Point]) -> Any:
    costs, means = [point.cost for point in front], [100 * point.mean for point in front]
    ax.errorbar(
        costs, means, yerr=[100 * point.std for point in front], fmt="none", ecolor="#555555", elinewidth=0.8, capsize=2
    )  # fmt: skip
    (line,) = ax.step(costs, means, where="post", color="#555555", linewidth=1, zorder=2)
    return line
