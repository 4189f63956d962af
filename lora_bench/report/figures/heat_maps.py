"""Heat maps of (a, b): one row per task, one column per rank, one colour scale per task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_bench.report.figures.drawing import new_figure, paginate, report_style, shorten, wrap_title
from lora_bench.report.numbers.entries import Column, Entry, Subset, group_by_rank, has_pairs, percent
from lora_bench.report.numbers.frame import sort_key
from lora_bench.report.numbers.wording import column_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_MAP_SIZE = 2.1  # inches
_MAX_LABELLED = 8  # sizes along a side up to which every square shows its number
RankMaps = tuple[Column, dict[int, list[Entry]]]


def heat_maps(subset: Subset) -> dict[str, list[RankMaps]]:
    """Return the entries by rank of each task with a score, for each method with more than one (a, b)."""
    maps: dict[str, list[RankMaps]] = {}
    for column, column_entries in subset.columns.items():
        for label, ranks in group_by_rank(column_entries).items():
            entries = [entry for rank_entries in ranks.values() for entry in rank_entries]
            has_several_pairs = has_pairs(ranks) and len({entry.pair for entry in entries}) > 1
            if has_several_pairs and any(entry.scores for entry in entries):
                maps.setdefault(label, []).append((column, ranks))
    return maps


def heat_figures(subset: Subset, label: str, maps: Sequence[RankMaps]) -> list[Figure]:
    """Return a figure for each page of four tasks."""
    heading = [subset.title, f"{label}: mean over seeds ×100, by a and b; one scale of colour a task; – no score"]
    return [_draw_page(heading, page) for page in paginate(maps)]


def _draw_page(heading: Sequence[str], page: Sequence[RankMaps]) -> Figure:
    ranks = sorted({rank for _, by_rank in page for rank in by_rank})
    width, height = max(_MAP_SIZE * len(ranks), 4.2), _MAP_SIZE * len(page)
    title = wrap_title(heading, width)
    with report_style():
        size = (width, height + 0.2 * len(title.splitlines()) + 0.2)
        figure, axes = new_figure(size, (len(page), len(ranks)))
        for index, (column, by_rank) in enumerate(page):
            _draw_row(axes[index * len(ranks) : (index + 1) * len(ranks)], column, by_rank, ranks)
        for rank, top, bottom in zip(ranks, axes, axes[-len(ranks) :], strict=False):
            top.set_title(f"r={rank}", fontsize=9)
            bottom.set_xlabel("b")
        figure.suptitle(title)
    return figure


def _draw_row(axes: Sequence[Axes], column: Column, by_rank: dict[int, list[Entry]], ranks: Sequence[int]) -> None:
    """Draw the maps of one task, all with the same sizes along the sides and the same colours."""
    entries = [entry for rank_entries in by_rank.values() for entry in rank_entries]
    a_sizes, b_sizes = (
        sorted({entry.pair[side] for entry in entries}, key=lambda size: sort_key((size,))) for side in (0, 1)
    )
    means = [entry.summary.mean for entry in entries if entry.summary.mean is not None]
    for rank, ax in zip(ranks, axes, strict=True):
        by_pair = {entry.pair: entry.summary.mean for entry in by_rank.get(rank, ())}
        values = [[by_pair.get((a, b)) for b in b_sizes] for a in a_sizes]
        image = _draw_map(ax, values, (min(means), max(means)))
        ax.set_xticks(*_ticks(b_sizes))
        ax.set_yticks(*_ticks(a_sizes if ax is axes[0] else ()))
    axes[0].set_ylabel(f"{shorten(column_title(column))}\na")
    if max(len(a_sizes), len(b_sizes)) > _MAX_LABELLED:
        colorbar = axes[-1].figure.colorbar(image, ax=axes[-1])
        colorbar.ax.yaxis.set_major_formatter(_format_tick)


def _ticks(sizes: Sequence[int | None]) -> tuple[list[int], list[str]]:
    """Return the positions and labels of at most eight ticks."""
    step = -(-len(sizes) // _MAX_LABELLED) or 1
    return [*range(0, len(sizes), step)], [str(size) for size in sizes[::step]]


def _draw_map(ax: Axes, values: Sequence[Sequence[float | None]], limits: tuple[float, float]) -> AxesImage:
    """Draw one map: a upwards, b to the right; None is an empty square."""
    shown = [[math.nan if value is None else value for value in line] for line in values]
    low, high = limits if limits[1] > limits[0] else (limits[0] - 0.005, limits[0] + 0.005)
    image = ax.imshow(shown, cmap="cividis", vmin=low, vmax=high, origin="lower", aspect="auto")
    if max(len(values), len(values[0])) > _MAX_LABELLED:
        return image
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            is_dark = value is not None and value < (low + high) / 2
            text = "–" if value is None else percent(value)
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if is_dark else "black")
    return image


def _format_tick(value: float, _: object) -> str:
    """Format a tick of the colour bar.

    This is a function of the module, not a lambda, because figures are pickled on their way to other processes.
    """
    return percent(value)
