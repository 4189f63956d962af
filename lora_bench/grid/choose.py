"""What a search of learning rates found: per method, targets, rank and task the rate that is best on held-out rows.

The metric is that of the slice kept from train (`select: held-out`), each seed's best epoch, averaged over the seeds;
the split that is reported plays no part. A rate at which a seed did not end counts as worst. Of equal ones, the lowest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lora_bench import tasks
from lora_bench.errors import NOTHING, BenchError
from lora_bench.store import Record

Point = tuple[str, str | None, int | None, float | None]  # method, targets, rank, the head's rate


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
    """The chosen rates, by method, targets and rank, tasks in their usual order."""
    found: dict[tuple[Point, str], dict[float, list[float]]] = {}
    for record in records:
        cell = record.cell
        point = cell.method, cell.targets, cell.rank, cell.head_lr
        found.setdefault((point, cell.task), {}).setdefault(cell.lr, []).append(held_out(record))
    order = list(tasks.TASKS)
    keys = sorted(found, key=lambda key: (*(str(part) for part in key[0][:2]), key[0][2] or 0, order.index(key[1])))
    return [_best(point, task, found[point, task]) for point, task in keys]


def _best(point: Point, task: str, rates: Mapping[float, Sequence[float]]) -> Choice:
    means = {lr: fmean(rates[lr]) for lr in sorted(rates)}
    lr = max(means, key=lambda rate: means[rate])
    return Choice(point, task, lr, means[lr], len(rates[lr]), tuple(means))


def blocks(chosen: Iterable[Choice], ranks: Sequence[int] = ()) -> list[dict[str, object]]:
    """Blocks of a config with the chosen rates; each of `ranks` takes those of the nearest one searched (by ratio)."""
    rates: dict[Point, dict[str, float]] = {}
    for choice in chosen:
        rates.setdefault(choice.point, {})[choice.task] = choice.lr
    made = []
    for point, by_task in rates.items():
        searched = [other[2] for other in rates if other[:2] == point[:2]]
        rank = point[2]
        own = [wanted for wanted in ranks if _nearest(wanted, searched) == rank] if ranks and rank else [rank]
        if own:
            made.append(_block(point, own) | {"lr": by_task})
    return made


def _block(point: Point, ranks: Sequence[int | None]) -> dict[str, object]:
    method, targets, _, head_lr = point
    rank = ranks[0] if len(ranks) == 1 else list(ranks)
    settings: dict[str, object] = {"method": method, "targets": targets, "rank": rank, "head_lr": head_lr}
    return {key: value for key, value in settings.items() if value is not None}


def _nearest(rank: int, searched: Sequence[int | None]) -> int | None:
    known = [other for other in searched if other is not None]
    return min(known, key=lambda other: abs(math.log(other / rank)), default=None)


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
