"""Heat maps: the main score by a and b, a map per rank and a row of maps per set of targets, on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_bench.report.figures.drawing import new_figure, report_style, shorten, wrap_title
from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.tables import percent
from lora_bench.report.numbers.wording import main_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from pandas import DataFrame

_MAP_SIZE = 2.1  # inches
_MAX_LABELLED = 8  # sizes along a side up to which every square shows its number


def heat_entries(statistics: ScopeStatistics) -> DataFrame:
    """Return the entries of the main column that are drawn: those of the subject with a, b and a rank."""
    scope = statistics.scope
    entries = scope.at(scope.main)
    entries = entries[(entries["label"] == scope.compare.subject) & (entries["n"] > 0)]
    return entries[entries["a"].notna() & entries["b"].notna() & entries["rank"].notna()]


def heat_figures(statistics: ScopeStatistics) -> list[Figure]:
    """Return the figure; none without several (a, b)."""
    entries = heat_entries(statistics)
    if entries[["a", "b"]].drop_duplicates().shape[0] < 2:
        return []
    scope = statistics.scope
    ranks = sorted(entries["rank"].unique())
    targets = sorted(entries["targets"].dropna().unique()) or [None]
    limits = float(entries["mean"].min()), float(entries["mean"].max())
    sizes = sorted(entries["a"].unique()), sorted(entries["b"].unique())
    width, height = max(_MAP_SIZE * len(ranks), 4.2), _MAP_SIZE * len(targets)
    title = wrap_title([f"{scope.title}, {scope.compare.subject}: {main_name(scope)}"], width)
    with report_style():
        figure, axes = new_figure((width, height + 0.2 * len(title.splitlines()) + 0.2), (len(targets), len(ranks)))
        for index, ax in enumerate(axes):
            row, column = divmod(index, len(ranks))
            members = entries[
                (entries["rank"] == ranks[column]) & (entries["targets"].eq(targets[row]) if targets[row] else True)
            ]
            image = _draw_map(ax, _grid(members, sizes), limits)
            ax.set_xticks(*_ticks(sizes[1]))
            ax.set_yticks(*_ticks(sizes[0] if column == 0 else ()))
            if row == 0:
                ax.set_title(f"r={ranks[column]}", fontsize=9)
            if row == len(targets) - 1:
                ax.set_xlabel("b")
            if column == 0:
                ax.set_ylabel(f"{shorten(targets[row] or '')}\na")
        if max(map(len, sizes)) > _MAX_LABELLED:
            figure.colorbar(image, ax=axes[-1]).ax.yaxis.set_major_formatter(_format_tick)
        figure.suptitle(title)
    return [figure]


def _grid(entries: DataFrame, sizes: tuple[Sequence[int], Sequence[int]]) -> list[list[float]]:
    """Return the means by a (rows) and b (columns); NaN where there is none."""
    means = entries.groupby(["a", "b"])["mean"].mean().to_dict()
    return [[means.get((a, b), math.nan) for b in sizes[1]] for a in sizes[0]]


def _ticks(sizes: Sequence[int]) -> tuple[list[int], list[str]]:
    """Return the positions and labels of at most eight ticks."""
    step = -(-len(sizes) // _MAX_LABELLED) or 1
    return [*range(0, len(sizes), step)], [str(size) for size in sizes[::step]]


def _draw_map(ax: Axes, values: Sequence[Sequence[float]], limits: tuple[float, float]) -> AxesImage:
    """Draw one map: a upwards, b to the right; NaN is an empty square."""
    low, high = limits if limits[1] > limits[0] else (limits[0] - 0.005, limits[0] + 0.005)
    image = ax.imshow(values, cmap="cividis", vmin=low, vmax=high, origin="lower", aspect="auto")
    if max(len(values), len(values[0])) > _MAX_LABELLED:
        return image
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            is_dark = value < (low + high) / 2
            text = "–" if math.isnan(value) else percent(value)
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if is_dark else "black")
    return image


def _format_tick(value: float, _: object) -> str:
    """Format a tick of the colour bar.

    This is a function of the module, not a lambda, because figures are pickled on their way to other processes.
    """
    return percent(value)
