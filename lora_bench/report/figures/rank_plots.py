"""Score against rank, the form of LoRA-Mini's Figure 2: small multiples of up to four tasks a page.

Each method with a rank is one line; methods with (a, b) are averaged over all (a, b) of a rank. Methods without a rank
are horizontal. Many methods are spread over several figures.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_bench.report.figures.captions import column_title
from lora_bench.report.figures.drawing import (
    Look,
    band,
    compose,
    far_level,
    in_pages,
    label_axes,
    level,
    looks,
    parted,
    short,
)
from lora_bench.report.numbers.slots import Column, Entry, Piece, Slot, average, by_rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FAR, HEIGHTS = 25, 2  # points and heights of the lines below them from which a level is told, not drawn


@dataclass(frozen=True)
class Panel:
    """One task: score by rank for each method with ranks, one score for each without, in the metric's units.

    `paired` are the methods that have (a, b).
    """

    column: Column
    paired: frozenset[str]
    lines: Mapping[str, Mapping[int, Entry]]
    levels: Mapping[str, Entry]

    def of(self, labels: Container[str]) -> Panel:
        """These methods alone."""
        lines = {label: line for label, line in self.lines.items() if label in labels}
        levels = {label: score for label, score in self.levels.items() if label in labels}
        return replace(self, lines=lines, levels=levels, paired=self.paired & {*lines, *levels})


def panels(piece: Piece) -> tuple[Panel, ...]:
    """The tasks of the piece that have a score at some rank."""
    found = [_panel(column, slots) for column, slots in piece.columns.items()]
    return tuple(panel for panel in found if panel.lines)


def paired_only(found: Sequence[Panel]) -> tuple[Panel, ...]:
    """The panels with the methods that have (a, b) alone, as the paper's figure."""
    only = [replace(panel.of(panel.paired), levels={}) for panel in found]
    return tuple(panel for panel in only if panel.lines)


def rank_figures(title: str, found: Sequence[Panel]) -> list[Figure]:
    """A figure a page of four panels, for each part of the methods."""
    labels = _labels(found)
    look = looks(labels)
    parts = [[panel.of(part) for panel in found] for part in parted(labels)]
    return [draw(title, page, look) for part in parts for page in in_pages([panel for panel in part if panel.lines])]


def draw(title: str, page: Sequence[Panel], look: Mapping[str, Look] | None = None) -> Figure:
    """The figure of one page."""
    look = look or looks(_labels(page))
    axes: list[Axes] = []

    def paint(ax: Axes, panel: Panel) -> dict[str, Any]:
        axes.append(ax)
        return _paint(ax, panel, look)

    figure = compose([title, _says(page)], page, paint, look)
    _share_scales(page, axes)
    return figure


def _panel(column: Column, slots: Sequence[Slot]) -> Panel:
    lines = {}
    for label, ranks in by_rank(slots).items():
        entries = {rank: average(found) for rank, found in ranks.items()}
        if scored := {rank: entry for rank, entry in entries.items() if entry.mean is not None}:
            lines[label] = scored
    levels = {slot.label: slot.entry for slot in slots if slot.rank is None and slot.scores}
    paired = frozenset(slot.label for slot in slots if slot.pair != (None, None))
    return Panel(column, paired, lines, levels)


def _labels(found: Iterable[Panel]) -> set[str]:
    return {label for panel in found for label in (*panel.lines, *panel.levels)}


def _says(page: Sequence[Panel]) -> str:
    paired = sorted({short(label) for panel in page for label in panel.paired})
    averaged = f"; {', '.join(paired)}: averaged over (a, b)" if paired else ""
    return f"mean ± sample std over seeds{averaged}"


def _paint(ax: Axes, panel: Panel, look: Mapping[str, Look]) -> dict[str, Any]:
    handles = {}
    for label, entries in panel.lines.items():
        points = [(float(rank), entry.mean or 0.0, entry.std or 0.0) for rank, entry in entries.items()]
        handles[label] = band(ax, look[label], points)
    low, high = ax.get_ylim()
    for label, entry in panel.levels.items():
        value = entry.mean or 0.0
        far = 100 * value < low - max(FAR, HEIGHTS * (high - low))
        handles[label] = far_level(ax, look[label], label, value) if far else level(ax, look[label], value)
    _rank_axis(ax, sorted({rank for entries in panel.lines.values() for rank in entries}))
    label_axes(ax, column_title(panel.column), "rank r")
    return handles


def _rank_axis(ax: Axes, ranks: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.set_xlim(ranks[0] / 1.35, ranks[-1] * 1.35)


def _share_scales(page: Sequence[Panel], axes: Sequence[Axes]) -> None:
    """Panels of one metric get one scale, unless that would press the widest into less than two thirds of it."""
    for metric in sorted({panel.column.metric for panel in page}):
        same = [ax for panel, ax in zip(page, axes, strict=True) if panel.column.metric == metric]
        limits = [ax.get_ylim() for ax in same]
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        if high - low <= 1.5 * max(high - low for low, high in limits):
            for ax in same:
                ax.set_ylim(low, high)
