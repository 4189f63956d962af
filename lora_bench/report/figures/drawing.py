"""What all figures share: the style, the looks of the methods, small multiples with one legend, reproducible files.

The colours are Okabe and Ito's. Markers and line styles differ as well, so that figures can be read in print without
colour.
"""

from __future__ import annotations

import io
import itertools
import re
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
PANELS_PER_PAGE = 9
DPI = 150
WIDTH, HEIGHT = 4.2, 3.0  # of a panel, in inches
LINE_HEIGHT = 0.2  # of a line of the heading or the legend, in inches
MAX_NAME_LENGTH = 30
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "lora-bench",  # else the ids in an SVG file are random
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names may contain dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
}
# Dates and versions would change the bytes of the same figure.
_METADATA: Mapping[str, Mapping[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
_CURVE_STYLES: tuple[tuple[str, str, Any], ...] = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#56B4E9", "v", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", "P", (0, (8, 2))),
)
_FIRST_METHODS = (
    "mean over (a, b)",
    "mini",
    "lora",
    "xs",
    "cora",
    "cora-init",
)  # in every legend, the others follow by name
_FIXED = {"mean over (a, b)": 0, "mini": 0, "lora": 1}  # the same colours in every figure, whatever else is drawn
LEVEL_STYLES: Mapping[str, tuple[str, str, Any]] = {
    "head": ("#000000", "x", (0, (4, 3))),
    "full": ("#666666", "*", (0, (1, 1.5))),
}


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn, the same in every figure of a subset. `dashes` is a matplotlib line style."""

    colour: str
    marker: str
    dashes: Any


def method_styles(labels: Iterable[str]) -> dict[str, MethodStyle]:
    """Return a style for each method, in the order of the legend."""
    ordered = sorted(
        labels,
        key=lambda label: (
            label in LEVEL_STYLES,
            _FIRST_METHODS.index(label) if label in _FIRST_METHODS else 9,
            _natural_key(label),
        ),
    )
    curves = [label for label in ordered if label not in LEVEL_STYLES]
    free, taken = itertools.count(1 + max(_FIXED.values())), set[int]()
    styles = {}
    for label in curves:
        index = _FIXED.get(label, _FIXED.get(label.split(" ")[0]))  # the method of a label such as `lora r=8`
        if index is None or index in taken:
            index = next(free)
        taken.add(index)
        styles[label] = _curve_style(index)
    return styles | {label: MethodStyle(*LEVEL_STYLES[label]) for label in ordered if label in LEVEL_STYLES}


def _natural_key(label: str) -> list[tuple[bool, int, str]]:
    """Return a sort key by which `a = 16` stands before `a = 128`."""
    parts = re.split(r"(\d+)", label)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _curve_style(index: int) -> MethodStyle:
    """Return the style of the n-th method.

    After each round of colours the markers and dashes are shifted, and the dashes once more when all pairs of a colour
    and a marker are used, so that no two methods look the same.
    """
    count = len(_CURVE_STYLES)
    shift, further = index // count, index // count**2
    return MethodStyle(
        _CURVE_STYLES[index % count][0],
        _CURVE_STYLES[(index + shift) % count][1],
        _CURVE_STYLES[(index + 2 * shift + further) % count][2],
    )


def compose_figure(
    heading: Sequence[str],
    items: Sequence[Item],
    paint: Callable[[Axes, Item], Mapping[str, Any]],
    legend_order: Iterable[str],
) -> Figure:
    """Draw the panels in two or three columns, with a heading and one legend for all.

    Args:
        heading: The lines above the panels.
        items: What to draw, one per panel.
        paint: Draws an item and returns the legend's handle of each label.
        legend_order: All labels, in the order of the legend.
    """
    columns = min(len(items), 2 if len(items) <= 4 else 3)
    rows = -(-len(items) // columns)
    title = wrap_title(heading, WIDTH * columns)
    with report_style():
        figure, axes = new_figure((WIDTH * columns, HEIGHT * rows), (rows, columns))
        handles: dict[str, Any] = {}
        for item, ax in zip(items, axes, strict=False):
            handles |= paint(ax, item)
        for ax in axes[len(items) :]:
            ax.set_axis_off()
        figure.suptitle(title)
        ordered = {label: handles[label] for label in legend_order if label in handles}
        legend_below(figure, ordered, (WIDTH * columns, HEIGHT * rows), len(title.splitlines()))
    return figure


def legend_below(
    figure: Figure,
    handles: Mapping[str, Any],
    size: tuple[float, float],
    title_lines: int = 1,
    name_length: int = MAX_NAME_LENGTH,
) -> None:
    """Add a legend below the axes, and the height that it and the title need.

    Args:
        figure: The figure.
        handles: The handle of each label.
        size: Width and height of the axes in inches.
        title_lines: The number of lines of the title.
        name_length: The longest name.
    """
    names = [shorten(label, name_length) for label in handles]
    legend_columns = _legend_columns(names, size[0])
    text_lines = title_lines + -(-len(names) // legend_columns)
    figure.set_size_inches(size[0], size[1] + LINE_HEIGHT * text_lines + 0.2)
    figure.legend(list(handles.values()), names, loc="outside lower center", ncols=legend_columns, handlelength=3.5)


def set_log_axis(ax: Axes) -> None:
    """Make the x axis logarithmic, with ticks such as 1k, 2k, 5k, or only powers of ten over a long range."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    steps = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_locator(NullLocator())


def new_figure(size: tuple[float, float], shape: tuple[int, int]) -> tuple[Figure, list[Axes]]:
    """Create a figure that needs no display.

    Args:
        size: Width and height in inches.
        shape: Rows and columns of axes.

    Returns:
        The figure and its axes, row by row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(*shape, squeeze=False).flat)


def import_backends() -> None:
    """Import what `encode_figure` needs, ahead of the first figure."""
    from matplotlib.backends import backend_agg, backend_pdf, backend_svg  # noqa: F401


def encode_figure(figure: Figure) -> dict[str, bytes]:
    """Return the bytes of a figure as `png`, `svg` and `pdf`; the same figure always has the same bytes."""
    files = {}
    with report_style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine("none")  # the layout is computed once, not for each format
        for kind, metadata in _METADATA.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=dict(metadata))
            files[kind] = _quantize_png(buffer) if kind == "png" else buffer.getvalue()
    return files


def _quantize_png(png: io.BytesIO) -> bytes:
    """Reduce a picture to 256 colours, which takes a fourth of the bytes and looks the same."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(png) as picture:
        quantized = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        quantized.save(buffer, "png", compress_level=9, dpi=(DPI, DPI))
    return buffer.getvalue()


@contextmanager
def report_style() -> Iterator[None]:
    """Apply the report's style whatever the user's settings, and restore those on exit."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def wrap_title(lines: Sequence[str], width: float) -> str:
    """Wrap the lines of a title to a width in inches."""
    characters = int(12 * width)
    return "\n".join(part for line in lines for part in textwrap.wrap(clean(line), characters))


def shorten(text: str, length: int = MAX_NAME_LENGTH) -> str:
    """Clean and shorten a name to be shown in a figure."""
    # matplotlib leaves labels that begin with an underscore out of the legend.
    name = clean(text).lstrip("_") or "unnamed"
    return name if len(name) <= length else f"{name[: length - 1]}…"


def paginate(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Divide panels into pages."""
    return [items[start : start + PANELS_PER_PAGE] for start in range(0, len(items), PANELS_PER_PAGE)]


def draw_interval_line(
    ax: Axes, style: MethodStyle, points: Sequence[tuple[float, float, float, float]], with_band: bool = True
) -> Any:
    """Draw a line with a band.

    Args:
        ax: The axes.
        style: The method's style.
        points: (x, mean, low, high), drawn ×100; no band where low and high are NaN.
        with_band: Whether there is a band at all.

    Returns:
        The line, for the legend.
    """
    xs = [x for x, _, _, _ in points]
    means, lows, highs = ([100 * point[index] for point in points] for index in (1, 2, 3))
    if with_band and any(low == low for low in lows):
        ax.fill_between(xs, lows, highs, color=style.colour, alpha=0.12, linewidth=0)
    (line,) = ax.plot(
        xs, means, color=style.colour, marker=style.marker, linestyle=style.dashes, markersize=4, linewidth=1.5
    )
    return line


def draw_level(ax: Axes, style: MethodStyle, score: float) -> Any:
    """Draw a horizontal line at a score and return it for the legend."""
    return ax.axhline(100 * score, color=style.colour, linestyle=style.dashes, linewidth=1.3, zorder=1)


def annotate_low_level(ax: Axes, style: MethodStyle, label: str, score: float) -> Any:
    """Write a score at the foot of the axes where a line at it would compress all other lines.

    Returns:
        A line for the legend.
    """
    from matplotlib.lines import Line2D

    ax.text(0.99, 0.02, f"{shorten(label)}: {100 * score:.1f} ↓", transform=ax.transAxes, ha="right", fontsize=8)
    return Line2D([], [], color=style.colour, linestyle=style.dashes, linewidth=1.3)


def label_axes(ax: Axes, title: str, x_label: str, y_label: str = "score ×100") -> None:
    """Set the title and the labels of the axes, and a light grid."""
    if title:
        ax.set_title(shorten(title))
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Return how many columns as wide as the longest name fit a width in inches."""
    # Chosen for a legend in 9 points: the handle and the gaps, and the width of a character.
    column = 0.8 + 0.07 * max(map(len, names), default=1)
    return max(1, min(len(names), int(width / column)))
