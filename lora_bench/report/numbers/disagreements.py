"""Pairs of settings on which two families of comparisons say different things, and sentences that say so.

Each family is corrected for its own number of comparisons, so that a pair can be worse among a few and not
distinguishable among many. Both are right, and the report says so where both stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lora_bench.report.numbers.comparisons import (
    ABOVE,
    BELOW,
    DECLARED,
    DEFAULT,
    EQUAL,
    NOT_TESTED,
    UNFINISHED,
    ScopeStatistics,
)
from lora_bench.report.numbers.entries import Column
from lora_bench.report.numbers.statistics import MIN_SEEDS
from lora_bench.text import counted

if TYPE_CHECKING:
    from pandas import DataFrame

_MAX_NAMED = 4
_WHY = "Each family of comparisons is corrected for its own number of them."


class _Verdict(NamedTuple):
    """What one family says of a pair of entries, given by their indices; `kind` is without the margin."""

    entry: int
    reference: int
    kind: str
    family: str
    comparisons: int


def family_notes(statistics: ScopeStatistics, family: DataFrame) -> list[str]:
    """Say which pairs of a family have another verdict in another family.

    Args:
        statistics: The numbers.
        family: Comparisons of one column.
    """
    column = Column(family["task"].iloc[0], family["metric"].iloc[0])
    elsewhere = [one for one in _verdicts(statistics, column) if one.family != family["family"].iloc[0]]
    texts = [
        f"{_name(statistics, one.entry)} against {_name(statistics, one.reference)} is {one.kind} here, and "
        f"{other.kind} among the {_family_text(statistics, other)}"
        for one in _tested(family)
        for other in elsewhere
        if (one.entry, one.reference) == (other.entry, other.reference) and one.kind != other.kind
    ]
    return _sentence(texts)


def ranking_notes(statistics: ScopeStatistics, column: Column, ranked: DataFrame) -> list[str]:
    """Say which entries may be the best of those that are ranked, and are worse than one of them in a family.

    Args:
        statistics: The numbers.
        column: The column of the entries.
        ranked: The entries that are ranked among each other, with the column `best`.
    """
    best = {entry for entry, may_be in zip(ranked.index.tolist(), ranked["best"].tolist(), strict=True) if may_be}
    members = set(ranked.index.tolist())
    others = int((ranked["n"] >= MIN_SEEDS).sum()) - 1
    texts = [
        f"{_name(statistics, one.entry)} may be the best by its {counted(others, 'comparison')} here, and is worse "
        f"than {_name(statistics, one.reference)} among the {_family_text(statistics, one)}"
        for one in _verdicts(statistics, column)
        if one.kind == BELOW and one.entry in best and one.reference in members
    ]
    return _sentence(texts)


def _verdicts(statistics: ScopeStatistics, column: Column) -> list[_Verdict]:
    """Return what all families that the report shows say of a column, of each pair in both directions."""
    shown = [statistics.declared, statistics.default]
    if not statistics.scope.compare.looks:
        shown.append(statistics.equal)
    one_way = [verdict for family in shown for verdict in _tested(family[family["task"] == column.task])]
    opposite = {ABOVE: BELOW, BELOW: ABOVE}
    return [
        *one_way,
        *(
            one._replace(entry=one.reference, reference=one.entry, kind=opposite.get(one.kind, one.kind))
            for one in one_way
        ),
    ]


def _tested(family: DataFrame) -> Iterator[_Verdict]:
    """Yield the verdicts of the comparisons of one family and column that were tested."""
    count = int(family["holm"].notna().sum())
    names = ("entry", "reference", "verdict", "family")
    for entry, reference, verdict, name in zip(*(family[column].tolist() for column in names), strict=True):
        if verdict not in (NOT_TESTED, UNFINISHED):
            yield _Verdict(entry, reference, verdict.partition(",")[0], name, count)


def _family_text(statistics: ScopeStatistics, verdict: _Verdict) -> str:
    """Name a family with its number of comparisons, after `the`."""
    comparisons = counted(verdict.comparisons, "comparison")
    return {
        DECLARED: counted(verdict.comparisons, "declared comparison"),
        EQUAL: f"{comparisons} at equal size",
        DEFAULT: f"{comparisons} of each method with {statistics.scope.compare.reference}",
    }[verdict.family]


def _name(statistics: ScopeStatistics, entry: int) -> str:
    size, targets = statistics.scope.entries.loc[entry, ["size", "targets"]]
    return f"{size} on {targets}" if isinstance(targets, str) else str(size)


def _sentence(texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    unique = list(dict.fromkeys(texts))
    more = [f"and {len(unique) - _MAX_NAMED} more such pairs"] if len(unique) > _MAX_NAMED else []
    return [f"{'; '.join([*unique[:_MAX_NAMED], *more])}. {_WHY}"]
