"""What a verdict costs before it runs, and how many seeds and tasks a time is enough for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_bench.errors import BenchError
from lora_bench.grid.cells import Sources, expand
from lora_bench.grid.config import Config
from lora_bench.run import plan as plans
from lora_bench.run.plan import Plan
from lora_bench.run.totals import totals
from lora_bench.text import counted

# Seconds that a verdict takes besides its training (chosen): for the contracts of a user's method, and for the report.
# On the bundled sample these took 14 and 8 seconds of processor time.
EXTRA_SECONDS = 30.0
FEWEST, MOST = 5, 400  # seeds that --minutes may choose (chosen); if fewer fit, a task is left out


@dataclass(frozen=True)
class Planner:
    """Plans configs of a verdict for one device.

    Attributes:
        results: The results folder.
        sources: Looks up models and data; the same objects for all configs.
        data: The data folder, if there is one.
        device: The device's name, as records have it.
        gpus: How many of them a run on Ray uses; None for one process with one of them.
        pack_size: The largest number of cells in a pack; None for as many as fill the device.
        retry: The states of recorded cells that are to be trained again.
        measured: The file with the device's own coefficients.
    """

    results: Path
    sources: Sources
    data: Path | None
    device: str
    gpus: int | None
    pack_size: int | None
    retry: tuple[str, ...]
    measured: Path

    def plan(self, config: Config) -> Plan:
        """Return the plan of a config."""
        grid = expand(config, {}, self.sources, self.data)
        return plans.make(grid, self.results, self.pack_size, self.retry, self.device, self.measured)

    def seconds(self, plan: Plan) -> float | None:
        """Return how long a plan takes until its report is there; None if that cannot be predicted."""
        total = totals(plan)
        if not total.packs:
            return EXTRA_SECONDS
        training = None if total.unknown else total.simulated(self.gpus)
        return None if training is None else training.seconds + EXTRA_SECONDS


def fit(
    minutes: float, tasks: Sequence[str], planner: Planner, config_of: Callable[[Sequence[str], int], Config]
) -> tuple[tuple[str, ...], int]:
    """Return the tasks and the number of seeds with the narrowest interval within a time.

    The more seeds, the narrower it is, so the time is filled with seeds. Where it is not enough for a few seeds of all
    tasks, the task that takes longest is left out, and the next one.

    Args:
        minutes: The time.
        tasks: The tasks asked for.
        planner: Predicts how long a config takes.
        config_of: Returns the config for some tasks and a number of seeds.

    Raises:
        BenchError: Exit code 2 if the time cannot be predicted, or is not enough for one task.
    """

    def seconds(chosen: Sequence[str], seeds: int) -> float:
        predicted = planner.seconds(planner.plan(config_of(chosen, seeds)))
        if predicted is None:
            raise BenchError(
                f"How long a cell takes on {planner.device} with this model and these data is not known.",
                "Measure it once (lora-bench bench --calibrate, or --calibrate --quick), or give --seeds instead.",
            )
        return predicted

    chosen = tuple(tasks)
    while (least := seconds(chosen, FEWEST)) > 60 * minutes:
        if len(chosen) == 1:
            needed = math.ceil(least / 6) / 10
            what = (
                f"{minutes:g} minutes are not enough: {counted(FEWEST, 'seed')} of {chosen[0]} alone take {needed:g}."
            )
            raise BenchError(what, f"Give --minutes {needed:g} or more, or fewer --sizes if there are several.")
        costs = {task: seconds((task,), FEWEST) for task in chosen}
        longest = max(chosen, key=lambda task: costs[task])
        chosen = tuple(task for task in chosen if task != longest)
    low, high = FEWEST, MOST + 1  # `low` seeds fit, `high` seeds do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(chosen, middle) <= 60 * minutes else (low, middle)
    return chosen, low
