"""Is a or b worth more? Settings (a, b) and (b, a) of one rank have equally many trained values; this compares them.

The scores of the two settings are compared seed by seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lora_bench.report.numbers.entries import Column, Entry, Subset, group_by_rank, summarise
from lora_bench.report.numbers.statistics import (
    Interval,
    holm_correction,
    interval_data,
    paired_seed_test,
    seed_interval,
)
from lora_bench.report.numbers.tables import (
    Field,
    ReportTable,
    data_frame,
    difference_interval_text,
    p_relation,
    p_text,
    plain_field,
    signed_percent,
    subset_data,
)
from lora_bench.report.numbers.versus import NOT_DISTINGUISHED, NOT_TESTED, SIGNIFICANCE
from lora_bench.report.numbers.wording import column_title, task_title


@dataclass(frozen=True)
class Symmetry:
    """The score with the larger a less the score with the larger b, for one method on one task.

    Attributes:
        column: the task and metric.
        label: the method.
        by_rank: the differences of each rank, one per seed.
        pairs: the number of mirrored pairs over all ranks.
        differences: the differences averaged over all mirrored pairs, one per seed.
        interval: the 95% interval of their mean.
        p: the p-value of the paired t test over seeds.
        holm: `p` corrected over all methods and tasks of the subset.
    """

    column: Column
    label: str
    by_rank: Mapping[int, tuple[float, ...]]
    pairs: int
    differences: tuple[float, ...]
    interval: Interval | None
    p: float | None
    holm: float | None = None

    @property
    def verdict(self) -> str:
        """`a`, `b` or `not distinguishable`; `not tested` without a test."""
        if self.p is None:
            return NOT_TESTED
        if self.holm is None or self.holm >= SIGNIFICANCE:
            return NOT_DISTINGUISHED
        return "a" if statistics.fmean(self.differences) > 0 else "b"


def measure_symmetry(subset: Subset) -> tuple[Symmetry, ...]:
    """Compare a and b for each task and method with mirrored pairs, with Holm's correction over all of them."""
    candidates = (
        _measure(column, label, ranks)
        for column, entries in subset.columns.items()
        for label, ranks in group_by_rank(entries).items()
    )
    symmetries = [symmetry for symmetry in candidates if symmetry]
    corrected = holm_correction([symmetry.p for symmetry in symmetries])
    return tuple(replace(symmetry, holm=p) for symmetry, p in zip(symmetries, corrected, strict=True))


def symmetry_tables(subset: Subset, symmetries: Sequence[Symmetry]) -> list[ReportTable]:
    """Return a table with tasks down and ranks across; no table if no pair is mirrored."""
    if not symmetries:
        return []
    ranks = sorted({rank for symmetry in symmetries for rank in symmetry.by_rank})
    rank_heads = (f"r={rank}" for rank in ranks)
    table = ReportTable(
        name=f"symmetry {subset.title}",
        title=f"Is a or b worth more? {subset.title}",
        heads=("task", "method", *rank_heads, "all ranks", "95%\ninterval", "Holm\np", "more"),
        label_columns=2,
        rows=tuple(_row(symmetry, ranks) for symmetry in symmetries),
        notes=(
            "Score with the larger a less score with the larger b, at the same rank and the same number of trained "
            "values: mean ± std over seeds of the mean over mirrored pairs, ×100 (seeds that have all of them).",
        ),
        data=data_frame(_data(subset, symmetry, rank) for symmetry in symmetries for rank in (*symmetry.by_rank, None)),
    )
    return [table]


def sentences(symmetries: Sequence[Symmetry]) -> list[str]:
    """State the results in words; if none is significant, one sentence names what was tested."""
    undecided = (NOT_DISTINGUISHED, NOT_TESTED)
    decided = [_sentence(symmetry) for symmetry in symmetries if symmetry.verdict not in undecided]
    tested = ", ".join(
        f"{symmetry.label} on {task_title(symmetry.column.task)}"
        for symmetry in symmetries
        if symmetry.holm is not None
    )
    return decided or ([f"These seeds do not show whether a or b is worth more: {tested}."] if tested else [])


def _sentence(symmetry: Symmetry) -> str:
    mean = 100 * abs(statistics.fmean(symmetry.differences))
    return (
        f"{task_title(symmetry.column.task)}: with {symmetry.label}, a larger {symmetry.verdict} is worth {mean:.1f} "
        f"more than the other (95% interval of a less b {difference_interval_text(symmetry.interval)}; "
        f"Holm's p {p_relation(symmetry.holm)})."
    )


def _measure(column: Column, label: str, ranks: Mapping[int, Sequence[Entry]]) -> Symmetry | None:
    """Compare a and b for one method, before Holm's correction; None if no seed has all mirrored pairs."""
    mirrored = {rank: pairs for rank, entries in ranks.items() if (pairs := _mirrored_pairs(entries))}
    by_pair = {rank: [_differences_by_seed(*pair) for pair in pairs] for rank, pairs in mirrored.items()}
    differences = _mean_over_pairs([pair for pairs in by_pair.values() for pair in pairs])
    if not differences:
        return None
    by_rank = {rank: _mean_over_pairs(pairs) for rank, pairs in by_pair.items()}
    p = paired_seed_test(differences, [0.0] * len(differences))
    count = sum(len(pairs) for pairs in mirrored.values())
    return Symmetry(column, label, by_rank, count, differences, seed_interval(differences), p)


def _mirrored_pairs(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Return (entry with the larger a, entry with the larger b) for each mirrored pair that has scores."""
    by_pair = {entry.pair: entry for entry in entries if entry.scores}
    return [
        (entry, by_pair[b, a])
        for (a, b), entry in by_pair.items()
        if a is not None and b is not None and a > b and (b, a) in by_pair
    ]


def _differences_by_seed(first: Entry, second: Entry) -> dict[int, float]:
    return {seed: first.scores[seed] - second.scores[seed] for seed in first.scores.keys() & second.scores.keys()}


def _mean_over_pairs(pairs: Sequence[Mapping[int, float]]) -> tuple[float, ...]:
    """Average the differences over pairs, for each seed that has all pairs."""
    seeds = set.intersection(*(set(pair) for pair in pairs)) if pairs else set()
    return tuple(statistics.fmean(pair[seed] for pair in pairs) for seed in sorted(seeds))


def _row(symmetry: Symmetry, ranks: Sequence[int]) -> tuple[Field, ...]:
    differences = (*(symmetry.by_rank.get(rank, ()) for rank in ranks), symmetry.differences)
    decided = symmetry.verdict not in (NOT_DISTINGUISHED, NOT_TESTED)
    return (
        plain_field(column_title(symmetry.column)),
        plain_field(symmetry.label),
        *(Field(_difference_text(values), numeric=False) for values in differences),
        Field(difference_interval_text(symmetry.interval), numeric=False),
        Field(p_text(symmetry.holm)),
        Field(symmetry.verdict, decided, numeric=False),
    )


def _difference_text(values: Sequence[float]) -> str:
    """Format as `+0.4 ± 0.2 (5)`, ×100; empty without values."""
    if not values:
        return ""
    summary = summarise(values, len(values))
    spread = "" if summary.std is None else f" ± {100 * summary.std:.1f}"
    return f"{signed_percent(summary.mean)}{spread} ({summary.n})"


def _data(subset: Subset, symmetry: Symmetry, rank: int | None) -> dict[str, object]:
    """Return the unrounded numbers of one rank, or of all ranks together if `rank` is None."""
    summary = summarise(symmetry.differences if rank is None else symmetry.by_rank[rank], 0)
    numbers = {
        "mean": summary.mean,
        "std": summary.std,
        "median": summary.median,
        "n": summary.n,
        "mirrored_pairs": symmetry.pairs,
    }
    test: dict[str, object] = {
        **interval_data(symmetry.interval),
        "p": symmetry.p,
        "holm": symmetry.holm,
        "verdict": symmetry.verdict,
    }
    # The test is of all ranks together; the rows of single ranks leave it empty.
    test_fields = test if rank is None else dict.fromkeys(test)
    return subset_data(subset, symmetry.column) | {"method": symmetry.label, "rank": rank} | numbers | test_fields
