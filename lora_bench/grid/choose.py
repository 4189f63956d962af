"""What a search of learning rates found: per method, targets, rank, (a, b) and task the rate best on held-out rows.

The metric is that of the slice kept from train (`select: held-out`), each seed's best epoch, averaged over the seeds;
the split that is reported plays no part. A rate at which a seed did not end counts as worst. Of equal ones, the lowest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from lora_bench import tasks
from lora_bench.errors import NOTHING, BenchError
from lora_bench.records.schema import Record


class Point(NamedTuple):
    """What a rate was searched for."""

    method: str
    targets: str | None
    rank: int | None
    a: int | None
    b: int | None
    head_lr: float | None


@dataclass(frozen=True)
class Choice:
    """The rate for one point of the search and one task. `edge`: it is the lowest or highest that was tried."""

    point: Point
    task: str
    lr: float
    metric: float
    seeds: int
    tried: tuple[float, ...]

    @property
    def edge(self) -> bool:
        """Whether a rate outside of the range might be better."""
        return self.lr in (self.tried[0], self.tried[-1])


def held_out(record: Record) -> float:
    """The best held-out metric of a record's epochs; -inf if it did not end.

    Raises:
        BenchError: exit code 4 if the record was made without a held-out slice.
    """
    if record.status != "done":
        return -math.inf
    values = [epoch.held_out[record.metric] for epoch in record.epochs if epoch.held_out is not None]
    if not values:
        raise BenchError("These records have no held-out metric.", "Run the search with `select: held-out`.", NOTHING)
    return max((value for value in values if value is not None), default=-math.inf)


def choices(records: Iterable[Record]) -> list[Choice]:
    """The chosen rates, by method, targets, rank and (a, b), tasks in their usual order."""
    found: dict[tuple[Point, str], dict[float, list[float]]] = {}
    for record in records:
        cell = record.cell
        point = Point(cell.method, cell.targets, cell.rank, cell.a, cell.b, cell.head_lr)
        found.setdefault((point, cell.task), {}).setdefault(cell.lr, []).append(held_out(record))
    order = [*tasks.TASKS, *(task for _, task in found if task not in tasks.TASKS)]
    keys = sorted(found, key=lambda key: (_place(key[0]), order.index(key[1])))
    return [_best(point, task, found[point, task]) for point, task in keys]


def _place(point: Point) -> tuple[object, ...]:
    return point.method, str(point.targets), point.rank or 0, point.a or 0, point.b or 0


def _best(point: Point, task: str, rates: Mapping[float, Sequence[float]]) -> Choice:
    means = {lr: fmean(rates[lr]) for lr in sorted(rates)}
    lr = max(means, key=lambda rate: round(means[rate], 12))  # a sum's order decides no tie
    return Choice(point, task, lr, means[lr], len(rates[lr]), tuple(means))


def blocks(chosen: Iterable[Choice], ranks: Sequence[int] = ()) -> list[dict[str, object]]:
    """Blocks of a config with the chosen rates; each of `ranks` takes those of the nearest one searched (by ratio).

    a and b are said where several were searched.
    """
    rates: dict[Point, dict[str, float]] = {}
    for choice in chosen:
        rates.setdefault(choice.point, {})[choice.task] = choice.lr
    made = []
    for point, by_task in rates.items():
        alike = [other for other in rates if other[:2] == point[:2]]
        own = [wanted for wanted in ranks if nearest(wanted, [other.rank for other in alike]) == point.rank]
        if point.rank is None or not ranks or own:
            several = len({(other.a, other.b) for other in alike}) > 1
            made.append(_block(point, own if point.rank and ranks else [point.rank], several) | {"lr": by_task})
    return made


def _block(point: Point, ranks: Sequence[int | None], sizes: bool) -> dict[str, object]:
    settings: dict[str, object] = {
        "method": point.method, "targets": point.targets, "rank": ranks[0] if len(ranks) == 1 else list(ranks),
        "a": point.a if sizes else None, "b": point.b if sizes else None, "head_lr": point.head_lr,
    }  # fmt: skip
    return {key: value for key, value in settings.items() if value is not None}


def nearest(size: int, searched: Iterable[int | None]) -> int | None:
    """The nearest by ratio of those that were searched, the first of equal ones; None if none was."""
    known = [other for other in searched if other is not None]
    return min(known, key=lambda other: abs(math.log(other / size)), default=None)


def as_yaml(made: Iterable[Mapping[str, object]]) -> str:
    """The blocks as lines of a config file."""
    return "".join(
        "  - {" + ", ".join(f"{key}: {_word(value)}" for key, value in block.items()) + "}\n" for block in made
    )


def _word(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_word(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_word, value)) + "]"
    return f"{value:.1e}" if isinstance(value, float) else str(value)
