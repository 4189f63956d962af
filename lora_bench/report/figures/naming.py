"""Names beside points, each where it covers as little as possible of what else is drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

DISTANCES = (6.0, 13.0, 22.0, 33.0, 46.0)  # points between a point and its name, the nearest first; chosen
_LEADER_FROM = 13.0  # from this distance a thin line joins the name to its point
_DIRECTIONS = 12  # around the point, beginning above it
_PAD = 2.0  # pixels that stay free around a name
_STEP = 3.0  # pixels between the samples of what is drawn
_SIZE = 7  # of the letters, in points
_COLOUR = "#444444"  # of the letters and the lines


class Name(NamedTuple):
    """A name, and the point in data coordinates that has it."""

    text: str
    x: float
    y: float


class _Box(NamedTuple):
    """A box in pixels."""

    low: FloatArray
    high: FloatArray

    def count(self, points: FloatArray) -> int:
        """Return how many of some points are inside."""
        return int(((points > self.low) & (points < self.high)).all(axis=1).sum())

    def samples(self) -> FloatArray:
        """Return points in small steps that fill it."""
        import numpy as np

        steps = [np.arange(low, high + _STEP, _STEP) for low, high in zip(self.low, self.high, strict=True)]
        return np.stack(np.meshgrid(*steps), axis=-1).reshape(-1, 2)


def write_names(figure: Figure, ax: Axes, names: Sequence[Name]) -> None:
    """Write names beside their points; one that is further away has a thin line to its point.

    Args:
        figure: The figure, which is complete: its layout says where everything is.
        ax: Its axes.
        names: The names; the first one is placed first.
    """
    import numpy as np

    figure.draw_without_rendering()
    boxes = [_box_of(text) for text in ax.texts]
    taken = np.concatenate([_drawn_points(ax), *(box.samples() for box in boxes)])
    frame, pixels = ax.get_window_extent(), figure.dpi / 72
    for name in names:
        at = ax.transData.transform((name.x, name.y))
        text = ax.annotate(
            name.text, (name.x, name.y), (0, 0), textcoords="offset points", fontsize=_SIZE, color=_COLOUR
        )
        text.set_in_layout(False)
        extent = _box_of(text)
        candidates = []
        for distance in DISTANCES:
            for box in _boxes_around(at, (extent.high - extent.low) / 2, distance * pixels):
                leader = _sampled(np.array([at, np.clip(at, box.low, box.high)]))
                covered = _Box(box.low - _PAD, box.high + _PAD).count(taken)
                crossed = sum(other.count(leader) for other in boxes)
                outside = bool((box.low < frame.min).any() or (box.high > frame.max).any())
                candidates.append((covered + crossed + len(taken) * outside, distance, box, leader))
        _, distance, box, leader = min(candidates, key=lambda candidate: candidate[:2])
        text.set_position(tuple((box.low - at) / pixels))
        text.set_verticalalignment("bottom")
        boxes.append(box)
        taken = np.concatenate([taken, box.samples()])
        if distance >= _LEADER_FROM:
            ends = ax.transData.inverted().transform(leader[:2])
            ax.plot(*ends.T, color=_COLOUR, linewidth=0.5, alpha=0.6, zorder=1, scalex=False, scaley=False)
            taken = np.concatenate([taken, leader])


def _boxes_around(at: FloatArray, half: FloatArray, distance: float) -> Iterator[_Box]:
    """Yield boxes around a point, given by half their width and height, which are as far away from it."""
    import numpy as np

    for number in range(_DIRECTIONS):
        angle = math.pi / 2 + (1, -1)[number % 2] * ((number + 1) // 2) * 2 * math.pi / _DIRECTIONS
        direction = np.round([math.cos(angle), math.sin(angle)], 6)
        middle = at + direction * distance + half * np.sign(direction)
        yield _Box(middle - half, middle + half)


def _box_of(text: Text) -> _Box:
    import numpy as np

    extent = text.get_window_extent()
    return _Box(np.array(extent.min), np.array(extent.max))


def _drawn_points(ax: Axes) -> FloatArray:
    """Return where there are markers and lines, as points in pixels."""
    import numpy as np
    from matplotlib.collections import LineCollection

    parts: list[FloatArray] = [_sampled(line.get_transform().transform(line.get_xydata())) for line in ax.lines]
    for collection in ax.collections:
        if isinstance(collection, LineCollection):
            parts += [_sampled(ax.transData.transform(segment)) for segment in collection.get_segments()]
        else:
            parts.append(np.asarray(ax.transData.transform(collection.get_offsets())))
    return np.concatenate([np.zeros((0, 2)), *parts])


def _sampled(corners: FloatArray) -> FloatArray:
    """Return points on a line in small steps; its corners come first."""
    import numpy as np

    parts = [corners]
    for start, end in itertools.pairwise(corners):
        count = int(np.hypot(*(end - start)) / _STEP)
        parts.append(start + (end - start) * np.linspace(0, 1, count + 2)[:, None])
    return np.concatenate(parts)
