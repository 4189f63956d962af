"""All figures of a scope, with their file names and captions; the frontier comes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_bench.report.escaping import slug
from lora_bench.report.figures import rank_plots
from lora_bench.report.figures.frontier import frontier_caption, frontier_figures
from lora_bench.report.figures.heat_maps import heat_figures
from lora_bench.report.figures.learning_curves import curve_figures
from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.entries import Scope
from lora_bench.report.numbers.wording import choice_text, column_title, join_words, main_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    subject, seeds = scope.compare.subject, _seeds_text(scope)
    yield "Score against trained values", frontier_caption(statistics), "frontier", frontier_figures(statistics)
    for targets in rank_plots.target_sets(statistics):
        panels = rank_plots.figure2_panels(statistics, targets)
        title = f"{subject} by rank, {targets}"
        caption = (
            f"{title}, on {scope.title}, the form of LoRA-Mini's Figure 2: {_tasks_text(panels)}. With a band: the "
            f"mean over the (a, b) that every rank has, averaged by seed first; the band is its 95% interval over "
            f"{seeds} seeds. Other lines: single a = b, means over seeds."
        )
        yield title, caption, f"figure2-{slug(targets)}", rank_plots.rank_figures([f"{scope.title}: {title}"], panels)
    for targets in rank_plots.target_sets(statistics):
        ranked = rank_plots.rank_panels(statistics, targets)
        title = f"Score by rank, {targets}"
        names = join_words(list(ranked[0].lines)) if ranked else ""
        caption = (
            f"{title}, on {scope.title}: {_tasks_text(ranked)}; {names}, each with the setting chosen "
            f"{choice_text(scope)} at each rank. The bands of {subject} and {scope.compare.reference} are 95% "
            f"intervals over {seeds} seeds and the examples; those of the others are as wide."
        )
        figures = rank_plots.rank_figures([f"{scope.title}: {title}"], ranked) if _has_several_ranks(ranked) else []
        yield title, caption, f"accuracy_vs_rank-{slug(targets)}", figures
    heat_caption = (
        f"{subject} on {scope.title}: {main_name(scope)} by a and b, a map per rank and a row per set of targets; "
        f"means over {seeds} seeds on one scale of colour."
    )
    yield f"{subject} by a and b", heat_caption, "heat", heat_figures(statistics)
    curves_caption = (
        f"Learning curves on {scope.title}, each method's chosen setting: the reported metric by epoch, mean over "
        f"{seeds} seeds ± one standard deviation."
    )
    yield "Learning curves", curves_caption, "curves", curve_figures(statistics)


def _has_several_ranks(panels: list[rank_plots.RankPanel]) -> bool:
    return any(len(points) > 1 for panel in panels for points in panel.lines.values())


def _tasks_text(panels: list[rank_plots.RankPanel]) -> str:
    return join_words([column_title(panel.column) for panel in panels])


def _seeds_text(scope: Scope) -> str:
    """Return the number of seeds, or the least and the most."""
    numbers = sorted({int(n) for n in scope.entries["n"] if n > 0})
    if not numbers:
        return "no"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
