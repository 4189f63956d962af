"""The learning rates that a search found: for each method, targets, rank, (a, b) and task, the best on held-out rows.

Rates are compared by the metric on the slice held out of the training split (`select: held-out`): the best epoch of
each seed, averaged over the seeds. The split that is reported plays no part. A rate at which some seed failed or
diverged counts as worst. Among equal rates the lowest is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from lora_bench import tasks
from lora_bench.cell import Head
from lora_bench.errors import NOTHING, BenchError
from lora_bench.records.schema import Record


class SearchedSettings(NamedTuple):
    """The settings for which a rate was searched, besides the task."""

    method: str
    targets: str | None
    rank: int | None
    a: int | None
    b: int | None
    head_lr: float | None
    head: Head | None


@dataclass(frozen=True)
class ChosenRate:
    """The best rate for some settings and one task.

    Attributes:
        settings: The settings it was searched for.
        task: The task's name.
        lr: The rate.
        metric: Its mean held-out metric over the seeds.
        seeds: The number of seeds.
        tried: All rates that were tried, in ascending order.
    """

    settings: SearchedSettings
    task: str
    lr: float
    metric: float
    seeds: int
    tried: tuple[float, ...]

    @property
    def at_edge(self) -> bool:
        """Whether it is the lowest or highest rate tried, so that a rate outside of the range might be better."""
        return self.lr in (self.tried[0], self.tried[-1])


def held_out_metric(record: Record) -> float:
    """Return the best held-out metric of a record's epochs; -inf for a cell that is not done.

    Raises:
        BenchError: exit code 4 if the cell was trained without a held-out slice.
    """
    if record.status != "done":
        return -math.inf
    values = [epoch.held_out[record.metric] for epoch in record.epochs if epoch.held_out is not None]
    if not values:
        raise BenchError("These records have no held-out metric.", "Run the search with `select: held-out`.", NOTHING)
    return max((value for value in values if value is not None), default=-math.inf)


def choose_rates(records: Iterable[Record]) -> list[ChosenRate]:
    """Return the best rates, ordered by method, targets, rank and (a, b), then by task.

    Raises:
        BenchError: exit code 4 if a cell was trained without a held-out slice.
    """
    metrics: dict[tuple[SearchedSettings, str], dict[float, list[float]]] = {}
    for record in records:
        cell = record.cell
        settings = SearchedSettings(cell.method, cell.targets, cell.rank, cell.a, cell.b, cell.head_lr, cell.head)
        by_rate = metrics.setdefault((settings, cell.task), {})
        by_rate.setdefault(cell.lr, []).append(held_out_metric(record))
    # A task that is not loaded here stands after those that are.
    task_order = [*tasks.TASKS, *(task for _, task in metrics if task not in tasks.TASKS)]
    keys = sorted(metrics, key=lambda key: (_sort_key(key[0]), task_order.index(key[1])))
    return [_best_rate(settings, task, metrics[settings, task]) for settings, task in keys]


def _sort_key(settings: SearchedSettings) -> tuple[object, ...]:
    return settings.method, str(settings.targets), settings.rank or 0, settings.a or 0, settings.b or 0


def _best_rate(settings: SearchedSettings, task: str, metrics: Mapping[float, Sequence[float]]) -> ChosenRate:
    means = {lr: fmean(metrics[lr]) for lr in sorted(metrics)}
    # Rounded, so that the rounding of a sum does not decide between rates that are equal.
    lr = max(means, key=lambda rate: round(means[rate], 12))
    return ChosenRate(settings, task, lr, means[lr], len(metrics[lr]), tuple(means))


def config_blocks(rates: Iterable[ChosenRate], ranks: Sequence[int] = ()) -> list[dict[str, object]]:
    """Return config blocks that give the chosen rates.

    Args:
        rates: The rates.
        ranks: The ranks that the blocks are for; each takes the rates of the nearest rank searched, by ratio. Without
            any, the blocks are for the ranks searched.

    Returns:
        Blocks of settings; a and b are written only where several (a, b) were searched.
    """
    by_settings: dict[SearchedSettings, dict[str, float]] = {}
    for rate in rates:
        by_settings.setdefault(rate.settings, {})[rate.task] = rate.lr
    blocks = []
    for settings, by_task in by_settings.items():
        same_method = [other for other in by_settings if other[:2] == settings[:2]]
        searched_ranks = [other.rank for other in same_method]
        nearest_ranks = [rank for rank in ranks if nearest(rank, searched_ranks) == settings.rank]
        if settings.rank is None or not ranks or nearest_ranks:
            block_ranks = nearest_ranks if settings.rank and ranks else [settings.rank]
            with_sizes = len({(other.a, other.b) for other in same_method}) > 1
            blocks.append(_block(settings, block_ranks, with_sizes) | {"lr": by_task})
    return blocks


def _block(settings: SearchedSettings, ranks: Sequence[int | None], with_sizes: bool) -> dict[str, object]:
    block: dict[str, object] = {
        "method": settings.method,
        "targets": settings.targets,
        "rank": ranks[0] if len(ranks) == 1 else list(ranks),
        "a": settings.a if with_sizes else None,
        "b": settings.b if with_sizes else None,
        "head_lr": settings.head_lr,
        "head": settings.head,
    }
    return {key: value for key, value in block.items() if value is not None}


def nearest(size: int, searched: Iterable[int | None]) -> int | None:
    """Return the searched size that is nearest by ratio, the first of equally near ones; None if none was searched."""
    sizes = [other for other in searched if other is not None]
    return min(sizes, key=lambda other: abs(math.log(other / size)), default=None)


def as_yaml(blocks: Iterable[Mapping[str, object]]) -> str:
    """Return the blocks as lines of a config file."""
    return "".join(
        "  - {" + ", ".join(f"{key}: {_value_text(value)}" for key, value in block.items()) + "}\n" for block in blocks
    )


def _value_text(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value_text, value)) + "]"
    return f"{value:.1e}" if isinstance(value, float) else str(value)
