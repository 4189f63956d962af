"""How several devices share packs, and a simulation of how long a run takes on them. No torch.

The longest packs come first, and some are cut so that all devices end together. A part of a pack takes longer than its
share of the cells, since the frozen encoder runs for each part.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

# All were chosen.
UNEVEN = 1.1  # packs are cut where the last device would end this much later than with even shares,
WORTH = 0.97  # and where it ends in at most this share of the time then: parts may round otherwise than their pack
FEWEST = 4  # cells of a part
MOST_CUTS = 8  # cuts for each device
LONGEST = 16  # different packs that are tried for each cut, those with the longest parts
SPLITS = 6  # ways in which a part is tried to be cut in two

# How much longer a run on Ray takes to start and end than one process (a device's `start`): Ray starts first, and only
# then do its workers import torch. Measured on two H100s of one host: 16.4 s of a command passed outside of training,
# 10.9 s with one process on one of them. Several hosts start at the same time, but have not been measured.
RAY_SECONDS = 5.5
# How long the driver takes to write the record and the adapter of a cell and flush them to the disk: measured on a
# virtual machine with two cores and a slow, busy disk (17 to 21 ms; 2 ms on a disk in memory).
WRITE_SECONDS = 0.02

Sizes = tuple[int, ...]  # the cells of the parts of a pack


class PackTime(NamedTuple):
    """How long a pack takes.

    Attributes:
        cells: Its cells.
        seconds: Its time on a device that has all bases that the pack needs.
        fixed: The part of `seconds` that does not depend on the number of cells.
        encoder: What identifies its encoder; a device holds one at a time.
        bases: The bases that it needs, each with the seconds that computing it takes, once for each encoder.
    """

    cells: int
    seconds: float
    fixed: float = 0.0
    encoder: Hashable = None
    bases: tuple[tuple[Hashable, float], ...] = ()

    def of_part(self, cells: int) -> float:
        """Return the seconds of a part with this many cells."""
        return self.fixed + (self.seconds - self.fixed) * cells / self.cells


def even_sizes(cells: int, count: int) -> Sizes:
    """Return the cells of `count` even parts, or of fewer parts if these would be too small."""
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


class Cutter:
    """Cuts packs for several devices: at first so that all end together, later none longer than the longest part then.

    Args:
        devices: How many there are.
    """

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._longest: float | None = None

    def sizes(self, packs: Sequence[PackTime]) -> list[Sizes]:
        """Return the parts into which packs are cut that can train now."""
        if self._longest is not None:
            return [even_sizes(pack.cells, math.ceil(pack.seconds / self._longest)) for pack in packs]
        sizes = part_sizes(self._devices, packs)
        self._longest = max(part_seconds(packs, sizes), default=None)
        return sizes


def part_seconds(packs: Iterable[PackTime], sizes: Iterable[Sizes]) -> list[float]:
    """Return the seconds of the parts of packs."""
    return [pack.of_part(cells) for pack, parts in zip(packs, sizes, strict=True) for cells in parts]


def _end(devices: int, parts: Iterable[float]) -> float:
    """When the last of these parts ends."""
    busy = [0.0] * devices
    for part in sorted(parts, reverse=True):
        heapq.heapreplace(busy, busy[0] + part)
    return max(busy)


def training_order(seconds: float, is_search: bool) -> tuple[bool, float]:
    """Return the key by which several devices train what waits: searches first, then the longest."""
    return not is_search, -seconds


def next_position(encoders: Iterable[Hashable], loaded: Hashable) -> int:
    """Return the position of what a free device trains next among what waits: the first for the encoder it has loaded.

    Args:
        encoders: The encoder of each pack or part that waits, in their order.
        loaded: The encoder that the device has loaded; None if it has none.

    Returns:
        The position; 0 if nothing is for that encoder.
    """
    return next((position for position, encoder in enumerate(encoders) if loaded in (None, encoder)), 0)


class StageTimes(NamedTuple):
    """The packs of a stage that are still to train.

    Attributes:
        title: The name of the stage.
        packs: Their predicted times.
        needs: The names of the stages that have to end before.
        is_search: Whether it searches rates: such packs come first.
    """

    title: str
    packs: Sequence[PackTime]
    needs: tuple[str, ...] = ()
    is_search: bool = False


class Simulated(NamedTuple):
    """What a simulated run takes.

    Attributes:
        seconds: From the command to its end.
        training: The seconds that its devices spend training, summed over them.
    """

    seconds: float
    training: float


class _Part(NamedTuple):
    """A part of a pack that waits or trains.

    Attributes:
        order: Its `training_order`.
        pack: The pack.
        cells: How many of the pack's cells it has.
        stage: The name of the pack's stage.
    """

    order: tuple[bool, float]
    pack: PackTime
    cells: int
    stage: str


class _Waiting:
    """The parts of packs that can train, and the stages that wait for others; what `run.queue` is in a real run."""

    def __init__(self, stages: Sequence[StageTimes], devices: int, cuts: bool) -> None:
        self._cutter = Cutter(devices) if cuts and devices > 1 else None
        self._by_length = devices > 1  # one device keeps the order of the plan
        self._later = list(stages)
        self._left: dict[str, int] = {}  # parts of a stage that have not ended
        self._parts: list[_Part] = []
        self._release()

    def take(self, encoder: Hashable) -> _Part | None:
        """Return the part that trains next, and remove it: one for this encoder, if there is one."""
        if not self._parts:
            return None
        return self._parts.pop(next_position((part.pack.encoder for part in self._parts), encoder))

    def end(self, part: _Part) -> None:
        """Note that the records of a part are written."""
        self._left[part.stage] -= 1
        if not self._left[part.stage]:
            self._release()

    def _release(self) -> None:
        """Let the stages train whose needs have ended."""
        ready: list[StageTimes] = []
        while more := [stage for stage in self._later if self._is_ready(stage)]:
            self._left |= {stage.title: len(stage.packs) for stage in more}
            self._later = [stage for stage in self._later if stage.title not in self._left]
            ready += more
        if not any(self._left.values()):  # stages that need each other, some cells of each: as if they did not
            ready, self._later = self._later, []
        pairs = [(stage, pack) for stage in ready for pack in stage.packs]
        packs = [pack for _, pack in pairs]
        sizes = [(pack.cells,) for pack in packs] if self._cutter is None else self._cutter.sizes(packs)
        self._left |= {stage.title: 0 for stage in ready}
        for (stage, pack), parts in zip(pairs, sizes, strict=True):
            for cells in parts:
                seconds = pack.of_part(cells) if self._by_length else 0.0
                order = training_order(seconds, stage.is_search)
                self._parts.append(_Part(order, pack, cells, stage.title))
            self._left[stage.title] += len(parts)
        self._parts.sort(key=lambda part: part.order)  # stable: parts that are alike stay in their order

    def _is_ready(self, stage: StageTimes) -> bool:
        later = {other.title for other in self._later}
        return not any(need in later or self._left.get(need) for need in stage.needs)


class _Devices:
    """The devices of a simulated run: what they train, and the bases that they hold."""

    def __init__(self, count: int) -> None:
        self._idle = list(range(count))
        self._running: list[tuple[float, int, _Part]] = []  # a heap by the time of the end
        self._bases: dict[int, tuple[Hashable, frozenset[Hashable]]] = {}
        self.training = 0.0

    def give(self, waiting: _Waiting, now: float, encoder: Hashable) -> None:
        """Give parts to idle devices."""
        while self._idle and (part := waiting.take(encoder)) is not None:
            device, pack = self._idle.pop(), part.pack
            held_encoder, bases = self._bases.get(device, (None, frozenset()))
            bases = bases if held_encoder == pack.encoder else frozenset()
            seconds = pack.of_part(part.cells) + sum(cost for basis, cost in pack.bases if basis not in bases)
            self._bases[device] = pack.encoder, bases.union(basis for basis, _ in pack.bases)
            self.training += seconds
            heapq.heappush(self._running, (now + seconds, device, part))

    def end_next(self) -> tuple[float, _Part] | None:
        """Return the part that ends next, and when; None if nothing trains."""
        if not self._running:
            return None
        end, device, part = heapq.heappop(self._running)
        self._idle.append(device)
        return end, part


def simulate(
    stages: Sequence[StageTimes],
    start: float,
    devices: int = 1,
    on_ray: bool = False,
    cuts: bool = True,
    write_seconds: float = WRITE_SECONDS,
) -> Simulated:
    """Follow a run as it is predicted to happen.

    The driver gives a device that is free the next part, then writes the records of what the device has trained, one
    pack after another. A stage begins when the records of all stages that it needs are written. A device computes bases
    before the first pack that needs them. Two things are left out: loading a second encoder, and that a run in stages
    regroups the cells that wait whenever records are written.

    Args:
        stages: The stages.
        start: The seconds of one process that no pack accounts for: before the first one, between them and at the end.
        devices: How many there are; several always train on Ray.
        on_ray: Whether a single device trains on Ray too.
        cuts: Whether packs may be cut: not if the user has set their size.
        write_seconds: How long the driver of a run on Ray takes to write a cell; in one process, `start` covers it.
    """
    on_ray = on_ray or devices > 1
    now = start + (RAY_SECONDS if on_ray else 0.0)
    waiting, running = _Waiting(stages, devices, cuts), _Devices(devices)
    running.give(waiting, now, None)
    while (ended := running.end_next()) is not None:
        end, part = ended
        now = max(now, end)  # the driver may still have been writing
        running.give(waiting, now, part.pack.encoder)
        if on_ray:
            now += write_seconds * part.cells
        waiting.end(part)
        running.give(waiting, now, part.pack.encoder)
    return Simulated(now, running.training)
