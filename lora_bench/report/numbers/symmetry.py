"""Is a or b worth more? Settings (a, b) and (b, a) of one rank are of one size; their scores are compared by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_bench.report.figures.captions import column_title, task_title
from lora_bench.report.numbers.slots import Column, Piece, Slot, by_rank, entry
from lora_bench.report.numbers.statistics import Interval, holm, over_seeds, paired_over_seeds
from lora_bench.report.numbers.tables import Field, Table, interval_text, p_text, p_words, place, plain, signed
from lora_bench.report.numbers.versus import SAME, SURE, UNTESTED


@dataclass(frozen=True)
class Symmetry:
    """Score with the larger a less score with the larger b: by rank and over all, one difference a seed."""

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
        """`a`, `b`, `not told apart` or `not tested`."""
        if self.p is None:
            return UNTESTED
        if self.holm is None or self.holm >= SURE:
            return SAME
        return "a" if statistics.fmean(self.differences) > 0 else "b"


def symmetries(piece: Piece) -> tuple[Symmetry, ...]:
    """For each task and method with mirrored pairs: the differences and their test, Holm-corrected over all."""
    found = [
        made
        for column, slots in piece.columns.items()
        for label, ranks in by_rank(slots).items()
        if (made := _measure(column, label, ranks))
    ]
    corrected = holm([each.p for each in found])
    return tuple(Symmetry(**{**vars(each), "holm": p}) for each, p in zip(found, corrected, strict=True))


def symmetry_table(piece: Piece, found: Sequence[Symmetry]) -> list[Table]:
    """Rows tasks, columns ranks; nothing where no pair is mirrored."""
    if not found:
        return []
    ranks = sorted({rank for each in found for rank in each.by_rank})
    return [
        Table(
            name=f"symmetry {piece.title}",
            title=f"Is a or b worth more? {piece.title}",
            heads=("task", "method", *(f"r={rank}" for rank in ranks), "all ranks", "95%\ninterval", "Holm\np", "more"),
            labels=2,
            rows=tuple(_row(each, ranks) for each in found),
            notes=(
                "Score with the larger a less score with the larger b, at the same rank and the same number of trained "
                "values: mean ± std over seeds of the mean over mirrored pairs, ×100 (seeds that have all of them).",
            ),
            data=tuple(_datum(piece, each, rank) for each in found for rank in (*each.by_rank, None)),
        )
    ]


def sentences(found: Sequence[Symmetry]) -> list[str]:
    """The tests in words."""
    told = [_sentence(each) for each in found if each.verdict not in (SAME, UNTESTED)]
    rest = ", ".join(f"{each.label} on {task_title(each.column.task)}" for each in found if each.holm is not None)
    return told or ([f"Whether a or b is worth more is not told by these seeds: {rest}."] if rest else [])


def _sentence(each: Symmetry) -> str:
    mean = 100 * abs(statistics.fmean(each.differences))
    return (
        f"{task_title(each.column.task)}: with {each.label}, a larger {each.verdict} is worth {mean:.1f} more "
        f"than the other (95% interval of a less b {interval_text(each.interval)}; Holm's p {p_words(each.holm)})."
    )


def _measure(column: Column, label: str, ranks: Mapping[int, Sequence[Slot]]) -> Symmetry | None:
    mirrored = {rank: pairs for rank, slots in ranks.items() if (pairs := _mirrored(slots))}
    by_pair = {rank: [_by_seed(*pair) for pair in pairs] for rank, pairs in mirrored.items()}
    every = _shared([each for pairs in by_pair.values() for each in pairs])
    if not every:
        return None
    ranked = {rank: _shared(pairs) for rank, pairs in by_pair.items()}
    p = paired_over_seeds(every, [0.0] * len(every))
    count = sum(len(pairs) for pairs in mirrored.values())
    return Symmetry(column, label, ranked, count, every, over_seeds(every), p)


def _mirrored(slots: Sequence[Slot]) -> list[tuple[Slot, Slot]]:
    """(the slot with the larger a, the one with the larger b) of each mirrored pair that has scores."""
    at = {slot.pair: slot for slot in slots if slot.scores}
    return [
        (slot, at[b, a]) for (a, b), slot in at.items() if a is not None and b is not None and a > b and (b, a) in at
    ]


def _by_seed(first: Slot, second: Slot) -> dict[int, float]:
    return {seed: first.scores[seed] - second.scores[seed] for seed in first.scores.keys() & second.scores.keys()}


def _shared(pairs: Sequence[Mapping[int, float]]) -> tuple[float, ...]:
    """The mean over pairs, of each seed that has all of them."""
    seeds = set.intersection(*(set(pair) for pair in pairs)) if pairs else set()
    return tuple(statistics.fmean(pair[seed] for pair in pairs) for seed in sorted(seeds))


def _row(each: Symmetry, ranks: Sequence[int]) -> tuple[Field, ...]:
    shown = (each.by_rank.get(rank, ()) for rank in ranks)
    fields = (Field(_difference(values), number=False) for values in (*shown, each.differences))
    interval = Field(interval_text(each.interval), number=False)
    verdict = Field(each.verdict, each.verdict not in (SAME, UNTESTED), number=False)
    return plain(column_title(each.column)), plain(each.label), *fields, interval, Field(p_text(each.holm)), verdict


def _difference(values: Sequence[float]) -> str:
    if not values:
        return ""
    found = entry(values, len(values))
    spread = "" if found.std is None else f" ± {100 * found.std:.1f}"
    return f"{signed(found.mean)}{spread} ({found.n})"


def _datum(piece: Piece, each: Symmetry, rank: int | None) -> dict[str, object]:
    found = entry(each.differences if rank is None else each.by_rank[rank], 0)
    whole = {
        "low": each.interval.low if each.interval else None, "high": each.interval.high if each.interval else None,
        "p": each.p, "holm": each.holm, "verdict": each.verdict,
    }  # fmt: skip
    numbers = {"mean": found.mean, "std": found.std, "median": found.median, "n": found.n, "mirrored_pairs": each.pairs}
    told = whole if rank is None else dict.fromkeys(whole)
    return place(piece, each.column) | {"method": each.label, "rank": rank} | numbers | told
