"""What all figures share: style, looks of the methods, small multiples with one legend, and bytes that never change.

Colours are Okabe and Ito's; markers and line styles differ too, so that print without colour reads.
"""

from __future__ import annotations

import io
import itertools
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from lora_bench.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Item = TypeVar("Item")
PANELS = 4
MOST, EACH = 8, 5  # methods that one figure can show; how many each has where there are more
DPI = 150
WIDTH, HEIGHT, LINE = 4.2, 3.0, 0.2
LONGEST = 30
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "lora-bench",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
}
_METADATA: Mapping[str, Mapping[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
_COLOURS: tuple[tuple[str, str, Any], ...] = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#56B4E9", "v", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", "P", (0, (8, 2))),
)
_FIRST = ("mini", "lora", "xs", "cora", "cora-init")
_REFERENCES = ("lora", "full", "head")
_LEVELS: Mapping[str, tuple[str, str, Any]] = {
    "head": ("#000000", "x", (0, (4, 3))),
    "full": ("#666666", "*", (0, (1, 1.5))),
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn, the same in every figure of a piece."""

    colour: str
    marker: str
    dashes: Any


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each method, in the order of the legend."""
    ranked = sorted(labels, key=lambda each: (each in _LEVELS, _FIRST.index(each) if each in _FIRST else 9, each))
    plain = [label for label in ranked if label not in _LEVELS]
    found = {label: _look(at) for at, label in enumerate(plain)}
    return found | {label: Look(*_LEVELS[label]) for label in ranked if label in _LEVELS}


def _look(at: int) -> Look:
    """After each round of colours, markers and dashes move on, so that no two methods look alike."""
    count, turn = len(_COLOURS), at // len(_COLOURS)
    return Look(_COLOURS[at % count][0], _COLOURS[(at + turn) % count][1], _COLOURS[(at + 2 * turn) % count][2])


def parted(labels: Iterable[str]) -> list[frozenset[str]]:
    """The methods of each figure: all in one, or a few, each time beside LoRA, full fine-tuning and the head alone."""
    order = list(looks(labels))
    others = [label for label in order if label not in _REFERENCES]
    if len(others) <= MOST:
        return [frozenset(order)]
    count = -(-len(others) // EACH)
    cuts = [at * len(others) // count for at in range(count + 1)]
    parts = [others[begin:end] for begin, end in itertools.pairwise(cuts)]
    return [frozenset(part) | (frozenset(order) & frozenset(_REFERENCES)) for part in parts]


def compose(
    heading: Sequence[str],
    items: Sequence[Item],
    paint: Callable[[Axes, Item], Mapping[str, Any]],
    order: Iterable[str],
) -> Figure:
    """Up to four panels, two abreast, under a heading and over one legend.

    `paint` draws an item and returns what stands for each label; `order` is that of the legend.
    """
    across = 1 if len(items) == 1 else 2
    down = -(-len(items) // across)
    text = wrapped(heading, WIDTH * across)
    with styled():
        figure, axes = canvas((WIDTH * across, HEIGHT * down), (down, across))
        handles: dict[str, Any] = {}
        for item, ax in zip(items, axes, strict=False):
            handles |= paint(ax, item)
        for ax in axes[len(items) :]:
            ax.set_axis_off()
        figure.suptitle(text)
        names = [label for label in order if label in handles]
        labels = [short(label) for label in names]
        columns = _legend_columns(labels, WIDTH * across)
        extra = LINE * (len(text.splitlines()) - (-len(labels) // columns)) + 0.2
        figure.set_size_inches(WIDTH * across, HEIGHT * down + extra)
        shown = [handles[name] for name in names]
        figure.legend(shown, labels, loc="outside lower center", ncols=columns, handlelength=3.5)
    return figure


def canvas(size: tuple[float, float], shape: tuple[int, int]) -> tuple[Figure, list[Axes]]:
    """A figure of that size in inches with rows and columns of axes; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(*shape, squeeze=False).flat)


def prepare() -> None:
    """Import what `encode` needs, before there is a figure."""
    from matplotlib.backends import backend_agg, backend_pdf, backend_svg  # noqa: F401


def encode(figure: Figure) -> dict[str, bytes]:
    """The figure's bytes as `png` (150 dots an inch), `svg` and `pdf`, the same for the same figure on every day."""
    found = {}
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine("none")  # laid out once, not once a format
        for kind, metadata in _METADATA.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=dict(metadata))
            found[kind] = _smaller(buffer) if kind == "png" else buffer.getvalue()
    return found


def _smaller(png: io.BytesIO) -> bytes:
    """The picture in 256 colours: a fourth of the bytes, the same to the eye."""
    from PIL import Image

    made = io.BytesIO()
    with Image.open(png) as picture:
        few = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(made, "png", compress_level=9, dpi=(DPI, DPI))
    return made.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """The report's style, whatever the user's settings; they are as before afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def wrapped(lines: Sequence[str], width: float) -> str:
    """The lines for a title `width` inches wide."""
    return "\n".join(part for line in lines for part in textwrap.wrap(clean(line), int(12 * width)))


def short(text: str) -> str:
    """A name as a figure shows it."""
    shown = clean(text).lstrip("_") or "unnamed"
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def in_pages(items: Sequence[Item]) -> list[Sequence[Item]]:
    """The panels, four to a page."""
    return [items[start : start + PANELS] for start in range(0, len(items), PANELS)]


def band(ax: Axes, look: Look, points: Sequence[tuple[float, float, float]]) -> Any:
    """A line through (x, mean, std), the band one std wide on both sides; means and stds are x1, drawn x100."""
    across = [x for x, _, _ in points]
    means = [100 * mean for _, mean, _ in points]
    low, high = ([100 * (mean + sign * std) for _, mean, std in points] for sign in (-1, 1))
    ax.fill_between(across, low, high, color=look.colour, alpha=0.15, linewidth=0)
    (line,) = ax.plot(
        across, means, color=look.colour, marker=look.marker, linestyle=look.dashes, markersize=5, linewidth=1.5
    )  # fmt: skip
    return line


def level(ax: Axes, look: Look, value: float) -> Any:
    """A horizontal line at that score."""
    return ax.axhline(100 * value, color=look.colour, linestyle=look.dashes, linewidth=1.3, zorder=1)


def far_level(ax: Axes, look: Look, label: str, value: float) -> Any:
    """A score so far below that a line at it would press all else together: told at the foot; for the legend."""
    from matplotlib.lines import Line2D

    ax.text(0.99, 0.02, f"{short(label)}: {100 * value:.1f} ↓", transform=ax.transAxes, ha="right", fontsize=8)
    return Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=1.3)


def label_axes(ax: Axes, title: str, across: str) -> None:
    """Title and names of the axes, and a quiet grid."""
    ax.set_title(short(title))
    ax.set_xlabel(across)
    ax.set_ylabel("score ×100")
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """As many as fit `width` inches, reckoning with the longest label."""
    column = 0.8 + 0.085 * max(map(len, labels), default=1)
    return max(1, min(len(labels), int(width / column)))
