"""Score against rank, the form of LoRA-Mini's Figure 2: small multiples of up to four tasks a page.

Each method with a rank is one line; methods with (a, b) are averaged over all (a, b) of a rank. Methods without a rank
are horizontal. Colours are Okabe and Ito's; markers and line styles differ too, so that print without colour reads.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.report.captions import column_title
from lora_bench.report.slots import Column, Entry, Piece, Slot, average, by_rank
from lora_bench.report.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 4
DPI = 150
_WIDTH, _HEIGHT, _LINE = 4.2, 3.0, 0.2
_LONGEST = 30
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "lora-bench",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
}
_LINES: tuple[tuple[str, str, Any], ...] = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#56B4E9", "v", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", "P", (0, (8, 2))),
)
_FIRST = ("mini", "lora", "xs", "cora", "cora-init")
_LEVELS: tuple[tuple[str, Any], ...] = (("#000000", (0, (4, 3))), ("#666666", (0, (1, 1.5))), ("#999999", "-."))
_LEVELS_FIRST = ("head", "full")
_DODGE = 0.05


@dataclass(frozen=True)
class Panel:
    """One task: score by rank for each method with ranks, one score for each without, in the metric's units.

    `paired` are the methods that have (a, b).
    """

    column: Column
    paired: frozenset[str]
    lines: Mapping[str, Mapping[int, Entry]]
    levels: Mapping[str, Entry]


def panels(piece: Piece) -> tuple[Panel, ...]:
    """The tasks of the piece that have a score at some rank."""
    found = [_panel(column, slots) for column, slots in piece.columns.items()]
    return tuple(panel for panel in found if panel.lines)


def pages(piece: Piece) -> list[tuple[Panel, ...]]:
    """The panels, four to a page."""
    every = panels(piece)
    return [every[start : start + PANELS] for start in range(0, len(every), PANELS)]


def draw(title: str, page: Sequence[Panel]) -> Figure:
    """The figure of one page; needs no display and leaves matplotlib's settings as they were."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = 1 if len(page) == 1 else 2
    down = -(-len(page) // across)
    lines = _ordered({label for panel in page for label in panel.lines}, _FIRST)
    levels = _ordered({label for panel in page for label in panel.levels}, _LEVELS_FIRST)
    labels = [_label(label) for label in (*lines, *levels)]
    columns = _legend_columns(labels, _WIDTH * across)
    heading = _heading(title, page, _WIDTH * across)
    extra = _LINE * (len(heading.splitlines()) - (-len(labels) // columns)) + 0.2
    with _style():
        figure = Figure(figsize=(_WIDTH * across, _HEIGHT * down + extra), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(down, across, squeeze=False).flat)
        handles: dict[str, Any] = {}
        for panel, ax in zip(page, axes, strict=False):
            handles |= _draw_panel(ax, panel, lines, levels)
        for ax in axes[len(page) :]:
            ax.set_axis_off()
        _share_scales(page, axes)
        figure.suptitle(heading)
        shown = [handles[label] for label in (*lines, *levels)]
        figure.legend(shown, labels, loc="outside lower center", ncols=columns, handlelength=3.5)
    return figure


def encode(figure: Figure) -> dict[str, bytes]:
    """The figure's bytes as `png` (150 dots an inch) and `svg`, the same for the same figure on every day."""
    found = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        with _style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        found[kind] = buffer.getvalue()
    return found


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _panel(column: Column, slots: Sequence[Slot]) -> Panel:
    lines = {}
    for label, ranks in by_rank(slots).items():
        entries = {rank: average(found) for rank, found in ranks.items()}
        if scored := {rank: entry for rank, entry in entries.items() if entry.mean is not None}:
            lines[label] = scored
    levels = {slot.label: slot.entry for slot in slots if slot.rank is None and slot.scores}
    paired = frozenset(slot.label for slot in slots if slot.pair != (None, None))
    return Panel(column, paired, lines, levels)


def _ordered(labels: set[str], first: Sequence[str]) -> list[str]:
    return sorted(labels, key=lambda label: (first.index(label) if label in first else len(first), label))


def _label(text: str) -> str:
    shown = clean(text).lstrip("_") or "unnamed"
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """As many as fit `width` inches, reckoning with the longest label."""
    column = 0.8 + 0.085 * max(map(len, labels))
    return max(1, min(len(labels), int(width / column)))


def _heading(title: str, page: Sequence[Panel], width: float) -> str:
    paired = sorted({_label(label) for panel in page for label in panel.paired})
    averaged = f"; {', '.join(paired)}: averaged over (a, b)" if paired else ""
    lines = (clean(title), f"mean ± sample std over seeds{averaged}")
    return "\n".join(part for line in lines for part in textwrap.wrap(line, int(12 * width)))


def _draw_panel(ax: Axes, panel: Panel, lines: Sequence[str], levels: Sequence[str]) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for at, label in enumerate(lines):
        if label in panel.lines:
            shift = 2 ** (_DODGE * (at - (len(lines) - 1) / 2))
            handles[label] = _draw_line(ax, panel.lines[label], _LINES[at % len(_LINES)], shift)
    for at, label in enumerate(levels):
        if label in panel.levels:
            color, style = _LEVELS[at % len(_LEVELS)]
            level = 100 * (panel.levels[label].mean or 0.0)
            handles[label] = ax.axhline(level, color=color, linestyle=style, linewidth=1.3, zorder=1)
    _label_axes(ax, panel)
    return handles


def _draw_line(ax: Axes, entries: Mapping[int, Entry], style: tuple[str, str, Any], shift: float) -> Any:
    color, marker, dashes = style
    means = [100 * (entry.mean or 0.0) for entry in entries.values()]
    spreads = [100 * (entry.std or 0.0) for entry in entries.values()]
    return ax.errorbar(
        [rank * shift for rank in entries], means, yerr=spreads, color=color, marker=marker, linestyle=dashes,
        markersize=5, linewidth=1.5, elinewidth=1, capsize=2.5, zorder=3,
    )  # fmt: skip


def _label_axes(ax: Axes, panel: Panel) -> None:
    from matplotlib.ticker import NullLocator

    ranks = sorted({rank for entries in panel.lines.values() for rank in entries})
    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.set_xlim(ranks[0] / 1.35, ranks[-1] * 1.35)
    ax.set_title(_label(column_title(panel.column)))
    ax.set_xlabel("rank r")
    ax.set_ylabel("score ×100")
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)


def _share_scales(page: Sequence[Panel], axes: Sequence[Axes]) -> None:
    """Panels of one metric get one scale, unless that would press the widest into less than two thirds of it."""
    for metric in sorted({panel.column.metric for panel in page}):
        same = [ax for panel, ax in zip(page, axes, strict=False) if panel.column.metric == metric]
        limits = [ax.get_ylim() for ax in same]
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        if high - low <= 1.5 * max(high - low for low, high in limits):
            for ax in same:
                ax.set_ylim(low, high)
