"""How several devices share packs: the longest come first, and some are cut so that all devices end together. No torch.

A part of a pack takes longer than its share of the cells, since the frozen encoder runs for each part.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

# All were chosen.
UNEVEN = 1.1  # packs are cut where the last device would end this much later than with even shares,
WORTH = 0.97  # and where it ends in at most this share of the time then: parts may round otherwise than their pack
FEWEST = 4  # cells of a part
MOST_CUTS = 8  # cuts for each device
LONGEST = 16  # different packs that are tried for each cut, those with the longest parts
SPLITS = 6  # ways in which a part is tried to be cut in two

Sizes = tuple[int, ...]  # the cells of the parts of a pack


class PackTime(NamedTuple):
    """How long a pack takes.

    Attributes:
        cells: Its cells.
        seconds: Its time.
        fixed: Those of the seconds that do not depend on how many cells there are.
    """

    cells: int
    seconds: float
    fixed: float = 0.0

    def of_part(self, cells: int) -> float:
        """Return the seconds of a part with so many cells."""
        return self.fixed + (self.seconds - self.fixed) * cells / self.cells


def even_sizes(cells: int, count: int) -> Sizes:
    """Return the cells of so many even parts, or of fewer where these would be too small."""
    count = max(1, min(count, cells // FEWEST))
    return tuple(end - begin for begin, end in pairwise(cells * index // count for index in range(count + 1)))


def part_sizes(devices: int, packs: Sequence[PackTime]) -> list[Sizes]:
    """Return the parts into which packs are cut, so that several devices end at about the same time.

    As few cuts as possible: one after another, always that after which the last device ends first.

    Args:
        devices: How many there are.
        packs: The packs.
    """
    whole: list[Sizes] = [(pack.cells,) for pack in packs]
    sizes = best = whole
    uncut = soonest = _end(devices, part_seconds(packs, sizes))
    share = sum(pack.seconds for pack in packs) / devices
    for _ in range(MOST_CUTS * devices):
        tried = list(_cuts(packs, sizes)) if soonest > UNEVEN * share else []
        if not tried:
            break
        ends = [_end(devices, part_seconds(packs, cut)) for cut in tried]
        sizes = tried[ends.index(min(ends))]
        if min(ends) < soonest:
            soonest, best = min(ends), sizes
    return best if soonest <= WORTH * uncut else whole


def _cuts(packs: Sequence[PackTime], sizes: Sequence[Sizes]) -> Iterator[list[Sizes]]:
    """Cut one pack once more: into even parts, or the longest of its parts in two."""
    seen = set()
    for index in sorted(range(len(packs)), key=lambda index: -packs[index].of_part(max(sizes[index]))):
        pack, parts = packs[index], sizes[index]
        if (pack, parts) in seen:
            continue
        seen.add((pack, parts))
        if len(seen) > LONGEST:
            return
        cuts = [even_sizes(pack.cells, len(parts) + 1)]
        longest, others = max(parts), sorted(parts)[:-1]
        if longest >= 2 * FEWEST:
            firsts = dict.fromkeys(
                FEWEST + (longest // 2 - FEWEST) * step // (SPLITS - 1) for step in reversed(range(SPLITS))
            )
            cuts += [(longest - first, *others, first) for first in firsts]
        for cut in cuts:
            if len(cut) > len(parts):
                yield [*sizes[:index], cut, *sizes[index + 1 :]]


def part_seconds(packs: Iterable[PackTime], sizes: Iterable[Sizes]) -> list[float]:
    """Return the seconds of the parts of packs."""
    return [pack.of_part(cells) for pack, parts in zip(packs, sizes, strict=True) for cells in parts]


def seconds_on(devices: int, packs: Sequence[PackTime]) -> float:
    """Return how long packs take on several devices: the longest first, each where a device is free first.

    Args:
        devices: How many there are.
        packs: The packs.
    """
    return _end(devices, part_seconds(packs, part_sizes(devices, packs)))


def _end(devices: int, parts: Iterable[float]) -> float:
    """When the last of these parts ends."""
    busy = [0.0] * devices
    for part in sorted(parts, reverse=True):
        heapq.heapreplace(busy, busy[0] + part)
    return max(busy)
