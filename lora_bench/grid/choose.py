"""The learning rates that a search found best on held-out rows, for each setting and task.

Rates are compared by the metric on the slice held out of the training split (`select: held-out`): the best epoch of
each seed, averaged over the seeds. The split that is reported plays no part. A rate at which some seed failed or
diverged counts as worst. Among equal rates the lowest is chosen. Where a search was changed between two runs, records
may hold rates that were tried with different seeds: rates are compared on the same seeds, and a rate that lacks one of
these is left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from lora_bench import tasks
from lora_bench.cell import Cell, Head
from lora_bench.errors import NOTHING, BenchError
from lora_bench.grid.search import is_at_edge, nearest
from lora_bench.records.schema import Record

Rates = tuple[float, ...]  # a value of each setting that is searched


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
        settings: The settings it was searched for. If the head's rate was searched too, it is the chosen one.
        task: The task's name.
        lr: The rate.
        metric: Its mean held-out metric over the seeds; -inf if a seed failed at every rate.
        seeds: The number of seeds.
        searched: The settings that were searched: `lr`, and perhaps `head_lr`.
        means: The mean held-out metric of all rates that were tried with these seeds, in ascending order.
        further: Other settings in which the searches of these settings for one task differ, with their values.
    """

    settings: SearchedSettings
    task: str
    lr: float
    metric: float
    seeds: int
    searched: tuple[str, ...]
    means: Mapping[Rates, float]
    further: tuple[tuple[str, object], ...] = ()

    @property
    def rates(self) -> Rates:
        """The chosen value of each setting that was searched."""
        chosen = {"lr": self.lr, "head_lr": self.settings.head_lr}
        return tuple(rate for name in self.searched if (rate := chosen[name]) is not None)

    @property
    def tried(self) -> Rates:
        """All rates of the adapter that were tried, in ascending order."""
        return self.values_of("lr") if "lr" in self.searched else (self.lr,)

    def values_of(self, setting: str) -> Rates:
        """Return all values of a searched setting that were tried, in ascending order."""
        index = self.searched.index(setting)
        return tuple(sorted({rates[index] for rates in self.means}))

    @property
    def edges(self) -> tuple[str, ...]:
        """The settings whose chosen value is the lowest or highest tried, so that one beyond it might be better."""
        chosen = zip(self.searched, self.rates, strict=True)
        return tuple(name for name, rate in chosen if is_at_edge(self.values_of(name), rate))

    @property
    def at_edge(self) -> bool:
        """Whether the chosen value of a setting is the lowest or highest tried."""
        return bool(self.edges)


def held_out_metric(record: Record) -> float:
    """Return the held-out metric that a cell is judged by (`Record.best_held_out`); -inf if it is not done.

    Raises:
        BenchError: Exit code 4 if the cell was trained without a held-out slice.
    """
    if record.status != "done":
        return -math.inf
    if all(epoch.held_out is None for epoch in record.epochs):
        raise BenchError("These records have no held-out metric.", "Run the search with `select: held-out`.", NOTHING)
    best = record.best_held_out
    return -math.inf if best is None else best[0]


def best_rates(metrics: Mapping[Rates, Sequence[float]]) -> Rates | None:
    """Return the rates with the best mean metric, of equal ones the lowest; None if a seed failed at all rates.

    Args:
        metrics: The held-out metric of each seed, by rates; -inf for a seed that failed.
    """
    means = {rates: fmean(metrics[rates]) for rates in sorted(metrics)}
    # Rounded, so that the rounding of a sum does not decide between rates that are equal.
    best = max(means, key=lambda rates: round(means[rates], 12))
    return best if means[best] > -math.inf else None


def choose_rates(records: Iterable[Record]) -> list[ChosenRate]:
    """Return the best rates, ordered by method, targets, rank and (a, b), then by task.

    Cells are compared with one another if nothing but their rates and seeds differs. If there are cells of searches
    (`Record.search`), they alone count.

    Raises:
        BenchError: Exit code 4 if a cell was trained without a held-out slice.
    """
    records = list(records)
    trials = [record for record in records if record.search is not None and record.search.role == "trial"]
    groups: defaultdict[tuple[Cell, str | None, tuple[str, ...]], dict[Rates, dict[int, float]]] = defaultdict(dict)
    starts: dict[str | None, str] = {}
    for record in trials or records:
        searched = ("lr",) if record.search is None else record.search.settings
        values = {name: getattr(record.cell, name) for name in searched}
        unset = {name: Cell.model_fields[name].default for name in values}
        common = record.cell.model_copy(update={"seed": 0, "start": None, **unset})
        starts[record.protocol.start_settings] = record.protocol.start
        by_rates = groups[common, record.protocol.start_settings, searched]
        by_rates.setdefault(tuple(values.values()), {})[record.cell.seed] = held_out_metric(record)
    further = _distinguishing(cell for cell, *_ in groups)
    with_start = len({start for _, start, _ in groups}) > 1
    chosen = []
    for (cell, start, searched), metrics in groups.items():
        others = {name: getattr(cell, name) for name in further} | ({"start": starts[start]} if with_start else {})
        chosen.append(_best_rate(cell, searched, _on_same_seeds(metrics), tuple(others.items())))
    # A task that is not loaded here stands after those that are.
    task_order = [*tasks.TASKS, *(choice.task for choice in chosen if choice.task not in tasks.TASKS)]
    return sorted(chosen, key=lambda choice: (*_sort_key(choice), task_order.index(choice.task)))


def _on_same_seeds(metrics: Mapping[Rates, Mapping[int, float]]) -> dict[Rates, list[float]]:
    """The metrics of the rates that were tried with the same seeds: those seeds for which most cells count."""
    alternatives = {frozenset(by_seed) for by_seed in metrics.values()}
    counts = {
        seeds: len(seeds) * sum(seeds <= by_seed.keys() for by_seed in metrics.values()) for seeds in alternatives
    }
    seeds = max(alternatives, key=lambda seeds: (counts[seeds], len(seeds), sorted(seeds)))
    failed = {rates: [-math.inf] for rates, by_seed in metrics.items() if -math.inf in by_seed.values()}
    on_seeds = {rates: by_seed for rates, by_seed in metrics.items() if seeds <= by_seed.keys()}
    return {rates: [by_seed[seed] for seed in sorted(seeds)] for rates, by_seed in on_seeds.items()} | failed


def _distinguishing(cells: Iterable[Cell]) -> tuple[str, ...]:
    """The settings beyond those of `SearchedSettings` in which cells differ that have these and the task in common."""
    by_settings: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        by_settings.setdefault((_settings(cell), cell.task), []).append(cell)
    names = [name for name in Cell.model_fields if name not in (*SearchedSettings._fields, "task")]
    return tuple(
        name
        for name in names
        if any(len({getattr(cell, name) for cell in alike}) > 1 for alike in by_settings.values())
    )


def _settings(cell: Cell) -> SearchedSettings:
    return SearchedSettings(cell.method, cell.targets, cell.rank, cell.a, cell.b, cell.head_lr, cell.head)


def _sort_key(choice: ChosenRate) -> tuple[object, ...]:
    settings = choice.settings
    sizes = settings.rank or 0, settings.a or 0, settings.b or 0
    further = tuple((value is not None, value) for _, value in choice.further)
    return settings.method, str(settings.targets), *sizes, str(settings.head), further


def _best_rate(
    cell: Cell,
    searched: tuple[str, ...],
    metrics: Mapping[Rates, Sequence[float]],
    further: tuple[tuple[str, object], ...],
) -> ChosenRate:
    means = {rates: fmean(metrics[rates]) for rates in sorted(metrics)}
    best = best_rates(metrics) or min(means)
    values = dict(zip(searched, best, strict=True))
    settings = _settings(cell.model_copy(update=values))
    lr = values.get("lr", cell.lr)
    return ChosenRate(settings, cell.task, lr, means[best], len(metrics[best]), searched, means, further)


def config_blocks(rates: Iterable[ChosenRate], ranks: Sequence[int] = ()) -> list[dict[str, object]]:
    """Return config blocks that give the chosen rates.

    Args:
        rates: The rates.
        ranks: The ranks that the blocks are for; each takes the rates of the nearest rank searched, by ratio. Without
            any, the blocks are for the ranks searched.

    Returns:
        Blocks of settings. a and b are written only where several (a, b) were searched, and the tasks only where the
        head's rate was searched: it may differ between tasks.
    """
    by_settings: dict[tuple[SearchedSettings, tuple[tuple[str, object], ...]], dict[str, float]] = {}
    with_tasks = set()
    for rate in rates:
        by_settings.setdefault((rate.settings, rate.further), {})[rate.task] = rate.lr
        with_tasks |= {(rate.settings, rate.further)} if "head_lr" in rate.searched else set()
    blocks = []
    for (settings, further), by_task in by_settings.items():
        same_method = [other for other, others in by_settings if (*other[:2], others) == (*settings[:2], further)]
        searched_ranks = [other.rank for other in same_method]
        nearest_ranks = [rank for rank in ranks if nearest(rank, searched_ranks) == settings.rank]
        if settings.rank is None or not ranks or nearest_ranks:
            block_ranks = nearest_ranks if settings.rank and ranks else [settings.rank]
            with_sizes = len({(other.a, other.b) for other in same_method}) > 1
            known = {name: value for name, value in further if value is not None}
            if (settings, further) in with_tasks:
                known["task"] = list(by_task)
            blocks.append(_block(settings, block_ranks, with_sizes) | known | {"lr": by_task})
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
