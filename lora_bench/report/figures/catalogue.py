"""All figures of a scope, with their file names and captions; the frontier comes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_bench.report.escaping import slug
from lora_bench.report.figures import rank_plots
from lora_bench.report.figures.frontier import frontier_caption, frontier_figures
from lora_bench.report.figures.heat_maps import heat_entries, heat_figures
from lora_bench.report.figures.learning_curves import curve_figures, drawn_arms
from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.entries import Scope
from lora_bench.report.numbers.wording import choice_text, column_title, join_words, main_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class Picture:
    """A figure's title, its caption and its file's name without the extension."""

    title: str
    caption: str
    name: str


def all_figures(statistics: ScopeStatistics, stem: str) -> Iterator[tuple[Picture, Figure]]:
    """Yield every figure that the scope has data for."""
    for title, caption, name, pages in _figures_by_kind(statistics):
        for number, figure in enumerate(pages, 1):
            suffix = stem if number == 1 else f"{stem}-{number}"
            yield Picture(title, caption, f"{name}-{suffix}"), figure


def _figures_by_kind(statistics: ScopeStatistics) -> Iterator[tuple[str, str, str, list[Figure]]]:
    """Yield (title, caption, first part of the file name, pages)."""
    scope = statistics.scope
    entries, subject = scope.entries, scope.compare.subject
    yield "Score against trained values", frontier_caption(statistics), "frontier", frontier_figures(statistics)
    for targets in rank_plots.target_sets(statistics):
        panels = rank_plots.figure2_panels(statistics, targets)
        title = f"{subject} by rank, {targets}"
        seeds = _seeds_text(entries[(entries["label"] == subject) & (entries["targets"] == targets)])
        caption = (
            f"{title}, on {scope.title}, the form of LoRA-Mini's Figure 2: {_tasks_text(panels)}. With a band: the "
            f"mean over the (a, b) that every rank has, averaged by seed first; the band is its 95% interval over "
            f"seeds. Other lines: single a = b, means over {seeds} seeds."
        )
        yield title, caption, f"figure2-{slug(targets)}", rank_plots.rank_figures([f"{scope.title}: {title}"], panels)
    for targets in rank_plots.target_sets(statistics):
        ranked = rank_plots.rank_panels(statistics, targets)
        title = f"Score by rank, {targets}"
        heading = [f"{scope.title}: {title}"]
        figures = rank_plots.rank_figures(heading, ranked) if rank_plots.compare_ranks(ranked) else []
        yield title, _rank_caption(scope, title, targets, ranked), f"accuracy_vs_rank-{slug(targets)}", figures
    heat = heat_entries(statistics)
    heat_caption = (
        f"{subject} on {scope.title}: {main_name(scope)} by a and b, a map per rank and a row per set of targets; "
        f"means over {_seeds_text(heat)} seeds on one scale of colour."
    )
    yield f"{subject} by a and b", heat_caption, "heat", heat_figures(statistics)
    arms = drawn_arms(statistics)
    seeds = _seeds_text(entries[entries["arm"].isin(arms)])
    curves_caption = (
        f"Learning curves on {scope.title}: the reported metric by epoch of {join_words(sorted(arms.values()))}, each "
        f"method's chosen setting; mean over {seeds} seeds ± one standard deviation."
    )
    yield "Learning curves", curves_caption, "curves", curve_figures(statistics)


def _rank_caption(scope: Scope, title: str, targets: str, panels: list[rank_plots.RankPanel]) -> str:
    """Say which methods are drawn, and which of them have a band."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    banded = [label for label in labels if any(label in panel.banded for panel in panels)]
    drawn = scope.entries[scope.entries["label"].isin(labels) & (scope.entries["targets"] == targets)]
    bands = f" Bands, of {join_words(banded)}: the 95% intervals of the tables." if banded else ""
    return (
        f"{title}, on {scope.title}: {_tasks_text(panels)}; of {join_words(labels)} at each rank the setting chosen "
        f"{choice_text(scope)}, means over {_seeds_text(drawn)} seeds.{bands}"
    )


def _tasks_text(panels: list[rank_plots.RankPanel]) -> str:
    return join_words([column_title(panel.column) for panel in panels])


def _seeds_text(entries: DataFrame) -> str:
    """Return the number of seeds that entries have, or the least and the most."""
    numbers = sorted({int(n) for n in entries["n"] if n > 0})
    if not numbers:
        return "no"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
