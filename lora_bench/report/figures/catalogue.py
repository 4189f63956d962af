"""Every figure of a piece, by file name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_bench.report.figures import rank_plots
from lora_bench.report.figures.cost_plots import COSTS, cost_figures
from lora_bench.report.figures.heat_maps import heat_figures, heat_maps
from lora_bench.report.figures.learning_curves import curve_figures
from lora_bench.report.formats.escaping import stems
from lora_bench.report.numbers.slots import Piece

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


def figures(piece: Piece, stem: str) -> Iterator[tuple[str, str, Figure]]:
    """(caption, file name without its ending, figure) of everything that the piece has something for."""
    for kind, name, drawn in _all(piece):
        for number, figure in enumerate(drawn, 1):
            yield CAPTIONS[kind], f"{name}-{stem}" if number == 1 else f"{name}-{stem}-{number}", figure


def _all(piece: Piece) -> Iterator[tuple[str, str, list[Figure]]]:
    ranks = rank_plots.panels(piece)
    yield "figure2", "figure2", rank_plots.rank_figures(piece.title, rank_plots.paired_only(ranks))
    yield "accuracy_vs_rank", "accuracy_vs_rank", rank_plots.rank_figures(piece.title, ranks)
    for kind in COSTS:
        yield f"score_vs_{kind}", f"score_vs_{kind}", cost_figures(piece, kind)
    maps = heat_maps(piece)
    for label, name in zip(maps, stems(list(maps)), strict=True):
        yield "heat", f"heat-{name}", heat_figures(piece, label, maps[label])
    yield "curves", "curves", curve_figures(piece)
