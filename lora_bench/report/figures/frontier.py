"""The first figure: the main score against the number of trained values, on a logarithmic axis.

The reference is a line by rank. The method that the report is about has a point for each setting, and a line through
the settings chosen in each size class. All other methods are grey points, named where they are the best of their class.
Methods without an adapter are horizontal lines. One error bar, of the median deviation, stands for all.
"""

from __future__ import annotations

import math
import textwrap
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
from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.entries import AVERAGE, Scope
from lora_bench.report.numbers.frame import rows_of
from lora_bench.report.numbers.statistics import MIN_SEEDS
from lora_bench.report.numbers.wording import choice_text, column_title, main_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

SIZE = (8.4, 5.0)
_GREY = "#9aa0a6"
_SUBJECT, _REFERENCE = "#0072B2", "#D55E00"
_TARGET_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
LEAST_SPAN = 4.0  # of the axis of trained values, as a factor; chosen
MAX_LEVEL_GAP = 0.25  # of the height of the points; a level further below them is written instead
LOW_WIDTH = 90  # characters of a line of what is written: the width of the axes in that size of letters
MAX_POINT_GAP = 0.5  # of the height of the two methods that the figure is about; another one further below is written


def frontier_figures(statistics: ScopeStatistics) -> list[Figure]:
    """Return the figure; none without an adapter of a known size."""
    scope = statistics.scope
    entries = scope.at(scope.main)
    entries = entries[(entries["n"] > 0) & entries["adapter_params"].notna()]
    points = entries[entries["adapter_params"] > 0]
    adapters = points[~points["method"].isin(LEVEL_STYLES)]
    if adapters.empty:
        return []
    with report_style():
        figure, (ax,) = new_figure(SIZE, (1, 1))
        handles = _draw_points(ax, statistics, adapters)
        handles |= _draw_levels(ax, entries)
        _widen(ax, adapters, LEAST_SPAN)
        _draw_error_bar(ax, statistics, handles)
        _widen(ax, adapters, 1.2 * LEAST_SPAN)  # so that the bar, which is at the right end, is not cut
        set_log_axis(ax)
        name = "average ×100" if scope.main.task == AVERAGE else "score ×100"
        label_axes(ax, "", "trained values of the adapter", name)
        title = wrap_title([f"{scope.title}: {main_name(scope)}"], SIZE[0])
        figure.suptitle(title)
        legend_below(figure, handles, SIZE, len(title.splitlines()), 60)
    return [figure]


def _widen(ax: Axes, entries: DataFrame, span: float) -> None:
    """Let the axis span a factor at least, so that sizes that are nearly equal look so."""
    low, high = entries["adapter_params"].min(), entries["adapter_params"].max()
    if high < LEAST_SPAN * low:
        middle = math.sqrt(low * high)
        ax.set_xlim(middle / math.sqrt(span), middle * math.sqrt(span))


def _draw_points(ax: Axes, statistics: ScopeStatistics, entries: DataFrame) -> dict[str, Any]:
    compare = statistics.scope.compare
    handles: dict[str, Any] = {}
    styles = dict(zip(_targets(entries), _TARGET_STYLES * 8, strict=False))
    others = entries[~entries["label"].isin((compare.subject, compare.reference))]
    low = 100 * others["mean"] < _floor(entries, (compare.subject, compare.reference))
    _write_low(ax, others[low])
    others = others[~low]
    for targets in [*styles, None] if len(others) else []:
        marker = styles[targets][1] if targets is not None else "o"
        members = others[others["targets"].eq(targets) if targets is not None else others["targets"].isna()]
        drawn = ax.scatter(
            members["adapter_params"], 100 * members["mean"], s=14, marker=marker, color=_GREY, linewidths=0
        )
        handles.setdefault("other methods", drawn)
    for targets, (dashes, marker) in styles.items():
        suffix = f", {shorten(targets)}" if len(styles) > 1 else ""
        reference = entries[(entries["label"] == compare.reference) & (entries["targets"] == targets)]
        reference = reference.sort_values("adapter_params")
        if len(reference):
            (line,) = ax.plot(
                reference["adapter_params"],
                100 * reference["mean"],
                color=_REFERENCE,
                linestyle=dashes,
                marker=marker,
                ms=5,
            )
            handles[f"{compare.reference} by rank{suffix}"] = line
        subject = entries[(entries["label"] == compare.subject) & (entries["targets"] == targets)]
        if len(subject):
            ax.scatter(
                subject["adapter_params"],
                100 * subject["mean"],
                s=12,
                marker=marker,
                color=_SUBJECT,
                alpha=0.35,
                linewidths=0,
            )
            handles[f"{compare.subject}, chosen at each size{suffix}"] = _draw_chosen(
                ax, statistics, subject, dashes, marker
            )
    frontier = statistics.frontier
    _name_best(ax, frontier[~frontier.index.isin(low[low].index)], {compare.subject, compare.reference})
    return handles


def _floor(entries: DataFrame, names: tuple[str, str]) -> float:
    """Return the score ×100 below which other methods are written: drawn, they would press all others together."""
    scores = 100 * entries.loc[entries["label"].isin(names), "mean"]
    return float(scores.min() - MAX_POINT_GAP * (scores.max() - scores.min())) if len(scores) > 1 else -math.inf


def _write_low(ax: Axes, entries: DataFrame) -> None:
    """Write the entries that are far below at the foot of the axes, right of the levels."""
    rows = rows_of(entries.sort_values("adapter_params"))
    lines = textwrap.wrap(", ".join(f"{row['size']} {100 * row['mean']:.1f} ↓" for row in rows), LOW_WIDTH)
    ax.text(0.2, 0.02, "\n".join(lines), transform=ax.transAxes, fontsize=7, color="#444444", va="bottom")


def _draw_chosen(ax: Axes, statistics: ScopeStatistics, entries: DataFrame, dashes: str, marker: str) -> Any:
    """Draw a line through the chosen setting of each size class."""
    chosen = statistics.chosen_by_class(entries).sort_values("adapter_params")
    (line,) = ax.plot(
        chosen["adapter_params"], 100 * chosen["mean"], color=_SUBJECT, linestyle=dashes, marker=marker, ms=5
    )
    return line


def _name_best(ax: Axes, frontier: DataFrame, drawn: set[str]) -> None:
    """Name the best method of each size class, unless it is in the legend."""
    if frontier.empty:
        return
    best = frontier.sort_values("mean", ascending=False, kind="stable").drop_duplicates("size_class")
    named = best[~best["label"].isin(drawn)].sort_values("adapter_params")
    for index, row in enumerate(rows_of(named)):
        height = 5 + 9 * (index % 2)  # neighbours at two heights, so that names do not cover each other
        ax.annotate(
            shorten(row["size"]),
            (row["adapter_params"], 100 * row["mean"]),
            (0, height),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color="#444444",
        )


def _draw_levels(ax: Axes, entries: DataFrame) -> dict[str, Any]:
    """Draw the head alone and full fine-tuning as lines; one far below is written at the foot instead."""
    handles: dict[str, Any] = {}
    low, high = ax.get_ylim()
    lowest = low - MAX_LEVEL_GAP * (high - low)
    for row in rows_of(entries[entries["method"].isin(LEVEL_STYLES)]):
        colour, _, dashes = LEVEL_STYLES[row["method"]]
        score = 100 * row["mean"]
        if score < lowest:
            ax.text(0.01, 0.02, f"{row['label']}: {score:.1f} ↓", transform=ax.transAxes, fontsize=8, color=colour)
        else:
            handles[row["label"]] = ax.axhline(score, color=colour, linestyle=dashes, linewidth=1.2, zorder=1)
    return handles


def _draw_error_bar(ax: Axes, statistics: ScopeStatistics, handles: dict[str, Any]) -> None:
    """Draw one bar: half the 95% interval, over seeds alone, of a mean of the usual number of seeds, at the median
    deviation."""
    scope = statistics.scope
    n = _usual_seeds(scope)
    half = 100 * statistics.means[scope.main.task].half_width(n)
    if n < MIN_SEEDS or half != half:
        return
    low, high = ax.get_ylim()
    middle = low + half + 0.04 * (high - low)
    bar = ax.errorbar([ax.get_xlim()[1]], [middle], yerr=[half], color="#333333", capsize=3, linewidth=1.2)
    handles[f"95% interval of a mean of {n} seeds"] = bar


def _usual_seeds(scope: Scope) -> int:
    """Return the number of seeds that most entries of the main column have."""
    return int(scope.at(scope.main)["n"].mode().iloc[0])


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
    has_bar = _usual_seeds(scope) >= MIN_SEEDS
    bar = (
        "The bar is the 95% interval of a mean over seeds with the median deviation of all settings; "
        if has_bar
        else "No bars; "
    )
    return (
        f"Score against trained values on {scope.title}: {what}; means over {seeds} seeds. Line: "
        f"{scope.compare.reference} by rank; points: every setting of {scope.compare.subject}, line through the one "
        f"chosen {choice_text(scope)} at each size; grey: all other methods, the best of a size named. {bar}head and "
        "full fine-tuning are lines."
    )
