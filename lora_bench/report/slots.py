"""Slots: what falls in one place of a table, and the numbers shown there.

Only seeds are pooled. Where cells of one slot differ in more than the seed, the setting with the best mean is shown.
What must not be compared at all (another model, other data, another way to choose the epoch) is another `Piece`.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.report.frame import SCOPE, SETTINGS, SLOT, plain_rows
from lora_bench.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
FEW = 3
_READ = (
    *SCOPE, *SLOT, *SETTINGS,
    "id", "targets", "task", "metric", "seed", "score", "notes", "adapter_params", "head_params",
)  # fmt: skip


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
        """`91.2 ± 0.3 (5)`: x100; `(4/5)` when a seed has no score, a dagger below three."""
        count = f"({self.n})" if self.n == self.total else f"({self.n}/{self.total})"
        if self.mean is None:
            return f"— {count}"
        spread = "" if self.std is None else f" ± {percent(self.std)}"
        return f"{percent(self.mean)}{spread} {count}{'†' if self.n < FEW else ''}"


@dataclass(frozen=True)
class Slot:
    """The setting shown in one slot: its scores by seed, and how many settings it was chosen from."""

    method: str
    init: str | None
    rank: int | None
    a: int | None
    b: int | None
    scores: Mapping[int, float]
    total: int
    settings: Row
    adapter_params: int | None
    head_params: int | None
    tried: int
    varying: tuple[str, ...]
    hidden_failures: int

    @property
    def label(self) -> str:
        """The method, with its start where that is not the default."""
        return self.method if self.init is None else f"{self.method} ({self.init} start)"

    @property
    def pair(self) -> tuple[int | None, int | None]:
        """a and b."""
        return self.a, self.b

    @property
    def entry(self) -> Entry:
        """Its numbers."""
        return entry(list(self.scores.values()), self.total)


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


def percent(value: float) -> str:
    """A metric in [-1, 1] as it is printed: x100, one decimal, no negative zero."""
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text


def plain_score(value: float) -> float:
    """The metric as printed: two scores that read the same are the same."""
    return float(percent(value))


def entry(scores: Sequence[float], total: int) -> Entry:
    """The numbers of these scores, whatever their order."""
    n = len(scores)
    mean = statistics.fmean(scores) if n else None
    return Entry(mean, statistics.stdev(scores) if n > 1 else None, statistics.median(scores) if n else None, n, total)


def average(slots: Sequence[Slot]) -> Entry:
    """The mean of the slots' means. Spread and n come from the seeds that have a score in every slot that has any."""
    scored = [slot for slot in slots if slot.scores]
    seeds = max((slot.total for slot in slots), default=0)
    if not scored:
        return entry([], seeds)
    common = sorted(set.intersection(*(set(slot.scores) for slot in scored)))
    by_seed = entry([statistics.fmean(slot.scores[seed] for slot in scored) for seed in common], seeds)
    means = [mean for slot in scored if (mean := slot.entry.mean) is not None]
    return Entry(statistics.fmean(means), by_seed.std, by_seed.median, by_seed.n, seeds)


def by_rank(slots: Iterable[Slot]) -> dict[str, dict[int, list[Slot]]]:
    """Method label -> rank -> slots, of the methods that have a rank."""
    ranked: dict[str, dict[int, list[Slot]]] = defaultdict(lambda: defaultdict(list))
    for slot in slots:
        if slot.rank is not None:
            ranked[slot.label][slot.rank].append(slot)
    return {label: dict(sorted(ranks.items())) for label, ranks in sorted(ranked.items())}


def pieces(frame: pd.DataFrame) -> tuple[Piece, ...]:
    """The frame by scope and target set, in order of names."""
    scopes = _split(plain_rows(frame, _READ), lambda row: tuple(row[name] for name in SCOPE))
    told = [at for at in range(1, len(SCOPE)) if len({scope[at] for scope, _ in scopes}) > 1]
    found = []
    for scope, rows in scopes:
        named = sorted({row["targets"] for row in rows} - {None})
        for targets in named or [None]:
            title = ", ".join((scope[0], targets or "no adapter", *(str(scope[at]) for at in told)))
            here = [row for row in rows if row["targets"] in (None, targets)]
            notes = tuple(sorted({row["notes"] for row in here} - {None}))
            found.append(Piece(title, dict(zip(SCOPE, scope, strict=True)), targets, _columns(here), notes))
    return tuple(found)


def order(key: Iterable[Any]) -> tuple[tuple[bool, Any], ...]:
    """A sort key for values of which some are None: None comes first."""
    return tuple((value is not None, 0 if value is None else value) for value in key)


def _columns(rows: Sequence[Row]) -> dict[Column, tuple[Slot, ...]]:
    parts = _split(rows, lambda row: (row["task"], row["metric"]))
    known = list(TASKS)
    parts.sort(key=lambda item: known.index(item[0][0]) if item[0][0] in known else len(known))
    return {Column(*name): tuple(_slots(part)) for name, part in parts}


def _slots(rows: Sequence[Row]) -> Iterable[Slot]:
    for key, part in _split(rows, _slot_key):
        yield _slot(key, [cells for _, cells in _split(part, lambda row: tuple(row[name] for name in SETTINGS))])


def _slot_key(row: Row) -> tuple[Any, ...]:
    return tuple(None if name == "init" and row[name] == "default" else row[name] for name in SLOT)


def _slot(key: tuple[Any, ...], settings: list[list[Row]]) -> Slot:
    shown = max(settings, key=_merit)
    varying = [name for name in SETTINGS if len({cells[0][name] for cells in settings}) > 1]
    method, init, rank, a, b = key
    return Slot(
        method=method,
        init=init,
        rank=rank,
        a=a,
        b=b,
        scores=_scores(shown),
        total=len(shown),
        settings={name: shown[0][name] for name in SETTINGS},
        adapter_params=_largest(shown, "adapter_params"),
        head_params=_largest(shown, "head_params"),
        tried=len(settings),
        varying=tuple(varying),
        hidden_failures=sum(len(cells) - len(_scores(cells)) for cells in settings if cells is not shown),
    )


def _merit(cells: list[Row]) -> tuple[bool, float, int]:
    scores = _scores(cells)
    return bool(scores), statistics.fmean(scores.values()) if scores else 0.0, len(scores)


def _scores(cells: Iterable[Row]) -> dict[int, float]:
    ordered = sorted(cells, key=lambda row: (row["seed"], row["id"]))
    return {row["seed"]: row["score"] for row in ordered if row["score"] is not None}


def _largest(cells: Iterable[Row], name: str) -> int | None:
    return max((row[name] for row in cells if row[name] is not None), default=None)


def _split(rows: Iterable[Row], key: Callable[[Row], tuple[Any, ...]]) -> list[tuple[tuple[Any, ...], list[Row]]]:
    parts: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        parts[key(row)].append(row)
    return sorted(parts.items(), key=lambda item: order(item[0]))
