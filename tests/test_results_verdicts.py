"""What the pages on the committed verdicts say beside their reports' own sentences is that of the records."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats

from lora_bench.report.numbers.frame import rows_of
from lora_bench.report.numbers.looks import levels_of
from lora_bench.verdict.precision import ELSEWHERE, MEASURED, Deviations
from tests.test_results import RESULTS, VERDICTS, loaded, report, report_lines

TASKS = ("cola", "mrpc", "stsb", "rte")
over_verdicts = pytest.mark.parametrize("name", VERDICTS)
Scores = dict[str, dict[tuple[str, int], float]]


def page(name: str) -> str:
    """A page's text on one line."""
    return " ".join((RESULTS / name / "README.md").read_text(encoding="utf-8").split())


def scores_of(name: str) -> Scores:
    """By method, the scores ×100 of each task and seed."""
    scores: Scores = {}
    for record in loaded(name).records:
        if not record.is_search:
            scores.setdefault(record.cell.method, {})[record.cell.task, record.cell.seed] = 100 * (record.score or 0)
    return scores


def averages(scores: dict[tuple[str, int], float], without: frozenset[int] = frozenset()) -> np.ndarray:
    """The average of each seed."""
    seeds = sorted({seed for _, seed in scores} - without)
    return np.array([np.mean([scores[task, seed] for task in TASKS]) for seed in seeds])


@over_verdicts
def test_cards_and_cells_are_those_named(name: str) -> None:
    records = loaded(name).records
    assert {record.environment["device"] for record in records} == {"NVIDIA H200"}
    assert {record.cell.precision for record in records} == {"bf16"}
    searches = sum(record.is_search for record in records)
    assert f"one NVIDIA H200, bf16, MPNet-base (`{records[0].cell.model.partition('@')[0]}`)" in page(name)
    assert f"{len(records)} cells, {searches} of them searches" in page(name)


@over_verdicts
def test_encoder_and_data_are_those_of_base(name: str) -> None:
    base = {(record.cell.model, record.cell.task, record.cell.data) for record in loaded("base").records}
    assert {(record.cell.model, record.cell.task, record.cell.data) for record in loaded(name).records} <= base


@over_verdicts
def test_the_interval_predicted_and_had_are_those_named(name: str) -> None:
    predicted = Deviations(MEASURED, ELSEWHERE)
    (declared,) = rows_of(report(name).sections[0].statistics.declared)
    text = page(name)
    assert f"±{100 * predicted.half_width(TASKS, (20,)):.2f}" in text
    assert f"±{100 * declared['seeds_half']:.2f}" in text


@over_verdicts
def test_the_rows_from_base_are_that_reports(name: str) -> None:
    text = (RESULTS / name / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("## What to make of it")[2].splitlines() if line.startswith("|")]
    assert len(rows) >= 3
    assert [row for row in rows if row not in report_lines("base")] == []


def test_one_seed_decides_the_size_of_veras_difference() -> None:
    (name,) = [name for name in VERDICTS if "vera" in name]
    scores, text = scores_of(name), page(name)
    cola = sorted(value for (task, _), value in scores["vera"].items() if task == "cola")
    assert cola[0] == 0
    assert f"the other nineteen have {cola[1]:.1f} to {cola[-1]:.1f}" in text
    lost = frozenset(seed for seed in range(20) if scores["vera"]["cola", seed] == 0)
    reference = averages(scores["lora"])
    sides = [averages(scores["vera"], without) for without in (lost, frozenset[int]())]
    differences = [side.mean() - reference.mean() for side in sides]
    assert f"from {differences[0]:.1f} to {differences[1]:.1f}" in text
    interval = stats.ttest_ind(sides[0], reference, equal_var=False).confidence_interval(1 - 2 * levels_of((20,)).tail)
    assert f"Without that seed it would be ±{(interval.high - interval.low) / 2:.2f}" in text
    predicted = Deviations(MEASURED, ELSEWHERE)
    seeds = next(count for count in range(5, 100) if predicted.half_width(TASKS, (count,)) <= 0.006)
    assert f"±0.6 takes {seeds} seeds" in text


def test_minis_seeds_near_chance_are_those_named() -> None:
    (name,) = [name for name in VERDICTS if "mini" in name]
    low = {
        method: sum(value < 55 for (task, _), value in scores.items() if task == "rte")
        for method, scores in scores_of(name).items()
    }
    assert low["lora"] == 0
    assert f"{low['mini']} of 20 end below 55, none of LoRA" in page(name)
    for task in ("mrpc", "rte"):
        for scores in scores_of(name).values():
            values = [value for (of, _), value in scores.items() if of == task]
            assert np.std(values, ddof=1) > 100 * MEASURED[task]


@over_verdicts
def test_the_verdict_page_quotes_the_time_that_the_folders_page_has(name: str) -> None:
    """No record knows how long a command took; the two pages say the same."""
    (seconds,) = re.findall(r"(\d+) s from the command to the page", page(name))
    guide = " ".join((RESULTS.parent / "docs" / "verdict.md").read_text(encoding="utf-8").split())
    (quoted,) = re.findall(rf"\[`{name}`\]\(\.\./results/{name}/README\.md\): (\d+) s", guide)
    assert quoted == seconds
    decided, collapsed = (
        re.findall(r"[-+]\d\.\d points \[.*?\]", sentence)[0] for sentence in report(name).sections[0].answer[:2]
    )
    assert decided in guide
    assert collapsed.replace(" points", "") in guide or "vera" not in name
