"""Comparisons with LoRA, the symmetry of a and b, the ways to choose the epoch, the published numbers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
from scipy import stats

from lora_bench.records.schema import DataInfo, Record
from lora_bench.report.numbers import published, symmetry, versus
from lora_bench.report.numbers.entries import Column, Subset, comparable_subsets
from lora_bench.report.numbers.frame import cell_frame
from lora_bench.report.numbers.intervals import score_interval
from lora_bench.report.numbers.selection import selection_tables
from lora_bench.report.numbers.tables import ReportTable, signed_percent
from lora_bench.testing import make_epochs
from tests.report.report_factory import record

ROWS = 200


def subsets(records: Iterable[Record]) -> tuple[Subset, ...]:
    return comparable_subsets(cell_frame(records))


def subset(records: Iterable[Record]) -> Subset:
    return subsets(records)[0]


def texts(table: ReportTable, head: str) -> list[str]:
    column = table.heads.index(head)
    return [row[column].text for row in table.rows]


def cell(draw: random.Random, level: float, **settings: Any) -> Record:
    """A cell on 200 two-class examples whose label is 1 for the first half."""
    labels = [1.0] * (ROWS // 2) + [0.0] * (ROWS // 2)
    found = tuple(label if draw.random() < level else 1 - label for label in labels)
    score = sum(one == label for one, label in zip(found, labels, strict=True)) / ROWS
    return record(score, curve=make_epochs(score), predictions=found, **settings)


def two_methods(level: float, seeds: int = 5) -> list[Record]:
    draw = random.Random(0)
    return [
        *(cell(draw, level, seed=seed) for seed in range(seeds)),
        *(cell(draw, 0.7, seed=seed, method="lora", rank=8) for seed in range(seeds)),
    ]


def test_against_lora_by_seed_and_by_example() -> None:
    (found,) = versus.compare_with_lora(subset(two_methods(0.9)))
    one, other = (list(entry.scores.values()) for entry in (found.entry, found.reference))
    assert found.p == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert found.examples is not None
    assert (found.examples.rows, found.examples.bound) == (ROWS, False)
    assert found.examples.difference == pytest.approx(found.mean)
    assert found.examples.p is not None
    assert found.examples.p < 1e-6
    assert found.interval is not None
    assert found.interval.low <= found.mean <= found.interval.high
    assert found.verdict == "above"
    assert versus.sentences([found])[0].startswith("SST-2: mini r=4 a=8 b=8 is")
    (table,) = versus.comparison_tables(subset(two_methods(0.9)), [found])
    assert texts(table, "verdict") == ["above"]


def test_many_methods_that_do_not_differ_are_counted() -> None:
    draw = random.Random(0)
    same = [
        record(draw.uniform(0.8, 0.9), method=name, rank=8, seed=seed)
        for name in ("lora", "xs", "pissa", "olora", "rslora", "vera", "dora")
        for seed in range(4)
    ]
    *_, last = versus.sentences(versus.compare_with_lora(subset(same)))
    assert last == "Not distinguishable from LoRA with these seeds, which does not mean equal. SST-2: 6 of 6 methods."


def test_two_seeds_are_not_tested() -> None:
    (found,) = versus.compare_with_lora(subset(two_methods(0.9, seeds=2)))
    assert (found.p, found.interval, found.verdict) == (None, None, "not tested")
    assert "not tested. SST-2: mini." in versus.sentences([found])[0]


def test_equal_methods_do_not_differ() -> None:
    (found,) = versus.compare_with_lora(subset(two_methods(0.7)))
    assert found.verdict == "not distinguishable"


def test_only_shared_seeds_are_paired() -> None:
    records = [record(0.9, seed=seed) for seed in range(4)] + [
        record(0.8, seed=seed, method="lora", rank=8) for seed in (1, 2, 3, 7)
    ]
    (found,) = versus.compare_with_lora(subset(records))
    assert len(found.differences) == 3
    assert versus.compare_with_lora(subset([record(0.9), record(0.8, seed=1, method="lora", rank=8)])) == ()


def test_holm_is_over_all_comparisons_of_the_subset() -> None:
    other = [record(0.72 + 0.01 * seed, seed=seed, method="xs", rank=4) for seed in range(5)]
    found = versus.compare_with_lora(subset([*two_methods(0.9), *other]))
    assert len(found) == 2
    smallest = min(found, key=lambda each: each.p or 1)
    assert smallest.p is not None
    assert smallest.holm == pytest.approx(2 * smallest.p)


def test_other_rows_are_not_compared_by_example() -> None:
    records = two_methods(0.9)
    data = DataInfo(source="glue", train_rows=1, eval_rows=ROWS, fingerprint="train+other")
    changed = [each.model_copy(update={"data": data}) if each.cell.method == "lora" else each for each in records]
    (found,) = versus.compare_with_lora(subset(changed))
    assert found.examples is None
    assert found.p is not None


def test_without_lora_there_is_nothing_to_compare() -> None:
    assert versus.compare_with_lora(subset([record(0.9)])) == ()
    assert versus.comparison_tables(subset([record(0.9)]), ()) == []


def test_an_interval_stays_within_the_metric() -> None:
    draw = random.Random(1)
    (entry,) = subset([cell(draw, 0.999, seed=seed) for seed in range(3)]).columns[Column("sst2", "accuracy")]
    found = score_interval(Column("sst2", "accuracy"), entry)
    assert found is not None
    assert found.high <= 1.0


def test_examples_that_all_seeds_miss_widen_the_interval() -> None:
    column, missed = Column("sst2", "accuracy"), [cell(random.Random(0), 0.7, seed=seed) for seed in range(3)]
    scores = [(each.score or 0) + 0.001 * each.cell.seed for each in missed]
    curves = [{"score": score, "epochs": make_epochs(score)} for score in scores]
    records = [each.model_copy(update=update) for each, update in zip(missed, curves, strict=True)]
    bare = [each.model_copy(update={"predictions": ()}) for each in records]
    wide, narrow = (score_interval(column, subset(each).columns[column][0]) for each in (records, bare))
    assert wide is not None
    assert narrow is not None
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def mirrored(gain: float) -> list[Record]:
    draw = random.Random(0)
    return [
        record(0.8 + (gain if a > b else 0.0) + draw.gauss(0, 0.001), a=a, b=b, rank=rank, seed=seed)
        for rank in (4, 8)
        for a, b in ((8, 16), (16, 8), (8, 8), (8, 32))
        for seed in range(5)
    ]


@pytest.mark.parametrize(("gain", "verdict"), [(0.02, "a"), (-0.02, "b"), (0.0, "not distinguishable")])
def test_symmetry(gain: float, verdict: str) -> None:
    (found,) = symmetry.measure_symmetry(subset(mirrored(gain)))
    assert found.verdict == verdict
    assert found.pairs == 2
    by_hand = [
        sum(
            sign * each.score
            for each in mirrored(gain)
            for sign in ((1,) if (each.cell.a, each.cell.b) == (16, 8) else (-1,))
            if each.score is not None and each.cell.seed == seed and {each.cell.a, each.cell.b} == {8, 16}
        )
        / 2
        for seed in range(5)
    ]
    assert found.differences == pytest.approx(by_hand)
    assert found.p == pytest.approx(stats.ttest_1samp(by_hand, 0.0).pvalue)
    (table,) = symmetry.symmetry_tables(subset(mirrored(gain)), [found])
    assert texts(table, "more") == [verdict]


def test_without_mirrored_pairs_symmetry_says_nothing() -> None:
    assert symmetry.measure_symmetry(subset([record(0.5, a=8, b=16), record(0.6, a=8, b=8)])) == ()


def test_best_last_and_held_out_side_by_side() -> None:
    records = [
        record(
            0.9, seed=seed, select="held-out", curve=make_epochs(0.7, 0.9, 0.8 + seed / 100, held_out=(0.6, 0.5, 0.4))
        )
        for seed in range(3)
    ]
    (table,) = selection_tables(subset(records))
    assert texts(table, "best epoch") == ["90.0 ± 0.0; 90.0 (3)"]
    assert texts(table, "last epoch") == ["81.0 ± 1.0; 81.0 (3)"]
    assert texts(table, "held-out epoch") == ["70.0 ± 0.0; 70.0 (3)"]
    assert texts(table, "best − last") == ["+9.0"]
    assert texts(table, "best − held-out") == ["+20.0"]


def test_held_out_is_a_dash_where_it_was_not_recorded() -> None:
    (table,) = selection_tables(subset([record(0.9)]))
    assert texts(table, "held-out epoch") == ["—"]
    assert "not recorded" in table.notes[-1]
    assert selection_tables(subset([record(None, status="failed")])) == []


def test_signs() -> None:
    assert [signed_percent(value) for value in (0.01, -0.01, 0.0001, None)] == ["+1.0", "-1.0", "0.0", "—"]


# ---- the published numbers

AVERAGES = {
    ("FT", "roberta-base"): 86.4, ("BitFit", "roberta-base"): 85.2, ("AdapterD 0.3M", "roberta-base"): 84.4,
    ("AdapterD 0.9M", "roberta-base"): 85.4, ("LoRA r=8", "roberta-base"): 87.2, ("VeRA r=1024", "roberta-base"): 85.2,
    ("FT", "roberta-large"): 88.2, ("LoRA (restricted setup)", "roberta-large"): 87.8, ("VeRA", "roberta-large"): 87.8,
    ("LoRA-XS r=16", "roberta-large"): 87.9, ("VB-LoRA", "roberta-large"): 88.2, ("Uni-LoRA", "roberta-large"): 88.3,
}  # fmt: skip


@pytest.mark.parametrize(("row", "average"), AVERAGES.items(), ids=lambda value: str(value))
def test_rows_average_as_their_tables_print(row: tuple[str, str], average: float) -> None:
    values = [each.value for each in published.published_values() if (each.row, each.model) == row]
    assert sum(values) / len(values) == pytest.approx(average, abs=0.08)


def test_every_value_was_read_and_says_where() -> None:
    for each in published.published_values():
        assert each.tag == "READ"
        assert each.source
        assert each.table
        assert 50 < each.value < 100


def lora(score: float, seeds: int = 5, **other: Any) -> list[Record]:
    settings: dict[str, Any] = {
        "model": "FacebookAI/roberta-base",
        "method": "lora",
        "rank": 8,
        "targets": "qv",
        "task": "sst2",
    } | other
    draw = random.Random(2)
    return [record(score + draw.gauss(0, 0.002), seed=seed, **settings) for seed in range(seeds)]


def against(records: list[Record], task: str = "sst2", row: str = "LoRA r=8") -> published.PublishedComparison:
    found = published.compare_with_published(subsets(records))
    return next(each for each in found if (each.published.row, each.published.task) == (row, task))


@pytest.mark.parametrize(("score", "verdict"), [(0.951, "within"), (0.94, "outside")])
def test_within_and_outside(score: float, verdict: str) -> None:
    found = against(lora(score))
    assert found.verdict == verdict
    assert found.interval is not None
    assert (found.interval.low <= 0 <= found.interval.high) == (verdict == "within")
    assert found.difference == pytest.approx(score - 0.951, abs=0.002)
    assert "epochs 10 here, 60 there" in found.reason


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (lora(0.95, model="other/roberta-large"), "other model"),
        (lora(0.95, rank=4), "other rank (r=4)"),
        (lora(0.95, targets="attention"), "other targets (attention)"),
        (lora(0.95, select="last"), "best epoch there"),
        (lora(0.95, start="mnli"), "other start (mnli)"),
        (lora(0.95, split="test"), "other split (test)"),
        (lora(0.95, seeds=2), "fewer than 3 seeds here"),
        (lora(0.95, method="xs"), "not run here"),
        (lora(0.95, predictions=(1.0,) * 10), "not GLUE's rows"),
    ],
)
def test_what_is_not_comparable_says_why(records: list[Record], reason: str) -> None:
    found = against(records)
    assert found.verdict == "not comparable"
    assert reason in found.reason


def test_an_mnli_start_and_a_metric_variant_are_not_comparable() -> None:
    assert "MNLI start there" in against(lora(0.8, task="rte"), "rte").reason
    spearman = against(lora(0.9, task="stsb"), "stsb", "LoRA r=8, Spearman")
    assert "metric variant (Spearman)" in spearman.reason


def test_the_table_has_every_value() -> None:
    found = published.compare_with_published(subsets(lora(0.951)))
    table = published.published_table(found)
    assert len(table.rows) == len(table.data) == len(published.published_values())
    assert sum(text == "within" for text in texts(table, "verdict")) == 1
    assert published.sentences(found) == [
        f"Of {len(found)} published values: 1 within, 0 outside, {len(found) - 1} not comparable."
    ]
