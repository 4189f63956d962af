"""Score against rank: small multiples, one panel per task and one for the average.

- *Figure 2* has the form of LoRA-Mini's: the method that the report is about alone, averaged over (a, b), with each
  a = b beside it.
- *accuracy against rank* has the methods with most ranks, each with the chosen setting of each rank, and the 95%
  intervals of the two methods that the report compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.report.figures.drawing import (
    LEVEL_STYLES,
    MethodStyle,
    annotate_low_level,
    compose_figure,
    draw_interval_line,
    draw_level,
    label_axes,
    method_styles,
    paginate,
)
from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.entries import Column, choose_entries, seed_scores
from lora_bench.report.numbers.frame import rows_of
from lora_bench.report.numbers.statistics import MIN_SEEDS, half_width
from lora_bench.report.numbers.wording import column_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

MAX_METHODS = 6  # in one figure; chosen so that their lines can be distinguished
# A level is written instead of drawn if it lies further below the lines than both of these.
LOW_POINTS = 25  # of the score ×100
LOW_HEIGHTS = 2  # multiples of the height that the lines take
Point = tuple[float, float, float, float]  # rank, mean, low, high; in the metric's units


@dataclass(frozen=True)
class RankPanel:
    """The scores of one column.

    Attributes:
        column: The task and metric.
        lines: The points by label; low and high are NaN where there is no interval.
        levels: The mean of each method without ranks.
        banded: The labels whose interval is drawn: all would cover each other.
    """

    column: Column
    lines: Mapping[str, Sequence[Point]]
    levels: Mapping[str, float]
    banded: frozenset[str]


def target_sets(statistics: ScopeStatistics) -> list[str]:
    """Return the sets of targets of the entries that have a rank."""
    entries = statistics.scope.entries
    return sorted(entries[entries["rank"].notna() & (entries["n"] > 0)]["targets"].dropna().unique())


def rank_panels(statistics: ScopeStatistics, targets: str) -> list[RankPanel]:
    """Return the panels of *accuracy against rank* on a set of targets, for the columns with a line."""
    panels = [_rank_panel(statistics, column, targets) for column in statistics.scope.columns]
    return [panel for panel in panels if panel.lines]


def compare_ranks(panels: Sequence[RankPanel]) -> bool:
    """Return whether at least half of the methods in panels have several ranks; the others are single points."""
    labels = {label for panel in panels for label in panel.lines}
    several = {label for panel in panels for label, points in panel.lines.items() if len(points) > 1}
    return bool(labels) and 2 * len(several) >= len(labels)


def figure2_panels(statistics: ScopeStatistics, targets: str) -> list[RankPanel]:
    """Return the panels of *Figure 2* on a set of targets; none unless the method has several (a, b) at every rank."""
    scope = statistics.scope
    panels = []
    for column in scope.columns:
        entries = scope.at(column)
        members = entries[
            (entries["label"] == scope.compare.subject) & (entries["targets"] == targets) & (entries["n"] > 0)
        ]
        members = members[members["rank"].notna() & members["a"].notna()]
        averaged = _at_every_rank(members)
        if averaged.groupby("rank")["arm"].nunique().max() > 1:
            lines = _equal_pairs(members) | {"mean over (a, b)": _average_line(statistics, column, averaged)}
            panels.append(RankPanel(column, lines, {}, frozenset(lines)))
    return panels


def rank_figures(heading: Sequence[str], panels: Sequence[RankPanel]) -> list[Figure]:
    """Return a figure for each page of panels."""
    labels = {label for panel in panels for label in (*panel.lines, *panel.levels)}
    styles = method_styles(labels)
    return [
        compose_figure(heading, page, lambda ax, panel: _paint_panel(ax, panel, styles), styles)
        for page in paginate(panels)
    ]


def _rank_panel(statistics: ScopeStatistics, column: Column, targets: str) -> RankPanel:
    scope = statistics.scope
    low, high = statistics.intervals(column)
    entries = scope.at(column).assign(low=low, high=high)
    entries = entries[entries["n"] > 0]
    ranked = entries[entries["rank"].notna() & (entries["targets"] == targets)]
    labels = _drawn_labels(statistics, targets)
    chosen = choose_entries(ranked[ranked["label"].isin(labels)], ("label", "rank"))
    points = chosen[["rank", "mean", "low", "high"]].astype(float)
    lines: dict[str, list[Point]] = {label: [] for label in labels if (chosen["label"] == label).any()}
    for label, point in zip(chosen["label"], points.itertuples(index=False, name=None), strict=True):
        lines[label].append(point)
    levels = {row["label"]: row["mean"] for row in rows_of(entries[entries["method"].isin(LEVEL_STYLES)])}
    banded = frozenset((scope.compare.subject, scope.compare.reference))
    return RankPanel(column, lines, levels if lines else {}, banded)


def _drawn_labels(statistics: ScopeStatistics, targets: str) -> list[str]:
    """Return the methods with most ranks: the reference and the subject first, at most `MAX_METHODS`."""
    entries = statistics.scope.entries
    ranked = entries[entries["rank"].notna() & (entries["targets"] == targets) & (entries["n"] > 0)]
    counts = ranked.groupby("label")["rank"].nunique()
    first = (statistics.scope.compare.subject, statistics.scope.compare.reference)
    ordered = sorted(counts.index, key=lambda label: (label not in first, -counts[label], label))
    return ordered[:MAX_METHODS]


def _equal_pairs(members: DataFrame) -> dict[str, list[Point]]:
    """Return a line without intervals for each a = b."""
    nan = float("nan")
    equal = members[members["a"] == members["b"]].sort_values(["a", "rank"])
    return {
        f"a = b = {size}": [(float(row["rank"]), row["mean"], nan, nan) for row in rows_of(group)]
        for size, group in equal.groupby("a")
    }


def _at_every_rank(members: DataFrame) -> DataFrame:
    """Return the entries whose (a, b) was run at every rank: a mean over others would compare different (a, b)."""
    ranks = members.groupby(["a", "b"])["rank"].transform("nunique")
    return members[ranks == members["rank"].nunique()]


def _average_line(statistics: ScopeStatistics, column: Column, members: DataFrame) -> list[Point]:
    """Return the mean over (a, b) by rank: by seed first, so that the interval is over seeds."""
    scores = seed_scores(statistics.scope, column)
    points = []
    for rank in sorted(members["rank"].unique()):
        group = members[members["rank"] == rank]
        table = scores[scores.index.get_level_values("arm").isin(group["arm"])].unstack("arm")
        by_seed = table.mean(axis=1, skipna=False).dropna()
        n, mean = len(by_seed), float(by_seed.mean() if len(by_seed) else group["mean"].mean())
        half = half_width(float(by_seed.std(ddof=1)), n) if n >= MIN_SEEDS else float("nan")
        points.append((float(rank), mean, mean - half, mean + half))
    return points


def _paint_panel(ax: Axes, panel: RankPanel, styles: Mapping[str, MethodStyle]) -> dict[str, Any]:
    handles = {
        label: draw_interval_line(ax, styles[label], points, label in panel.banded)
        for label, points in panel.lines.items()
    }
    low, high = ax.get_ylim()
    lowest_level = low - max(LOW_POINTS, LOW_HEIGHTS * (high - low))
    for label, score in panel.levels.items():
        if 100 * score < lowest_level:
            handles[label] = annotate_low_level(ax, styles[label], label, score)
        else:
            handles[label] = draw_level(ax, styles[label], score)
    _set_rank_axis(ax, sorted({point[0] for points in panel.lines.values() for point in points}))
    label_axes(ax, column_title(panel.column), "rank r")
    return handles


def _set_rank_axis(ax: Axes, ranks: Sequence[float]) -> None:
    """Make the x axis logarithmic with a tick at each rank and a margin on both sides."""
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
    ax.set_xlim(ranks[0] / 1.35, ranks[-1] * 1.35)
