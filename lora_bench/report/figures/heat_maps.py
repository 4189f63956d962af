"""Heat maps of (a, b): a row a task, a column a rank, one scale of colour a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_bench.report.figures.captions import column_title
from lora_bench.report.figures.drawing import canvas, in_pages, short, styled, wrapped
from lora_bench.report.numbers.rows import order
from lora_bench.report.numbers.slots import Column, Piece, Slot, by_rank, has_pairs, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_SIDE, _NUMBERED = 2.1, 8
Maps = tuple[Column, dict[int, list[Slot]]]


def heat_maps(piece: Piece) -> dict[str, list[Maps]]:
    """Of each method with more than one (a, b): its slots by rank, for each task that has a score."""
    found: dict[str, list[Maps]] = {}
    for column, slots in piece.columns.items():
        for label, ranks in by_rank(slots).items():
            pairs = {slot.pair for each in ranks.values() for slot in each}
            if has_pairs(ranks) and len(pairs) > 1 and any(slot.scores for each in ranks.values() for slot in each):
                found.setdefault(label, []).append((column, ranks))
    return found


def heat_figures(piece: Piece, label: str, maps: Sequence[Maps]) -> list[Figure]:
    """A figure a page of four tasks."""
    heading = [piece.title, f"{label}: mean over seeds ×100, by a and b; one scale of colour a task; – no score"]
    return [_draw(heading, page) for page in in_pages(maps)]


def _draw(heading: Sequence[str], page: Sequence[Maps]) -> Figure:
    ranks = sorted({rank for _, found in page for rank in found})
    width, height = max(_SIDE * len(ranks), 4.2), _SIDE * len(page)
    text = wrapped(heading, width)
    with styled():
        figure, axes = canvas((width, height + 0.2 * len(text.splitlines()) + 0.2), (len(page), len(ranks)))
        for at, (column, found) in enumerate(page):
            _row(axes[at * len(ranks) : (at + 1) * len(ranks)], column, found, ranks)
        for rank, top, bottom in zip(ranks, axes, axes[-len(ranks) :], strict=False):
            top.set_title(f"r={rank}", fontsize=9)
            bottom.set_xlabel("b")
        figure.suptitle(text)
    return figure


def _row(axes: Sequence[Axes], column: Column, found: dict[int, list[Slot]], ranks: Sequence[int]) -> None:
    slots = [slot for each in found.values() for slot in each]
    sides = [sorted({slot.pair[side] for slot in slots}, key=lambda value: order((value,))) for side in (0, 1)]
    means = [slot.entry.mean for slot in slots if slot.entry.mean is not None]
    for rank, ax in zip(ranks, axes, strict=True):
        at = {slot.pair: slot.entry.mean for slot in found.get(rank, ())}
        values = [[at.get((a, b)) for b in sides[1]] for a in sides[0]]
        image = _map(ax, values, (min(means), max(means)))
        ax.set_xticks(*_ticks(sides[1]))
        ax.set_yticks(*_ticks(sides[0] if ax is axes[0] else ()))
    axes[0].set_ylabel(f"{short(column_title(column))}\na")
    if max(map(len, sides)) > _NUMBERED:
        scale = axes[-1].figure.colorbar(image, ax=axes[-1])
        scale.ax.yaxis.set_major_formatter(_tick)


def _ticks(sizes: Sequence[int | None]) -> tuple[list[int], list[str]]:
    """Places and labels, at most eight."""
    step = -(-len(sizes) // _NUMBERED) or 1
    return [*range(0, len(sizes), step)], [str(size) for size in sizes[::step]]


def _map(ax: Axes, values: Sequence[Sequence[float | None]], ends: tuple[float, float]) -> AxesImage:
    shown = [[math.nan if value is None else value for value in line] for line in values]
    low, high = ends if ends[1] > ends[0] else (ends[0] - 0.005, ends[0] + 0.005)
    image = ax.imshow(shown, cmap="cividis", vmin=low, vmax=high, origin="lower", aspect="auto")
    if max(len(values), len(values[0])) > _NUMBERED:
        return image
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            dark = value is not None and value < (low + high) / 2
            text = "–" if value is None else percent(value)
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    return image


def _tick(value: float, _: object) -> str:
    """A tick of the scale; a function of the module, as figures are sent to other processes."""
    return percent(value)
