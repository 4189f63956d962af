"""Slots: what falls in one place of a table, and the numbers shown there.

Only seeds are pooled. Where cells of one slot differ in more than the seed, the setting with the best mean is shown.
What must not be compared at all (another model, other data, another way to choose the epoch) is another `Piece`.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lora_bench.report.numbers.rows import SCOPE, SETTINGS, SHOWN_SLOT, Key, Row, split_by
from lora_bench.tasks import TASKS

FEW = 3


@dataclass(frozen=True)
class Entry:
    """The numbers of one place in a table, in the metric's units. `total` counts seeds run, `n` those with a score.

    `std` is the sample standard deviation (ddof=1), None below two seeds; `mean` and `median` None without a score.
    """

    mean: float | None
    std: float | None
    median: float | None
    n: int
    total: int

    def text(self) -> str:
        """`91.2 ± 0.3; 91.3 (5)`: x100, mean ± std; median (n). `(4/5)` when a seed has no score, a dagger below 3."""
        count = f"({self.n})" if self.n == self.total else f"({self.n}/{self.total})"
        if self.mean is None or self.median is None:
            return f"— {count}"
        spread = "" if self.std is None else f" ± {percent(self.std)}; {percent(self.median)}"
        return f"{percent(self.mean)}{spread} {count}{'†' if self.n < FEW else ''}"


@dataclass(frozen=True)
class Slot:
    """The setting shown in one slot: its cells by seed, and from how many settings it was chosen."""

    method: str
    init: str | None
    rank: int | None
    a: int | None
    b: int | None
    cells: tuple[Row, ...]
    tried: int = 1
    varying: tuple[str, ...] = ()
    hidden_failures: int = 0

    @property
    def label(self) -> str:
        """The method, with its start where that is not the default."""
        return self.method if self.init is None else f"{self.method} ({self.init} start)"

    @property
    def size(self) -> str:
        """The method with its rank, a and b, in words."""
        parts = [f"{name}={value}" for name, value in (("r", self.rank), ("a", self.a), ("b", self.b)) if value]
        return " ".join((self.label, *parts))

    @property
    def pair(self) -> tuple[int | None, int | None]:
        """a and b."""
        return self.a, self.b

    @cached_property
    def scores(self) -> Mapping[int, float]:
        """Score by seed, of the seeds that have one."""
        return self.values("score")

    @cached_property
    def settings(self) -> Row:
        """What the cells share beside the slot."""
        return {name: self.cells[0][name] for name in SETTINGS}

    @cached_property
    def entry(self) -> Entry:
        """Its numbers."""
        return entry(list(self.scores.values()), len(self.cells))

    @property
    def lost(self) -> Counter[str]:
        """How many seeds have no score, by how they ended; `undefined` is a cell that ended with no finite score."""
        names = {"done": "undefined", "oom": "failed"}
        ends = [str(cell["status"]) for cell in self.cells if cell["score"] is None]
        return Counter(names.get(end, end) for end in ends)

    def values(self, name: str) -> dict[int, float]:
        """A number of each cell by seed, where there is one."""
        return {cell["seed"]: cell[name] for cell in self.cells if cell[name] is not None}

    def largest(self, name: str) -> int | None:
        """The largest count among the cells, None where none has it."""
        return max((cell[name] for cell in self.cells if cell[name] is not None), default=None)

    def seconds(self) -> float | None:
        """Mean seconds a cell."""
        known = list(self.values("seconds").values())
        return statistics.fmean(known) if known else None


@dataclass(frozen=True, order=True)
class Column:
    """A task and its main metric."""

    task: str
    metric: str


@dataclass(frozen=True)
class Piece:
    """What may stand in one table: one model, data, protocol and target set. Methods without targets are in each.

    `title` names it among the others: model, targets, and what else of the scope is not the same in all of them.
    `notes` are the records' own words on what deviates in their protocol.
    """

    title: str
    scope: Mapping[str, str]
    targets: str | None
    columns: Mapping[Column, tuple[Slot, ...]]
    notes: tuple[str, ...] = ()

    def chosen(self, column: Column) -> dict[str, Slot]:
        """The best setting of each method on that task, by the name of the method."""
        by_label: dict[str, list[Slot]] = {}
        for slot in self.columns[column]:
            by_label.setdefault(slot.label, []).append(slot)
        return {label: max(slots, key=lambda slot: merit(slot.cells)) for label, slots in sorted(by_label.items())}


def percent(value: float, digits: int = 1) -> str:
    """A metric in [-1, 1] as it is printed: x100, one decimal, no negative zero."""
    text = f"{100 * value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def plain_score(value: float) -> float:
    """The metric as printed: two scores that read the same are the same."""
    return float(percent(value))


def entry(scores: Sequence[float], total: int) -> Entry:
    """The numbers of these scores, whatever their order."""
    n = len(scores)
    if not n:
        return Entry(None, None, None, 0, total)
    mean = statistics.fmean(scores)
    std = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (n - 1)) if n > 1 else None
    return Entry(mean, std, statistics.median(scores), n, total)


def average(slots: Sequence[Slot]) -> Entry:
    """The mean of the slots' means. Spread and n come from the seeds that have a score in every slot that has any."""
    scored = [slot for slot in slots if slot.scores]
    seeds = max((len(slot.cells) for slot in slots), default=0)
    if not scored:
        return entry([], seeds)
    shared = set.intersection(*(set(slot.scores) for slot in scored))
    by_seed = entry([statistics.fmean(slot.scores[seed] for slot in scored) for seed in sorted(shared)], seeds)
    mean = statistics.fmean(slot.entry.mean for slot in scored if slot.entry.mean is not None)
    return Entry(mean, by_seed.std, mean if by_seed.median is None else by_seed.median, by_seed.n, seeds)


def by_rank(slots: Iterable[Slot]) -> dict[str, dict[int, list[Slot]]]:
    """Method label -> rank -> slots, of the methods that have a rank."""
    ranked: dict[str, dict[int, list[Slot]]] = defaultdict(lambda: defaultdict(list))
    for slot in slots:
        if slot.rank is not None:
            ranked[slot.label][slot.rank].append(slot)
    return {label: dict(sorted(ranks.items())) for label, ranks in sorted(ranked.items())}


def has_pairs(ranks: Mapping[int, Sequence[Slot]]) -> bool:
    """Whether a method has (a, b)."""
    return any(slot.pair != (None, None) for slots in ranks.values() for slot in slots)


def merit(cells: Sequence[Row]) -> tuple[int, float, int]:
    """What a setting is chosen by: its mean, among those that have three scores, or else the most."""
    scores = [cell["score"] for cell in cells if cell["score"] is not None]
    return min(len(scores), FEW), statistics.fmean(scores) if scores else 0.0, len(scores)


def slot_of(
    key: Key, cells: Sequence[Row], tried: int = 1, varying: tuple[str, ...] = (), hidden_failures: int = 0
) -> Slot:
    """The slot of cells that share a key: method, start, rank, a, b."""
    method, init, rank, a, b = key
    return Slot(method, init, rank, a, b, tuple(cells), tried, varying, hidden_failures)


def pieces(rows: Sequence[Row]) -> tuple[Piece, ...]:
    """The rows by scope and target set, in order of names."""
    scopes = split_by(rows, SCOPE)
    told = [at for at in range(1, len(SCOPE)) if len({scope[at] for scope, _ in scopes}) > 1]
    found = []
    for scope, inside in scopes:
        named = sorted({row["targets"] for row in inside} - {None})
        for targets in named or [None]:
            title = ", ".join((scope[0], targets or "no adapter", *(str(scope[at]) for at in told)))
            here = [row for row in inside if row["targets"] in (None, targets)]
            notes = tuple(sorted({row["notes"] for row in here} - {None}))
            found.append(Piece(title, dict(zip(SCOPE, scope, strict=True)), targets, _columns(here), notes))
    return tuple(found)


def _columns(rows: Sequence[Row]) -> dict[Column, tuple[Slot, ...]]:
    parts = split_by(rows, ("task", "metric"))
    known = list(TASKS)
    parts.sort(key=lambda item: known.index(item[0][0]) if item[0][0] in known else len(known))
    return {Column(*name): tuple(_slots(part)) for name, part in parts}


def _slots(rows: Sequence[Row]) -> Iterable[Slot]:
    for key, part in split_by(rows, SHOWN_SLOT):
        yield _slot(key, [cells for _, cells in split_by(part, SETTINGS)])


def _slot(key: Key, settings: list[list[Row]]) -> Slot:
    shown = max(settings, key=merit)
    hidden = sum(cell["score"] is None for cells in settings if cells is not shown for cell in cells)
    varying = tuple(name for name in SETTINGS if len({cells[0][name] for cells in settings}) > 1)
    cells = tuple(sorted(shown, key=lambda row: (row["seed"], row["id"])))
    return slot_of(key, cells, len(settings), varying, hidden)
