"""All figures of a subset, with their file names and captions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_bench.report.escaping import file_stems
from lora_bench.report.figures import rank_plots
from lora_bench.report.figures.cost_plots import COSTS, cost_figures
from lora_bench.report.figures.heat_maps import heat_figures, heat_maps
from lora_bench.report.figures.learning_curves import curve_figures
from lora_bench.report.numbers.entries import Subset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "figure2": "Score by rank, averaged over (a, b): the form of LoRA-Mini's Figure 2.",
    "accuracy_vs_rank": "Score by rank, every method; those with (a, b) averaged over them.",
    "score_vs_params": "Score against trained adapter values, with the Pareto front.",
    "score_vs_bytes": "Score against the adapter's bytes on disk, with the Pareto front.",
    "score_vs_seconds": "Score against seconds a cell, with the Pareto front.",
    "heat": "Score by a and b, for each rank.",
    "curves": "Learning curves of the best setting of each method.",
}


def all_figures(subset: Subset, stem: str) -> Iterator[tuple[str, str, Figure]]:
    """Yield (caption, file name without extension, figure) for every figure that the subset has data for."""
    for kind, name, pages in _figures_by_kind(subset):
        for number, figure in enumerate(pages, 1):
            yield CAPTIONS[kind], f"{name}-{stem}" if number == 1 else f"{name}-{stem}-{number}", figure


def _figures_by_kind(subset: Subset) -> Iterator[tuple[str, str, list[Figure]]]:
    """Yield (key of the caption, first part of the file name, pages)."""
    panels = rank_plots.rank_panels(subset)
    yield "figure2", "figure2", rank_plots.rank_figures(subset.title, rank_plots.paired_only(panels))
    yield "accuracy_vs_rank", "accuracy_vs_rank", rank_plots.rank_figures(subset.title, panels)
    for cost in COSTS:
        yield f"score_vs_{cost}", f"score_vs_{cost}", cost_figures(subset, cost)
    maps = heat_maps(subset)
    for label, name in zip(maps, file_stems(list(maps)), strict=True):
        yield "heat", f"heat-{name}", heat_figures(subset, label, maps[label])
    yield "curves", "curves", curve_figures(subset)
