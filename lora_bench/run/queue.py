"""Decides what trains next: a pack that waits or a part of one that failed, without cells that have a record by now.

Where memory runs out, a pack is halved; results do not depend on the pack, so no number changes. After any other error
three cells of the pack are tried alone: if all of them fail with the same error, the pack is given up; else it is
halved until the cell at fault is alone. Any number of packs may be in training at a time. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from lora_bench.cell import Cell
from lora_bench.forecast.schedule import Cutter, PackTime, Sizes, next_position, training_order
from lora_bench.run.interfaces import Failure
from lora_bench.run.plan import Plan

PROBES = 3  # cells of a failed pack that are tried alone


@dataclass(eq=False)
class Probe:
    """Cells of a failed pack that are tried alone, and the others, which wait for how they end.

    Attributes:
        cells: All cells of the pack.
        failure: Why the pack failed.
        running: How many of those that are tried have not ended.
        halved: How often the pack was cut in two because memory ran out.
    """

    cells: tuple[Cell, ...]
    failure: Failure
    running: int
    halved: int


@dataclass(frozen=True, eq=False)
class Work:
    """A pack, or a part of one.

    Attributes:
        cells: The cells.
        halved: How often the pack was cut in two because memory ran out.
        is_probed: Whether single cells of the pack were tried already.
        probe: The failed pack of which this is one cell that is tried alone; None for other work.
        cost: Its predicted seconds; where these are unknown, its size.
    """

    cells: tuple[Cell, ...]
    halved: int = 0
    is_probed: bool = False
    probe: Probe | None = None
    cost: float = 0.0

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a pack that failed."""
        return bool(self.halved) or self.is_probed


class Queue:
    """The packs that are to train.

    Args:
        plan: The plan.
        devices: How many packs train at once. For one, packs come in the order of the plan, in which neighbours share
            tables. For several the longest come first, cut into parts where the devices would end at different times
            otherwise, unless the user has set the size of packs.
    """

    def __init__(self, plan: Plan, devices: int) -> None:
        self._store, self._known, self._devices = plan.store, plan.known, devices
        self._waiting: list[Work] = []
        self._cutter = Cutter(devices)
        self.add(plan)

    def busy(self, running: Iterable[Work]) -> set[str]:
        """Return the ids of the cells that are in training (`running`), or that belong to a failed pack."""
        works = [*running, *(work for work in self._waiting if work.is_part)]
        probes = [work.probe.cells for work in works if work.probe is not None]
        return {cell.id for cells in (*(work.cells for work in works), *probes) for cell in cells}

    def add(self, plan: Plan) -> None:
        """Replace the packs that wait by those of a plan without busy cells; parts of failed packs stay."""
        self._known = plan.known
        parts = [work for work in self._waiting if work.is_part]
        works = self._balanced(plan) if self._devices > 1 else [Work(pack) for pack in plan.packs]
        self._waiting = [*parts, *works]

    def _balanced(self, plan: Plan) -> list[Work]:
        """The packs of a plan in parts that keep all devices busy to the end, in the order in which they train."""
        times = plan.times(plan.packs)
        if None in times:
            times = [PackTime(len(pack), float(len(pack) * pack[0].epochs)) for pack in plan.packs]
        packs = [(pack, time) for pack, time in zip(plan.packs, times, strict=True) if time is not None]
        works = self._in_parts(packs) if plan.limit is None else [Work(pack, cost=time.seconds) for pack, time in packs]
        return sorted(works, key=lambda work: training_order(work.cost, plan.searches(work.cells)))

    def _in_parts(self, packs: Sequence[tuple[tuple[Cell, ...], PackTime]]) -> list[Work]:
        """The packs in parts that keep all devices busy."""
        sizes = self._cutter.sizes([time for _, time in packs])
        return [part for (pack, time), cut in zip(packs, sizes, strict=True) for part in _parts(pack, time, cut)]

    def untrained(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Return the cells without a record since the plan was made; not those whose record cannot be read now."""
        records, known, unreadable = self._store.records, self._known, self._store.unreadable
        return tuple(
            cell
            for cell in cells
            if cell.id not in unreadable and records.get(cell.id, known.get(cell.id)) is known.get(cell.id)
        )

    def take(self, last: Cell | None = None) -> Work | None:
        """Return what trains next, and remove it; None if nothing is ready.

        Args:
            last: A cell of what trained before on that device: work for the same encoder comes first.
        """
        loaded = None if last is None else _encoder(last)
        while self._waiting:
            encoders = (_encoder(work.cells[0]) for work in self._waiting)
            work = self._waiting.pop(next_position(encoders, loaded))
            cells = work.cells if work.probe else self.untrained(work.cells)
            if cells:
                return replace(work, cells=cells)
        return None

    def ended(self, work: Work, failure: Failure | None) -> tuple[tuple[Cell, ...], str] | None:
        """Note that work has ended and that its records are written; what is left of failed work waits again.

        Returns:
            Cells that are given up, and why; None if there are none.
        """
        left = self.untrained(work.cells)
        if failure is not None and left:
            self._split(replace(work, cells=left), failure)
            return None
        return self._end_probe(work)

    def _split(self, work: Work, failure: Failure) -> None:
        """Put parts of failed work first, or three of its cells."""
        cells, is_oom = work.cells, failure.status == "oom"
        if is_oom or work.is_probed or len(cells) <= PROBES:
            middle = len(cells) // 2
            self._waiting[:0] = [
                Work(half, work.halved + is_oom, work.is_probed or not is_oom, cost=work.cost / 2)
                for half in (cells[:middle], cells[middle:])
                if half
            ]
            return
        indices = sorted({0, len(cells) // 2, len(cells) - 1})
        probe = Probe(cells, failure, len(indices), work.halved)
        self._waiting[:0] = [Work(cells[index : index + 1], is_probed=True, probe=probe) for index in indices]

    def _end_probe(self, work: Work) -> tuple[tuple[Cell, ...], str] | None:
        """Decide on the other cells of a failed pack when the last of those that were tried alone has ended."""
        probe = work.probe
        if probe is None:
            return None
        probe.running -= 1
        left = self.untrained(probe.cells)
        if probe.running or not left:
            return None
        tried = [self._store.records.get(cell.id) for cell in probe.cells if cell not in left]
        reasons = {record.reason if record is not None and record.status == "failed" else None for record in tried}
        if len(reasons) == 1 and None not in reasons:
            return left, str(reasons.pop())
        self._split(Work(left, probe.halved, is_probed=True), probe.failure)
        return None


def _encoder(cell: Cell) -> tuple[str, str]:
    """What identifies the encoder of a cell."""
    return cell.model, cell.precision


def _parts(pack: tuple[Cell, ...], time: PackTime, sizes: Sizes) -> list[Work]:
    """The pack in parts of these sizes."""
    return [
        Work(pack[begin:end], cost=time.of_part(end - begin)) for begin, end in pairwise(accumulate(sizes, initial=0))
    ]
