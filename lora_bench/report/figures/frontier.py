"""The first figure: the main score against the number of trained values, on a logarithmic axis.

The reference is a line by rank. The method that the report is about has a point for each setting, and a line through
the settings chosen in each size class. Points of these lines have their 95% interval. All other methods are grey
points, named where they are the best of their class. Methods without an adapter are horizontal lines.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_bench.report.figures.drawing import (
    LEVEL_STYLES,
    label_axes,
    legend_below,
    new_figure,
    report_style,
    set_log_axis,
    shorten,
    wrap_title,
)
from lora_bench.report.figures.naming import Name, write_names
from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.entries import AVERAGE
from lora_bench.report.numbers.frame import Row, rows_of
from lora_bench.report.numbers.statistics import MIN_SEEDS
from lora_bench.report.numbers.wording import choice_text, column_title, main_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

SIZE = (8.4, 5.0)
_GREY = "#9aa0a6"
_WHITE = {
    "facecolor": "white",
    "edgecolor": "none",
    "pad": 1.0,
}  # behind a text, so that no line of the grid crosses it
_SUBJECT, _REFERENCE = "#0072B2", "#D55E00"
_TARGET_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
LEAST_SPAN = 4.0  # of the axis of trained values, as a factor; chosen
MAX_LEVEL_GAP = 0.25  # of the height of the points; a level further below them is written instead
SIDE_STEP = 0.006  # between points of the same size, as a part of the width of all points; chosen
FOOT_WIDTH = 120  # characters of a line of what is written: the width of the axes in that size of letters
FOOT_HEIGHT = 0.045  # of a line of what is written, as a part of the height of the axes
# Another method is written if it is further below the two that the figure is about than this part of their height, and
# than so many points.
MAX_POINT_GAP, LEAST_GAP = 0.5, 5.0


def frontier_figures(statistics: ScopeStatistics) -> list[Figure]:
    """Return the figure; none without an adapter of a known size."""
    scope = statistics.scope
    low, high = statistics.intervals(scope.main)
    entries = scope.at(scope.main).assign(low=low, high=high)
    entries = entries[(entries["n"] > 0) & entries["adapter_params"].notna()]
    points = entries[entries["adapter_params"] > 0]
    adapters = points[~points["method"].isin(LEVEL_STYLES)]
    if adapters.empty:
        return []
    below = 100 * adapters["mean"] < _floor(adapters, (scope.compare.subject, scope.compare.reference))
    below &= ~adapters["label"].isin((scope.compare.subject, scope.compare.reference))
    with report_style():
        figure, (ax,) = new_figure(SIZE, (1, 1))
        ax.set_xscale("log")
        ax.margins(y=0.07)  # room for names
        _widen(ax, adapters)
        handles = _draw_points(ax, statistics, adapters[~below])
        handles |= _draw_levels(ax, entries, adapters[below])
        set_log_axis(ax)
        name = "average ×100" if scope.main.task == AVERAGE else "score ×100"
        label_axes(ax, "", "trained values of the adapter", name)
        title = wrap_title([f"{scope.title}: {main_name(scope)}"], SIZE[0])
        figure.suptitle(title)
        legend_below(figure, handles, SIZE, len(title.splitlines()), 60)
        write_names(figure, ax, _names(statistics, adapters[below]))
    return [figure]


def _widen(ax: Axes, entries: DataFrame) -> None:
    """Let the axis span a factor at least, so that sizes that are nearly equal look so."""
    low, high = entries["adapter_params"].min(), entries["adapter_params"].max()
    if high < LEAST_SPAN * low:
        middle = math.sqrt(low * high)
        ax.set_xlim(middle / math.sqrt(LEAST_SPAN), middle * math.sqrt(LEAST_SPAN))


def _draw_points(ax: Axes, statistics: ScopeStatistics, entries: DataFrame) -> dict[str, Any]:
    compare = statistics.scope.compare
    handles: dict[str, Any] = {}
    styles = dict(zip(_targets(entries), _TARGET_STYLES * 8, strict=False))
    others = entries[~entries["label"].isin((compare.subject, compare.reference))]
    for targets in [*styles, None] if len(others) else []:
        marker = styles[targets][1] if targets is not None else "o"
        members = others[others["targets"].eq(targets) if targets is not None else others["targets"].isna()]
        drawn = ax.scatter(
            members["adapter_params"], 100 * members["mean"], s=14, marker=marker, color=_GREY, linewidths=0
        )
        handles.setdefault("other methods", drawn)
    lines: dict[str, tuple[DataFrame, str, tuple[str, str]]] = {}
    for targets, style in styles.items():
        suffix = f", {shorten(targets)}" if len(styles) > 1 else ""
        reference = entries[(entries["label"] == compare.reference) & (entries["targets"] == targets)]
        if len(reference):
            lines[f"{compare.reference} by rank{suffix}"] = reference, _REFERENCE, style
        subject = entries[(entries["label"] == compare.subject) & (entries["targets"] == targets)]
        if len(subject):
            ax.scatter(
                subject["adapter_params"],
                100 * subject["mean"],
                s=12,
                marker=style[1],
                color=_SUBJECT,
                alpha=0.35,
                linewidths=0,
            )
            chosen = statistics.chosen_by_class(subject)
            lines[f"{compare.subject}, chosen at each size{suffix}"] = chosen, _SUBJECT, style
    span = entries["adapter_params"].max() / entries["adapter_params"].min()
    handles |= _draw_lines(ax, lines, max(span, LEAST_SPAN))
    return handles


def _draw_lines(ax: Axes, lines: Mapping[str, tuple[DataFrame, str, tuple[str, str]]], span: float) -> dict[str, Any]:
    """Draw the lines through some entries, and return them by label.

    Points of the same size, whose bars would cover each other, stand side by side.

    Args:
        ax: The axes.
        lines: By label, the entries, the colour, and the line style with its marker.
        span: The largest number of trained values on the axis over the smallest one.
    """
    import pandas as pd

    if not lines:
        return {}
    points = pd.concat([entries.assign(line=label) for label, (entries, _, _) in lines.items()])
    same = points.groupby("adapter_params")["line"]
    steps = same.cumcount() - (same.transform("size") - 1) / 2
    points = points.assign(x=points["adapter_params"].astype(float) * span ** (SIDE_STEP * steps))
    handles = {
        label: _draw_line(ax, points[points["line"] == label], colour, style)
        for label, (_, colour, style) in lines.items()
    }
    return handles | ({"95% interval": _interval_handle()} if points["low"].notna().any() else {})


def _draw_line(ax: Axes, entries: DataFrame, colour: str, style: tuple[str, str]) -> Any:
    """Draw a line through entries, with a light bar for the interval of each that has one, and return the line."""
    entries = entries.sort_values("x")
    known = entries[entries["low"].notna()]
    if len(known):
        ax.vlines(
            known["x"],
            100 * known["low"],
            100 * known["high"],
            colors=colour,
            linewidth=0.9,
            alpha=0.45,
            zorder=1.5,
        )
    (line,) = ax.plot(
        entries["x"], 100 * entries["mean"], color=colour, linestyle=style[0], marker=style[1], markersize=5
    )
    return line


def _interval_handle() -> Any:
    """Return what stands for the bars in the legend: they have the colours of their lines."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color="#777777", marker="|", markersize=11, markeredgewidth=1.0, linestyle="none")


def _floor(entries: DataFrame, names: tuple[str, str]) -> float:
    """Return the score ×100 below which other methods are written: drawn, they would press all others together."""
    scores = 100 * entries.loc[entries["label"].isin(names), "mean"]
    gap = max(MAX_POINT_GAP * (scores.max() - scores.min()), LEAST_GAP)
    return float(scores.min() - gap) if len(scores) > 1 else -math.inf


def _names(statistics: ScopeStatistics, below: DataFrame) -> list[Name]:
    """Return the names of the best method of each size class, unless it is in the legend or written below."""
    compare, frontier = statistics.scope.compare, statistics.frontier
    drawn = frontier[~frontier.index.isin(below.index)]
    best = drawn.sort_values("mean", ascending=False, kind="stable").drop_duplicates("size_class")
    named = best[~best["label"].isin((compare.subject, compare.reference))].sort_values("adapter_params")
    return [Name(shorten(row["size"]), row["adapter_params"], 100 * row["mean"]) for row in rows_of(named)]


def _draw_levels(ax: Axes, entries: DataFrame, below: DataFrame) -> dict[str, Any]:
    """Draw the head alone and full fine-tuning as lines; those far below are written at the foot, as are methods."""
    handles: dict[str, Any] = {}
    low, high = ax.get_ylim()
    lowest = low - MAX_LEVEL_GAP * (high - low)
    written = []
    for row in rows_of(entries[entries["method"].isin(LEVEL_STYLES)]):
        colour, _, dashes = LEVEL_STYLES[row["method"]]
        if 100 * row["mean"] < lowest:
            written.append(_foot_text(row["label"], row))
        else:
            handles[row["label"]] = ax.axhline(
                100 * row["mean"], color=colour, linestyle=dashes, linewidth=1.2, zorder=1
            )
    written += [_foot_text(row["size"], row) for row in rows_of(below.sort_values("adapter_params"))]
    if written:
        lines = textwrap.wrap(", ".join(written), FOOT_WIDTH)
        low, high = ax.get_ylim()
        ax.set_ylim(low - len(lines) * FOOT_HEIGHT * (high - low), high)
        ax.text(
            0.01, 0.01, "\n".join(lines), transform=ax.transAxes, fontsize=7, color="#444444", va="bottom", bbox=_WHITE
        )
    return handles


def _foot_text(name: str, row: Row) -> str:
    return f"{shorten(name, 60)} {100 * row['mean']:.1f} ↓"


def _targets(entries: DataFrame) -> list[str]:
    """Return the sets of targets, those with most entries first."""
    counts = entries["targets"].dropna().value_counts()
    return sorted(counts.index, key=lambda name: (-counts[name], name))


def frontier_caption(statistics: ScopeStatistics) -> str:
    """Say what the figure shows."""
    scope = statistics.scope
    what = main_name(scope) if scope.main.task == AVERAGE else column_title(scope.main)
    n = sorted({int(value) for value in scope.at(scope.main)["n"]})
    seeds = str(n[0]) if len(n) == 1 else f"{n[0]} to {n[-1]}"
    return (
        f"Score against trained values on {scope.title}: {what}; means over {seeds} seeds. Line: "
        f"{scope.compare.reference} by rank; points: every setting of {scope.compare.subject}, line through the one "
        f"chosen {choice_text(scope)} at each size; grey: all other methods, the best of a size named; head and full "
        f"fine-tuning are lines. {_interval_sentence(statistics)}"
    )


def _interval_sentence(statistics: ScopeStatistics) -> str:
    """Say what the bars are."""
    scope = statistics.scope
    if not scope.at(scope.main)["n"].ge(MIN_SEEDS).any():
        return f"No bars: fewer than {MIN_SEEDS} seeds."
    examples = statistics.means[scope.main.task].example_terms is not None
    bars = (
        f"Bars: the 95% interval of each mean on a line, over seeds{' and examples' if examples else ''}, from the "
        "deviation between its own seeds, as in the tables; settings of the same size stand side by side."
    )
    shared = " All settings are scored on the same examples, so bars can overlap where a difference is certain."
    return bars + (shared if examples else "")
