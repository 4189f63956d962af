"""Settings of two methods that train about as many values: for each size a pair of rank, a and b.

What is counted is the adapter's values, as in records: the head is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.errors import BenchError
from lora_bench.forecast.demand import adapter_values
from lora_bench.forecast.geometry import TARGET_SETS, Geometry
from lora_bench.methods.recipe import Recipe
from lora_bench.report.numbers.verdict import MATCHED

APART = 4.0  # the factor between two sizes; chosen: sizes that are nearer can hardly be distinguished
_NEAREST = 2.0  # sizes that are nearer than this factor count as one
_EXACT = 1.02  # up to this factor a better match is not worth an odd setting
_STEPS = (-3, -2, -1, 0, 1, 2, 3)  # powers of two by which a and b may differ from the method's defaults
# What a setting costs in the choice, in units of the logarithm of the distance to the size asked for; all chosen. A
# match counts most, then usual settings: a rank that is a power of two, and the method's own a and b.
_MISMATCH, _ODD_RANK, _PER_STEP = 10.0, 0.05, 0.1


@dataclass(frozen=True)
class Setting:
    """One method at one size.

    Attributes:
        method: The method's name.
        sizes: Rank, a and b, those of them that the method has.
        values: How many values it trains, without the head.
        cost: How unusual the sizes are.
    """

    method: str
    sizes: tuple[tuple[str, int], ...]
    values: int
    cost: float = 0.0

    def __str__(self) -> str:
        short = {"rank": "r"}
        return " ".join([self.method, *(f"{short.get(name, name)}={size}" for name, size in self.sizes)])


@dataclass(frozen=True)
class Pair:
    """Both methods at one size."""

    subject: Setting
    reference: Setting

    @property
    def ratio(self) -> float:
        """How many times as many values the larger of the two trains."""
        counts = self.subject.values, self.reference.values
        return max(counts) / min(counts)

    @property
    def is_matched(self) -> bool:
        """Whether both train about as many values."""
        return self.ratio <= MATCHED

    @property
    def middle(self) -> float:
        """The logarithm of the size that lies between the two."""
        return (math.log(self.subject.values) + math.log(self.reference.values)) / 2

    def __str__(self) -> str:
        first, second = self.subject.values, self.reference.values
        values = f"{first:,} trained values each" if first == second else f"{first:,} and {second:,} trained values"
        matched = "" if self.is_matched else f", not matched: a factor of {_factor_text(self.ratio)}"
        return f"{self.subject} against {self.reference}: {values}{matched}"


def _factor_text(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio < 10 else f"{ratio:,.0f}"  # 1.14 is more than 10%, which 1.1 would not show


def choose_sizes(subject: str, reference: str, targets: str, geometry: Geometry, count: int) -> list[Pair]:
    """Return settings of two methods at up to `count` sizes, the smallest first.

    The first size is that of the subject's defaults, or the nearest to it that both methods have; the others are a
    factor of 4 apart, downwards first. At each size the pair that matches best is taken.

    Args:
        subject: The method that the question is about.
        reference: The method that it is compared with.
        targets: What both adapt.
        geometry: The encoder's sizes.
        count: How many sizes are wanted. There are fewer where the methods have not as many in common.

    Raises:
        BenchError: Exit code 2 if one of them trains no adapter, or cannot be applied to these targets; or if these are
            names of modules, whose sizes are not known without the model.
    """
    subjects, references = (settings_of(name, targets, geometry) for name in (subject, reference))
    pairs = [Pair(one, other) for one, other in itertools.product(subjects, references)]
    default = math.log(min(subjects, key=lambda setting: setting.cost).values)
    low, high = _common_range(subjects, references)
    start = min(max(default, low), high)
    chosen: list[Pair] = []
    for steps in sorted(range(-count, count + 1), key=lambda step: (abs(step), step)):
        size = start + steps * math.log(APART)
        if len(chosen) == count or (steps and not low <= size <= high):
            continue
        pair = min(pairs, key=lambda pair: _unfitness(pair, size))
        is_new = all(abs(pair.middle - other.middle) >= math.log(_NEAREST) for other in chosen)
        if not chosen or (is_new and pair.is_matched):
            chosen.append(pair)
    return sorted(chosen, key=lambda pair: pair.middle)


def settings_of(method: str, targets: str, geometry: Geometry) -> list[Setting]:
    """Return the settings that a method can have, within its ranges.

    The rank goes up to the smaller side of the smallest weight, a and b from an eighth to eight times their defaults.

    Raises:
        BenchError: Exit code 2 if the method trains no adapter, or has no setting that fits these weights.
    """
    recipe = methods.get(method)
    if not recipe.adapts:
        raise BenchError(f"'{method}' trains no adapter: there is no size to match.", "Compare two adapters.")
    if targets not in TARGET_SETS:  # the geometry does not know the modules' names
        what = f"How many values are trained on --targets '{targets}' is not known beforehand."
        raise BenchError(what, f"Give one of {', '.join(TARGET_SETS)}.")
    fitting: list[Setting] = []
    refusal: BenchError | None = None
    for sizes, cost in _grid(recipe, geometry):
        try:
            values = adapter_values(_cell(recipe, targets, sizes), geometry)
        except BenchError as error:  # a size that this method does not allow here
            refusal = error
            continue
        if values > 0:
            fitting.append(Setting(method, tuple(sizes.items()), values, cost))
    if not fitting:
        raise refusal or BenchError(f"'{method}' trains nothing on {targets}.", "Give other --targets.")
    return fitting


def _grid(recipe: Recipe, geometry: Geometry) -> Iterator[tuple[dict[str, int], float]]:
    """Yield the sizes of a method with their costs, its defaults among them at cost 0."""
    defaults = {name: int(recipe.defaults[name]) for name in ("rank", "a", "b") if name in recipe.parameters}
    axes = [_ranks(size, geometry) if name == "rank" else _steps(size) for name, size in defaults.items()]
    for values in itertools.product(*axes):
        yield {name: size for name, (size, _) in zip(defaults, values, strict=True)}, sum(cost for _, cost in values)


def _ranks(default: int, geometry: Geometry) -> list[tuple[int, float]]:
    """Return the ranks to try: powers of two, what lies between two of them, and the largest, with their costs."""
    largest = min(geometry.hidden, geometry.inner)
    powers = [2**power for power in range(largest.bit_length())]
    between = [3 * power // 2 for power in powers[1:]] + [5 * power // 4 for power in powers[2:]]
    between += [7 * power // 4 for power in powers[2:]]
    ranks = {rank for rank in (*powers, *between, largest, default) if rank <= largest or rank == default}
    usual = {*powers, default}
    # A power of two costs next to nothing, so that the defaults alone cost nothing: sizes differ by the rank first.
    return [(rank, 0.0 if rank == default else 1e-6 if rank in usual else _ODD_RANK) for rank in sorted(ranks)]


def _steps(default: int) -> list[tuple[int, float]]:
    sizes = {round(default * 2.0**step): abs(step) * _PER_STEP for step in reversed(_STEPS)}
    return [(size, cost) for size, cost in sizes.items() if size >= 1]


def _cell(recipe: Recipe, targets: str, sizes: Mapping[str, int]) -> Cell:
    """Return a cell of the method that stands for all tasks and seeds."""
    values = {**recipe.defaults, **sizes, "targets": targets, "lr": recipe.default_lr}
    return Cell.model_validate({"model": "model", "data": "data", "task": "task", "method": recipe.name, **values})


def _common_range(subjects: Sequence[Setting], references: Sequence[Setting]) -> tuple[float, float]:
    """Return the logarithms of the least and the largest size that both have; or the middle of a gap."""
    ranges = [[math.log(setting.values) for setting in settings] for settings in (subjects, references)]
    low, high = max(map(min, ranges)), min(map(max, ranges))
    return (low, high) if low <= high else ((low + high) / 2, (low + high) / 2)


def _unfitness(pair: Pair, size: float) -> float:
    """Return how badly a pair serves a size: matching numbers count most, then the size, then usual settings."""
    excess = max(0.0, math.log(pair.ratio) - math.log(_EXACT))
    return _MISMATCH * excess + abs(pair.middle - size) + pair.subject.cost + pair.reference.cost
