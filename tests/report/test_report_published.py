"""The published numbers, and the comparison of records with them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lora_bench.records.schema import Record
from lora_bench.report.numbers import published
from lora_bench.report.numbers.frame import rows_of
from tests.report.report_factory import all_statistics, record, texts

AVERAGES = {
    ("FT", "roberta-base"): 86.4, ("BitFit", "roberta-base"): 85.2, ("AdapterD 0.3M", "roberta-base"): 84.4,
    ("AdapterD 0.9M", "roberta-base"): 85.4, ("LoRA r=8", "roberta-base"): 87.2, ("VeRA r=1024", "roberta-base"): 85.2,
    ("FT", "roberta-large"): 88.2, ("LoRA (restricted setup)", "roberta-large"): 87.8, ("VeRA", "roberta-large"): 87.8,
    ("LoRA-XS r=16", "roberta-large"): 87.9, ("VB-LoRA", "roberta-large"): 88.2, ("Uni-LoRA", "roberta-large"): 88.3,
}  # fmt: skip


@pytest.mark.parametrize(("row", "average"), AVERAGES.items(), ids=lambda value: str(value))
def test_rows_average_as_their_tables_print(row: tuple[str, str], average: float) -> None:
    source = next(one.source for one in published.published_values() if (one.row, one.model) == row)
    values = [one.value for one in published.published_values() if (one.row, one.model, one.source) == (*row, source)]
    assert sum(values) / len(values) == pytest.approx(average, abs=0.08)


def test_every_value_was_read_and_says_where() -> None:
    values = published.published_values()
    assert len(values) > 100
    for each in values:
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


def against(records: list[Record], task: str = "sst2", row: str = "LoRA r=8") -> dict[str, Any]:
    """The comparison with a value of LoRA's own table."""
    rows = rows_of(published.compare_with_published(all_statistics(records)))
    return next(dict(one) for one in rows if (one["row"], one["task"]) == (row, task))


@pytest.mark.parametrize(("score", "verdict"), [(0.951, "within"), (0.94, "outside")])
def test_within_and_outside(score: float, verdict: str) -> None:
    comparison = against(lora(score))
    assert comparison["verdict"] == verdict
    assert (comparison["low"] <= 0 <= comparison["high"]) == (verdict == "within")
    assert comparison["difference"] == pytest.approx(score - 0.951, abs=0.002)
    assert "epochs 10 here, 60 there" in comparison["because"]


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (lora(0.95, model="other/roberta-large"), "other model"),
        (lora(0.95, rank=4), "other rank (r=4)"),
        (lora(0.95, targets="attention"), "other targets (attention)"),
        (lora(0.95, select="last"), "best epoch there"),
        (lora(0.95, start="mnli"), "other start (mnli)"),
        (lora(0.95, split="test"), "validation there"),
        (lora(0.95, seeds=2), "fewer than 3 seeds here"),
        (lora(0.95, method="xs"), "not run here"),
        (lora(0.95, predictions=(1.0,) * 10), "not GLUE's rows"),
    ],
)
def test_what_is_not_comparable_says_why(records: list[Record], reason: str) -> None:
    comparison = against(records)
    assert comparison["verdict"] == "not comparable"
    assert reason in comparison["because"]


def test_an_mnli_start_and_a_metric_variant_are_not_comparable() -> None:
    assert "MNLI start there" in against(lora(0.8, task="rte"), "rte")["because"]
    spearman = against(lora(0.9, task="stsb"), "stsb", "LoRA r=8, Spearman")
    assert "metric variant (Spearman)" in spearman["because"]


def test_each_task_is_compared_by_its_own_start() -> None:
    """LoRA's RTE starts from MNLI and its SST-2 does not; here too."""
    records = [*lora(0.951), *lora(0.866, task="rte", start="mnli")]
    assert against(records)["verdict"] == "within"
    assert against(records, "rte")["verdict"] == "within"


def test_the_tables_have_every_value_with_its_protocol() -> None:
    computed = all_statistics(lora(0.951))
    averages, table = published.published_tables(computed)
    assert len(table.rows) == len(table.data) == len(published.published_values())
    assert texts(table, "verdict").count("within") == 1
    rows = {(row["row"], row["source"]): row for row in rows_of(averages.data)}
    assert rows["LoRA r=8", "LoRA, arXiv 2106.09685"]["average"] == pytest.approx(0.866, abs=5e-4)
    assert "start from MNLI" in rows["LoRA r=8", "LoRA, arXiv 2106.09685"]["protocol"]
    assert rows["LoRA", "RED"]["average"] == pytest.approx(0.834, abs=5e-4)
    assert rows["LoRA", "RED"]["protocol"].startswith("held-out")
    assert rows["LoRA r=8", "C3A"]["average"] == pytest.approx(0.8335, abs=5e-4)


def test_the_sentences_say_what_loras_number_is() -> None:
    comparisons = published.compare_with_published(all_statistics(lora(0.951)))
    counts, lora_sentence = published.sentences(comparisons)
    total = len(published.published_values())
    assert counts == f"Of {total} published values: 1 within, 0 outside, {total - 1} not comparable."
    assert lora_sentence.startswith("LoRA's 86.6")
    assert "83.4 (RED) and 83.4 (C3A)" in lora_sentence
