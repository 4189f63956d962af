"""Cells that give one answer to all rows are counted below tables of comparisons, and in a verdict."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from lora_bench import report as reports
from lora_bench.compare import Comparisons
from lora_bench.grid.config import keep_comparisons
from lora_bench.records.schema import Record
from lora_bench.report.numbers.answer import answer
from lora_bench.report.numbers.comparison_tables import comparison_tables
from lora_bench.report.numbers.comparisons import ScopeStatistics, scope_statistics
from lora_bench.report.numbers.entries import comparable_scopes
from lora_bench.report.numbers.frame import cell_frame, gives_one_answer
from lora_bench.report.numbers.looks import FIRST_SHARE, TAIL
from lora_bench.report.numbers.score_tables import entries_table
from lora_bench.report.numbers.verdict import verdict_sentences, verdict_tables
from tests.report.report_factory import Fill, record, shown

TASKS = {"cola": (0.5, "matthews", (0.0, 1.0) * 4), "stsb": (0.85, "pearson", (1.5, 2.5, 4.0, 0.5))}
PAIR = {
    "arm": {"method": "vera", "rank": 64, "targets": "qv"},
    "against": {"method": "lora", "rank": 1, "targets": "qv"},
}
DECLARED = {"subject": "vera", "reference": "lora", "pairs": [PAIR], "over": "seeds", "looks": [10]}
CellKey = tuple[str, str, int]  # task, method, seed
GIVE = "give one answer to all rows: they have learnt nothing."


def cells(collapsed: tuple[CellKey, ...] = (), unknown: tuple[CellKey, ...] = (), seeds: int = 10) -> Iterator[Record]:
    """VeRA and LoRA on CoLA and STS-B; some cells have collapsed, some have no predictions."""
    draw = random.Random(3)
    for task, (level, metric, predictions) in TASKS.items():
        for method, rank in (("vera", 64), ("lora", 1)):
            for seed in range(seeds):
                has_collapsed = (task, method, seed) in collapsed
                answers = (predictions[0],) * len(predictions) if has_collapsed else predictions
                yield record(
                    0.0 if has_collapsed else level + draw.gauss(0, 0.01),
                    task=task,
                    method=method,
                    rank=rank,
                    targets="qv",
                    seed=seed,
                    predictions=() if (task, method, seed) in unknown else answers,
                ).model_copy(update={"metric": metric})


def computed(records: Iterator[Record], **compare: Any) -> ScopeStatistics:
    (scope,) = comparable_scopes(cell_frame(records), Comparisons.model_validate(DECLARED | compare))
    return scope_statistics(scope)


def notes(statistics: ScopeStatistics) -> list[str]:
    """The notes on collapsed cells below each table, one after another."""
    tables = [*verdict_tables(statistics), *comparison_tables(statistics)]
    return [note for table in tables for note in table.notes if "one answer" in note]


@pytest.mark.parametrize(
    ("predictions", "status", "expected"),
    [
        ((1.0, 1.0, 1.0), "done", True),
        ((1.0, 0.0, 1.0), "done", False),
        ((2.5, 2.5), "done", True),
        ((2.5, 2.5000001), "done", True),
        ((2.4, 2.5, 2.6), "done", False),
        ((0.0, *[1.0] * 20_000), "done", False),
        ((), "done", None),
        ((1.0,), "done", None),
        ((1.0, 1.0), "diverged", None),
    ],
)
def test_only_predictions_say_that_a_cell_has_collapsed(
    predictions: tuple[float, ...], status: Any, expected: bool | None
) -> None:
    assert gives_one_answer(record(0.0, status=status, predictions=predictions)) is expected


def test_nothing_is_said_where_no_cell_has_collapsed() -> None:
    for unknown in ((), (("cola", "vera", 0),)):
        statistics = computed(cells(unknown=unknown))
        assert notes(statistics) == []
        assert not any("one answer" in sentence for sentence in answer(statistics))


def test_the_sentence_has_both_sides_and_the_difference_without_them() -> None:
    """An average loses the whole seed; the interval is Welch's, by scipy, at the level of the look."""
    collapsed = (("cola", "vera", 3), ("stsb", "vera", 3), ("cola", "vera", 7), ("stsb", "lora", 0))
    statistics = computed(cells(collapsed))
    first, sentence, looks = verdict_sentences(statistics)
    assert "over 10 seeds" in first  # all seeds decide
    assert looks.startswith("Look 1")
    counts = f"3 of 20 cells of vera r=64 (CoLA 2, STS-B 1) and 1 of 20 of lora r=1 (STS-B 1) {GIVE}"
    assert sentence.startswith(counts)
    scores = {(one.cell.task, one.cell.method, one.cell.seed): one.score or 0 for one in cells(collapsed)}
    sides = [
        [sum(scores[task, method, seed] for task in TASKS) / 2 for seed in range(10) if seed not in lost]
        for method, lost in (("vera", {3, 7}), ("lora", {0}))
    ]
    interval = stats.ttest_ind(*sides, equal_var=False).confidence_interval(1 - 2 * FIRST_SHARE * TAIL)
    difference = sum(sides[0]) / 8 - sum(sides[1]) / 9
    assert (
        f"Without such seeds the difference would be {100 * difference:+.1f} points [{100 * interval.low:+.1f}, "
        f"{100 * interval.high:+.1f}] over 8 and 9 seeds. That is not the test:"
    ) in sentence


def test_every_table_of_a_comparison_counts_them() -> None:
    statistics = computed(cells((("cola", "vera", 3),)))
    said = f"1 of 20 cells of vera r=64 (CoLA 1) and none of lora r=1 {GIVE}"
    # The verdict, the declared pair, each method against the reference on the average, and the same by task.
    assert notes(statistics) == [said] * 4
    assert statistics.declared["difference"].iloc[0] < -0.015  # it stays in the test


def test_cells_without_predictions_are_not_counted_as_sound() -> None:
    unknown = tuple(("stsb", method, seed) for method in ("vera", "lora") for seed in range(10))
    statistics = computed(cells((("cola", "lora", 0),), unknown))
    said = f"1 of 10 cells of lora r=1 (CoLA 1) {GIVE}"
    assert set(notes(statistics)) == {f"{said} Of 20 other cells this is not known: no predictions are stored."}


def test_a_regression_without_a_correlation_is_counted() -> None:
    """The correlation of a constant is undefined: the seed has no score."""
    records = [
        one.model_copy(update={"score": None, "predictions": (2.5,) * 4})
        if (one.cell.task, one.cell.method, one.cell.seed) == ("stsb", "lora", 4)
        else one
        for one in cells()
    ]
    sentence = verdict_sentences(computed(iter(records)))[1]
    assert sentence.startswith(f"1 of 20 cells of lora r=1 (STS-B 1) and none of vera r=64 {GIVE}")
    assert "over 10 and 9 seeds" in sentence


@pytest.mark.parametrize("left", [0, 2])
def test_too_few_seeds_may_be_left(left: int) -> None:
    collapsed = tuple(("cola", "vera", seed) for seed in range(10 - left))
    sentences = verdict_sentences(computed(cells(collapsed)))
    assert sentences[1].startswith(f"{10 - left} of 20 cells of vera r=64 (CoLA {10 - left}) and none of lora r=1")
    assert sentences[1].endswith("Without such seeds fewer than 3 of a side are left.")


def test_nothing_is_left_where_all_cells_have_collapsed() -> None:
    collapsed = tuple((task, method, seed) for task in TASKS for method in ("vera", "lora") for seed in range(10))
    sentences = answer(computed(cells(collapsed)))
    assert sentences[1].endswith("Without such seeds fewer than 3 of a side are left.")
    assert any(sentence.startswith("On CoLA and STS-B every cell gives one answer") for sentence in sentences)


def test_no_difference_is_shown_before_a_look_has_ended() -> None:
    sentences = verdict_sentences(computed(cells((("cola", "vera", 3),)), looks=[20]))
    assert "not finished, 10 of 20 seeds have ended" in sentences[0]
    assert len(sentences) == 2


def test_of_many_settings_those_that_collapse_most_are_named() -> None:
    """Names have their targets where these differ; the CSV of all settings has the rest."""
    records = []
    for rank in range(1, 13):
        for seed in range(4):
            predictions = (1.0,) * 4 if seed < (rank == 5) + (rank > 2) else (0.0, 1.0) * 2
            settings: dict[str, Any] = {"task": "cola", "method": "lora", "rank": rank, "seed": seed}
            targets = "qv" if rank % 2 else "attention"
            records.append(record(0.5 + 0.01 * seed, targets=targets, predictions=predictions, **settings))
    pairs = [
        {"arm": {"method": "lora", "rank": rank}, "against": {"method": "lora", "rank": 1}} for rank in range(2, 13)
    ]
    statistics = computed(iter(records), looks=[], pairs=pairs, subject="lora", average=["cola"])
    (note, *_) = notes(statistics)
    assert note.startswith("2 of 4 cells of lora r=5 on qv (CoLA 2), 1 of 4 of lora r=3 on qv (CoLA 1), 1 of 4 of")
    assert "cells of 2 more settings (`one_answer` in the CSV of all settings) and none of the other 2 settings" in note
    data = entries_table(statistics).data.sort_values("rank")
    assert data["one_answer"].tolist() == [0, 0, 1, 1, 2, *[1] * 7]
    assert set(data["with_predictions"]) == {4}


def test_page_and_terminal_say_it_with_text_from_outside_escaped(fill: Fill, console: Console) -> None:
    targets = "re:q<b>|v"
    records = [
        one.model_copy(update={"cell": one.cell.model_copy(update={"targets": targets if method == "vera" else "qv"})})
        for one in cells((("cola", "vera", 3),))
        for method in (one.cell.method,)
    ]
    results = fill([one.model_copy(update={"id": one.cell.id}) for one in records])
    pair = {"arm": PAIR["arm"] | {"targets": targets}, "against": PAIR["against"]}
    compare = Comparisons.model_validate(DECLARED | {"pairs": [pair]})
    keep_comparisons(results, compare)
    reports.build(results, results, console, compare=compare, verdict_only=True)
    printed = " ".join(shown(console).split())
    assert f"1 of 20 cells of vera r=64 on {targets} (CoLA 1) and none of lora r=1 on qv {GIVE} Without" in printed
    markdown = (results / "report.md").read_text(encoding="utf-8")
    assert "- 1 of 20 cells of vera r=64 on re:q&lt;b&gt;\\|v (CoLA 1) and none of" in markdown
    assert "vera r=64 on re:q<b>" not in (results / "report.html").read_text(encoding="utf-8")
