"""What changed between two results folders whose cells are matched, with intervals.

Scores of the same cell in both folders are paired, and the differences of a setting's seeds are one sample. Settings
that have other seeds in each folder are compared as two samples. Each setting has its own variance, as in the report.
All differences are the folder's score less that of the one it is compared against. Intervals are over
seeds alone: the rows that were evaluated are taken as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lora_bench.cell import Cell
from lora_bench.records.schema import Record
from lora_bench.report.numbers.comparisons import verdicts
from lora_bench.report.numbers.entries import size_text
from lora_bench.report.numbers.frame import ARM, SETTINGS, final_score
from lora_bench.report.numbers.matching import Key, Match, Pair, by_key, cell_order
from lora_bench.report.numbers.statistics import MIN_SEEDS, Contrast, Means, holm_correction, means_of

if TYPE_CHECKING:
    from pandas import DataFrame

PAIRED, SEPARATE = "by seed", "other seeds"


@dataclass(frozen=True)
class Sample:
    """The scores of a setting in both folders; if `paired`, those of the same seeds in the same order."""

    cell: Cell
    new: tuple[float, ...]
    old: tuple[float, ...]
    paired: bool


@dataclass(frozen=True)
class TaskChanges:
    """The differences on one task.

    Attributes:
        task: The task.
        metric: Its main metric.
        settings: A row per setting with scores in both folders, the largest difference first; see `all_changes`.
        mean: The mean difference over the settings whose seeds are paired, or over all others if there are none; its
            interval is NaN where a setting has fewer than two seeds. None without settings.
        pairs: The cells that are in both.
    """

    task: str
    metric: str
    settings: DataFrame
    mean: Contrast | None
    pairs: tuple[Pair, ...]

    @property
    def same(self) -> int:
        """How many of the pairs have the same numbers to the last bit."""
        return sum(pair.is_same for pair in self.pairs)

    @property
    def largest(self) -> float | None:
        """The largest difference between the scores of a pair, without its sign."""
        return max((abs(pair.difference) for pair in self.pairs if pair.difference is not None), default=None)


def all_changes(matched: Match, margin: float) -> tuple[TaskChanges, ...]:
    """Return the differences on each task, with its main metric, that both folders have.

    The columns of the settings are what identifies them (`label`, `size`, `varying` and the fields of a cell),
    `pairing`, `seeds` (pairs, or scores of both folders as text), `new` and `old` (the means), `difference`, `low`,
    `high`, `p`, `holm`, `holm_equivalent` (corrected over the settings of the task) and `verdict`.

    Args:
        matched: The cells.
        margin: A difference that is certainly smaller counts as equivalent.
    """
    new, old = matched.records
    others = {(record.cell.task, record.metric) for record in old}
    tasks = dict.fromkeys((record.cell.task, record.metric) for record in sorted(new, key=cell_order))
    return tuple(_task_changes(matched, *task, margin) for task in tasks if task in others)


def _task_changes(matched: Match, task: str, metric: str, margin: float) -> TaskChanges:
    import pandas as pd

    pairs = tuple(pair for pair in matched.pairs if (pair.new.cell.task, pair.new.metric) == (task, metric))
    samples = _samples(matched, task, metric)
    groups = [[sample for sample in samples if sample.paired], [sample for sample in samples if not sample.paired]]
    compared = [_compare(group, margin) for group in groups if group]
    if not compared:
        return TaskChanges(task, metric, pd.DataFrame(), None, pairs)
    rows = pd.concat([table for table, _ in compared], ignore_index=True)
    cells = [sample.cell for group in groups for sample in group]
    rows = rows.assign(
        task=task,
        metric=metric,
        **_identity(cells),
        holm=holm_correction(rows["p"].to_numpy(dtype=float)),
        holm_equivalent=holm_correction(rows["p_equivalent"].to_numpy(dtype=float)),
    )
    rows = rows.assign(verdict=verdicts(rows)).sort_values("difference", key=abs, ascending=False, kind="stable")
    return TaskChanges(task, metric, rows.reset_index(drop=True), compared[0][1], pairs)


def _samples(matched: Match, task: str, metric: str) -> list[Sample]:
    """Return the settings that have scores in both folders."""
    sides: list[dict[Key, dict[int, Record]]] = []
    for records in matched.records:
        by_setting: dict[Key, dict[int, Record]] = {}
        for (*column, seed, key), record in by_key(records, matched.fields).items():
            if column == [task, metric] and final_score(record) is not None:
                by_setting.setdefault(key, {})[seed] = record
        sides.append(by_setting)
    new, old = sides
    samples = []
    for key, records_by_seed in new.items():
        if key not in old:
            continue
        both = sorted(records_by_seed.keys() & old[key].keys())
        seeds = (both, both) if both else (sorted(records_by_seed), sorted(old[key]))
        scores = [
            tuple(score for seed in side_seeds if (score := final_score(side[key][seed])) is not None)
            for side, side_seeds in zip(sides, seeds, strict=True)
        ]
        first = min(records_by_seed.values(), key=cell_order)
        samples.append(Sample(first.cell, scores[0], scores[1], bool(both)))
    return samples


def _compare(samples: Sequence[Sample], margin: float) -> tuple[DataFrame, Contrast]:
    """Compare samples that are all paired, or all not; a row per sample, and the mean difference over all."""
    import numpy as np

    count, first = len(samples), np.arange(len(samples))
    if samples[0].paired:
        differences = [[new - old for new, old in zip(sample.new, sample.old, strict=True)] for sample in samples]
        means = means_of(_summaries(differences))
        table = _with_zero(means).compare(first, np.full(count, count), margin)
        mean = means.contrast(first, np.full(count, 1 / count))
    else:
        means = means_of(_summaries([sample.new for sample in samples] + [sample.old for sample in samples]))
        table = means.compare(first, first + count, margin)
        mean = means.contrast(np.arange(2 * count), np.repeat([1 / count, -1 / count], count))
    table = table.assign(
        pairing=PAIRED if samples[0].paired else SEPARATE,
        seeds=[
            str(len(sample.new)) if sample.paired else f"{len(sample.new)}, {len(sample.old)}" for sample in samples
        ],
        new=[fmean(sample.new) for sample in samples],
        old=[fmean(sample.old) for sample in samples],
    )
    return table, mean


def _summaries(samples: Sequence[Sequence[float]]) -> DataFrame:
    """Return what `means_of` needs. Only seeds with a score are here: cells that lost theirs have a table."""
    import pandas as pd

    means = [fmean(values) for values in samples]
    squares = [sum((value - mean) ** 2 for value in values) for values, mean in zip(samples, means, strict=True)]
    return pd.DataFrame({"n": [len(values) for values in samples], "mean": means, "trimmed": means, "squares": squares})


def _with_zero(means: Means) -> Means:
    """Return the means of differences with one entry more: zero, known exactly, which they are compared with."""
    import numpy as np

    return Means(
        mean=np.append(means.mean, 0.0),
        shift=np.append(means.shift, 0.0),
        n=np.append(means.n, float(MIN_SEEDS)),  # so that it does not prevent a test
        variance=np.append(means.variance, 0.0),
    )


def _identity(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the columns that identify settings, by name."""
    labels = [cell.method if cell.init in (None, "default") else f"{cell.method} ({cell.init} start)" for cell in cells]
    rows = [
        {"label": label, "rank": cell.rank, "a": cell.a, "b": cell.b} for label, cell in zip(labels, cells, strict=True)
    ]
    columns: dict[str, Any] = {name: [getattr(cell, name) for cell in cells] for name in ARM}
    return {"label": [*labels], "size": [size_text(row) for row in rows], "varying": _varying(cells), **columns}


def _varying(cells: Sequence[Cell]) -> list[object]:
    """Say of each setting in what it differs from the others of its method and size, such as `lr=0.002`."""
    names = [name for name in SETTINGS if name in Cell.model_fields]
    arms: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        arms.setdefault(tuple(getattr(cell, name) for name in ARM), []).append(cell)
    texts: list[object] = []
    for cell in cells:
        others = arms[tuple(getattr(cell, name) for name in ARM)]
        differing = [name for name in names if len({getattr(other, name) for other in others}) > 1]
        texts.append(", ".join(f"{name}={getattr(cell, name)}" for name in differing))
    return texts
