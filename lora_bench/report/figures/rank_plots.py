"""Score against rank, in the form of LoRA-Mini's Figure 2: small multiples of up to four tasks per page.

Each method with a rank is a line; methods with (a, b) are averaged over all (a, b) of a rank. Methods without a rank
are horizontal lines. If there are many methods, they are divided among several figures.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_bench.report.figures.drawing import (
    MethodStyle,
    annotate_low_level,
    compose_figure,
    divide_methods,
    draw_band,
    draw_level,
    label_axes,
    method_styles,
    paginate,
    shorten,
)
from lora_bench.report.numbers.entries import Column, Entry, Subset, Summary, average_summary, group_by_rank
from lora_bench.report.numbers.wording import column_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A level is written instead of drawn if it lies further below the lines than both of these.
LOW_POINTS = 25  # of the score ×100
LOW_HEIGHTS = 2  # multiples of the height that the lines take


@dataclass(frozen=True)
class RankPanel:
    """The scores of one task, in the metric's units.

    Attributes:
        column: the task and metric.
        paired: the methods that have (a, b).
        lines: the summary by rank, for each method with ranks.
        levels: the summary of each method without ranks.
    """

    column: Column
    paired: frozenset[str]
    lines: Mapping[str, Mapping[int, Summary]]
    levels: Mapping[str, Summary]

    def select(self, labels: Container[str]) -> RankPanel:
        """Return the panel with these methods only."""
        lines = {label: line for label, line in self.lines.items() if label in labels}
        levels = {label: score for label, score in self.levels.items() if label in labels}
        return replace(self, lines=lines, levels=levels, paired=self.paired & {*lines, *levels})


def rank_panels(subset: Subset) -> tuple[RankPanel, ...]:
    """Return the panels of the tasks that have a score at some rank."""
    panels = [_rank_panel(column, entries) for column, entries in subset.columns.items()]
    return tuple(panel for panel in panels if panel.lines)


def paired_only(panels: Sequence[RankPanel]) -> tuple[RankPanel, ...]:
    """Return the panels with only the methods that have (a, b), like the paper's figure."""
    selected = [replace(panel.select(panel.paired), levels={}) for panel in panels]
    return tuple(panel for panel in selected if panel.lines)


def rank_figures(title: str, panels: Sequence[RankPanel]) -> list[Figure]:
    """Return a figure for each page of four panels and each group of methods."""
    labels = _labels(panels)
    styles = method_styles(labels)
    groups = [[panel.select(group) for panel in panels] for group in divide_methods(labels)]
    return [
        draw_rank_page(title, page, styles)
        for group in groups
        for page in paginate([panel for panel in group if panel.lines])
    ]


def draw_rank_page(title: str, page: Sequence[RankPanel], styles: Mapping[str, MethodStyle] | None = None) -> Figure:
    """Draw one page; without `styles`, the methods on the page determine them."""
    page_styles = styles or method_styles(_labels(page))
    panel_axes: list[Axes] = []

    def paint(ax: Axes, panel: RankPanel) -> dict[str, Any]:
        panel_axes.append(ax)
        return _paint_panel(ax, panel, page_styles)

    figure = compose_figure([title, _subtitle(page)], page, paint, page_styles)
    _share_scales(page, panel_axes)
    return figure


def _rank_panel(column: Column, entries: Sequence[Entry]) -> RankPanel:
    lines = {}
    for label, ranks in group_by_rank(entries).items():
        averages = {rank: average_summary(rank_entries) for rank, rank_entries in ranks.items()}
        if scored := {rank: summary for rank, summary in averages.items() if summary.mean is not None}:
            lines[label] = scored
    levels = {entry.label: entry.summary for entry in entries if entry.rank is None and entry.scores}
    paired = frozenset(entry.label for entry in entries if entry.pair != (None, None))
    return RankPanel(column, paired, lines, levels)


def _labels(panels: Iterable[RankPanel]) -> set[str]:
    return {label for panel in panels for label in (*panel.lines, *panel.levels)}


def _subtitle(page: Sequence[RankPanel]) -> str:
    paired = sorted({shorten(label) for panel in page for label in panel.paired})
    averaged = f"; {', '.join(paired)}: averaged over (a, b)" if paired else ""
    return f"mean ± sample std over seeds{averaged}"


def _paint_panel(ax: Axes, panel: RankPanel, styles: Mapping[str, MethodStyle]) -> dict[str, Any]:
    handles = {}
    for label, summaries in panel.lines.items():
        points = [(float(rank), summary.mean or 0.0, summary.std or 0.0) for rank, summary in summaries.items()]
        handles[label] = draw_band(ax, styles[label], points)
    low, high = ax.get_ylim()
    lowest_level = low - max(LOW_POINTS, LOW_HEIGHTS * (high - low))
    for label, summary in panel.levels.items():
        score = summary.mean or 0.0
        if 100 * score < lowest_level:
            handles[label] = annotate_low_level(ax, styles[label], label, score)
        else:
            handles[label] = draw_level(ax, styles[label], score)
    _set_rank_axis(ax, sorted({rank for summaries in panel.lines.values() for rank in summaries}))
    label_axes(ax, column_title(panel.column), "rank r")
    return handles


def _set_rank_axis(ax: Axes, ranks: Sequence[int]) -> None:
    """Make the x axis logarithmic with a tick at each rank and a margin on both sides."""
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.set_xlim(ranks[0] / 1.35, ranks[-1] * 1.35)


def _share_scales(page: Sequence[RankPanel], axes: Sequence[Axes]) -> None:
    """Give panels of one metric the same y axis, unless the tallest one would shrink to less than two thirds."""
    for metric in sorted({panel.column.metric for panel in page}):
        same_metric = [ax for panel, ax in zip(page, axes, strict=True) if panel.column.metric == metric]
        limits = [ax.get_ylim() for ax in same_metric]
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        if high - low <= 1.5 * max(high - low for low, high in limits):
            for ax in same_metric:
                ax.set_ylim(low, high)
