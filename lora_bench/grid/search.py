"""A learning rate that is searched: what a config says of the search, and which rates are tried.

A searched rate is a mapping in place of a value: `lr: {search: [1e-4, 3e-4, 1e-3], seeds: [100, 101], extend: true,
share: {rank: 16}}`.

- `search`: the rates to try, two or more.
- `seeds`: the seeds of the cells that try them. The cells that use the chosen rate have other seeds.
- `extend`: whether a best rate at an edge adds the next rate there, at most twice.
- `share`: the only values of `rank`, `a`, `b` or `targets` that are searched; others take the nearest value's rate.

Without `share` there is a search for each setting of the grid and each task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lora_bench.cell import Cell

SEARCHABLE = ("lr", "head_lr")
SHARABLE = ("rank", "a", "b", "targets")
DEFAULT_SEEDS = (100, 101, 102)  # chosen: no preset trains with them
MAX_EXTENSIONS = 2  # rates that are added to a search, beside the config's own
DIGITS = 3  # significant digits of a rate that is added


@dataclass(frozen=True)
class Search:
    """The search for a rate, as a config describes it. It stands among the values of a setting in place of a number.

    Attributes:
        rates: The rates to try, in ascending order.
        seeds: The seeds of the cells that try them.
        extend: Whether a best rate at an edge adds the next rate there.
        share: For some settings, the only values that are searched.
    """

    rates: tuple[float, ...]
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    extend: bool = True
    share: tuple[tuple[str, tuple[int | str, ...]], ...] = ()

    def __str__(self) -> str:
        return f"search {', '.join(f'{rate:g}' for rate in self.rates)}"

    def searched_at(self, cell: Cell) -> dict[str, int | str]:
        """Return the values of shared settings at which the rate of a cell is searched."""
        values: dict[str, int | str] = {}
        for setting, searched in self.share:
            value = getattr(cell, setting)
            if isinstance(value, int):
                values[setting] = nearest(value, [size for size in searched if isinstance(size, int)]) or value
            elif value is not None:
                values[setting] = searched[0]
        return values


def nearest(size: int, searched: Iterable[int | None]) -> int | None:
    """Return the searched size that is nearest by ratio, the first of equally near ones; None if none was searched."""
    sizes = [other for other in searched if other is not None]
    return min(sizes, key=lambda other: abs(math.log(other / size)), default=None)


def is_at_edge(rates: tuple[float, ...], chosen: float) -> bool:
    """Return whether the chosen rate is the lowest or the highest of those tried: a rate beyond it might be better.

    Args:
        rates: The rates that were tried, in ascending order.
        chosen: One of them.
    """
    return chosen in (rates[0], rates[-1])


def next_rate(rates: tuple[float, ...], chosen: float) -> float | None:
    """Return the rate to add where the best one is at an edge: it continues the ratio of the two rates there.

    Args:
        rates: The rates that were tried, two or more in ascending order.
        chosen: The best of them.
    """
    if not is_at_edge(rates, chosen):
        return None
    neighbour = rates[1] if chosen == rates[0] else rates[-2]
    added = float(f"{chosen / neighbour * chosen:.{DIGITS}g}")
    return added if added > 0 and math.isfinite(added) and added not in rates else None
