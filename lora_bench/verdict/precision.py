"""How narrow an interval will be: from how far seeds have varied so far, or have varied elsewhere."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.report.numbers.looks import levels_of

# Standard deviations of one seed's score, pooled over the settings of results/minilm (1,276 degrees of freedom each).
MEASURED = {"cola": 0.0276, "sst2": 0.0072, "mrpc": 0.0154, "stsb": 0.0076, "rte": 0.0251, "wnli": 0.0711}
HERE, ELSEWHERE = "the seeds so far", "results/minilm, another encoder"
_UNKNOWN = MEASURED["rte"]  # of a task that was not measured: nearly the largest of the tasks that are learnt there
_FEWEST_DEGREES = 4  # of freedom (chosen): with fewer, a deviation from records is worth less than one from elsewhere


@dataclass(frozen=True)
class Deviations:
    """How far the scores of seeds vary on each task.

    Attributes:
        by_task: The standard deviation of one seed's score.
        origin: Where they are from, in words.
    """

    by_task: Mapping[str, float]
    origin: str

    def of_average(self, tasks: Sequence[str]) -> float:
        """Return the standard deviation of one seed's average over tasks, which vary independently of one another."""
        return math.sqrt(sum(self.by_task[task] ** 2 for task in tasks)) / len(tasks)

    def half_width(self, tasks: Sequence[str], looks: tuple[int, ...]) -> float:
        """Return half the width that the interval of a difference of averages is expected to have, over seeds.

        Args:
            tasks: The tasks of the average.
            looks: The seeds at each look, the one in question last.
        """
        from scipy import stats

        quantile = float(stats.t.isf(levels_of(looks).tail, 2 * (looks[-1] - 1)))
        return quantile * self.of_average(tasks) * math.sqrt(2 / looks[-1])


def deviations_of(records: Iterable[Record], tasks: Sequence[str]) -> Deviations:
    """Return the deviations on some tasks: those of finished cells where there are enough, else those from elsewhere.

    Cells that searched a rate do not count: they vary more at rates that are too high.

    Args:
        records: The records of the results folder.
        tasks: The tasks.
    """
    scores: defaultdict[tuple[Cell, str | None], list[float]] = defaultdict(list)
    for record in records:
        if record.cell.task in tasks and record.score is not None and not record.is_search:
            scores[record.settings].append(record.score)
    by_task = {}
    for task in tasks:
        seeds = [values for (cell, _), values in scores.items() if cell.task == task and len(values) > 1]
        degrees = sum(len(values) - 1 for values in seeds)
        if degrees >= _FEWEST_DEGREES:
            squares = sum(statistics.variance(values) * (len(values) - 1) for values in seeds)
            by_task[task] = math.sqrt(squares / degrees)
    if len(by_task) == len(tasks):
        return Deviations(by_task, HERE)
    unknown = [task for task in tasks if task not in MEASURED]
    guessed = f"; a guess for {', '.join(unknown)}" if unknown else ""
    return Deviations({task: MEASURED.get(task, _UNKNOWN) for task in tasks}, ELSEWHERE + guessed)
