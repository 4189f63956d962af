"""A declared verdict in the report: the sentences, the table, and what stands first."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from lora_bench import report as reports
from lora_bench.compare import Comparisons
from lora_bench.errors import BenchError
from lora_bench.grid.config import keep_comparisons, load_comparisons
from lora_bench.records.schema import Epoch, Record, SearchInfo
from lora_bench.report.numbers.answer import answer
from lora_bench.report.numbers.comparisons import ScopeStatistics, scope_statistics
from lora_bench.report.numbers.entries import comparable_scopes
from lora_bench.report.numbers.frame import cell_frame
from lora_bench.report.numbers.looks import FIRST_SHARE, TAIL
from lora_bench.report.numbers.tables import signed_percent
from lora_bench.report.numbers.verdict import verdict_sentences, verdict_tables
from tests.report.report_factory import Fill, record, shown

LEVELS = {"cola": 0.5, "stsb": 0.85}
PAIRS = [
    {
        "arm": {"method": "vera", "rank": rank, "targets": "qv"},
        "against": {"method": "lora", "rank": 1, "targets": "qv"},
    }
    for rank in (64,)
]


def cells(
    gap: float,
    seeds: int = 10,
    values: tuple[int, int] = (1000, 1000),
    missing: int = 0,
    spread: float = 0.006,
    **fields: Any,
) -> Iterator[Record]:
    """VeRA and LoRA on two tasks, VeRA better by the gap; of VeRA's last seeds some have no record at STS-B."""
    draw = random.Random(3)
    for task, level in LEVELS.items():
        for method, params, gain, rank in (("vera", values[0], gap, 64), ("lora", values[1], 0.0, 1)):
            for seed in range(seeds):
                score = level + gain + draw.gauss(0, spread)
                values_of_cola: dict[str, float | None] = {"nll": 0.45, "ece": 0.05, "brier": 0.2}
                calibration = values_of_cola if task == "cola" else None
                epochs = (Epoch(epoch=1, loss=1.0, metrics={}, calibration=calibration),)
                settings: dict[str, Any] = {"task": task, "method": method, "rank": rank, "targets": "qv", "seed": seed}
                made = record(score, params=(params, 10), curve=epochs, **settings, **fields)
                if not (task == "stsb" and method == "vera" and seed >= seeds - missing):
                    yield made.model_copy(update={"metric": "pearson" if task == "stsb" else "matthews"})


def computed(records: Iterator[Record], looks: tuple[int, ...] = (10,), **compare: Any) -> ScopeStatistics:
    declared = {"subject": "vera", "reference": "lora", "pairs": PAIRS, "over": "seeds", "looks": looks} | compare
    (scope,) = comparable_scopes(cell_frame(records), Comparisons.model_validate(declared))
    return scope_statistics(scope)


@pytest.mark.parametrize(
    ("gap", "seeds", "said"),
    [
        (0.03, 10, "vera r=64 on qv is better than lora r=1 (1,000 trained values each) on the average of CoLA and"),
        (-0.03, 10, "vera r=64 on qv is worse than lora r=1 (1,000 trained values each) on the average of CoLA and"),
        (
            0.0,
            40,
            "vera r=64 on qv is equivalent to lora r=1 within 1 point (1,000 trained values each) on the average",
        ),
        (
            0.0,
            6,
            "vera r=64 on qv against lora r=1 (1,000 trained values each) on the average of CoLA and STS-B: not d",
        ),
    ],
)
def test_a_size_has_one_sentence_with_what_decided(gap: float, seeds: int, said: str) -> None:
    statistics = computed(cells(gap, seeds, spread=0.03 if "not d" in said else 0.006), looks=(seeds,))
    first, looks = verdict_sentences(statistics)
    assert first.startswith(said)
    declared = statistics.declared.iloc[0]
    assert f"{signed_percent(declared['difference'])} points [" in first
    assert f"over {seeds} seeds" in first
    assert looks.startswith(f"Look 1 at this comparison, with {seeds} seeds")
    assert answer(statistics)[:2] == (first, looks)
    assert "other sizes and settings of these methods" in answer(statistics)[-1]


def test_a_later_look_has_wider_limits_than_one_look_at_as_many_seeds() -> None:
    """The same records: intervals and p-values know that somebody has looked before."""
    widths = []
    for looks in ((), (40,), (20, 40), (10, 20, 30, 40)):
        (row,) = computed(cells(0.002, 40), looks).declared.to_dict("records")
        widths.append((row["high"] - row["low"], row["p"], row["p_equivalent"], row["paired_high"] - row["paired_low"]))
    for one, other in itertools.pairwise(widths):
        assert all(before < after for before, after in zip(one, other, strict=True))


def test_the_interval_is_welchs_at_the_level_of_the_look() -> None:
    """By scipy: each side has its own deviation, which may be several times the other's."""
    draw = random.Random(5)
    scores = {("vera", 64): [draw.gauss(0.5, 0.03) for _ in range(8)], ("lora", 1): [0.5 + 0.001 * i for i in range(8)]}
    settings: dict[str, Any] = {"task": "cola", "targets": "qv"}
    records = [
        record(score, method=method, rank=rank, seed=seed, **settings)
        for (method, rank), values in scores.items()
        for seed, score in enumerate(values)
    ]
    (row,) = computed(iter(records), looks=(8,), average=("cola",)).declared.to_dict("records")
    test = stats.ttest_ind(*scores.values(), equal_var=False)
    interval = test.confidence_interval(1 - 2 * FIRST_SHARE * TAIL)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["p"] == pytest.approx(test.pvalue / FIRST_SHARE)


def test_numbers_of_trained_values_that_are_not_equal_are_named() -> None:
    near = verdict_sentences(computed(cells(0.03, values=(1000, 1080))))[0]
    assert "(1,000 against 1,080 trained values)" in near
    far = verdict_sentences(computed(cells(0.03, values=(1000, 1200))))[0]
    assert "(1,000 against 1,200 trained values, not matched)" in far


@pytest.mark.parametrize(("looks", "missing", "done"), [((10, 20), 0, 10), ((10,), 2, 8)])
def test_there_is_no_verdict_before_all_seeds_of_a_look_have_ended(
    looks: tuple[int, ...], missing: int, done: int
) -> None:
    """Nobody looks in between unnoticed; an average needs every task of a seed."""
    statistics = computed(cells(0.03, missing=missing), looks)
    assert f"not finished, {done} of {looks[-1]} seeds have ended." in verdict_sentences(statistics)[0]
    (table,) = verdict_tables(statistics)
    assert [row[-1].text for row in table.rows] == ["not finished", ""]


def test_a_size_without_a_complete_seed_is_named() -> None:
    statistics = computed(cells(0.03, missing=10), average=("cola", "stsb"))
    expected = "vera r=64 on qv against lora r=1: not finished, no seed of both has ended on CoLA and STS-B."
    assert verdict_sentences(statistics)[0] == expected
    assert verdict_tables(statistics) == []


@pytest.mark.parametrize("average", [("cola", "stsb"), ("cola", "mrpc", "stsb")])
def test_there_is_no_verdict_on_some_of_the_tasks(average: tuple[str, ...]) -> None:
    """A look may be interrupted between two tasks, or the search of one may have failed."""
    done = [one for one in cells(0.03) if one.cell.task == "cola" or len(average) == 3]
    statistics = computed(iter(done), average=average)
    assert "not finished, no seed of both has ended on CoLA" in verdict_sentences(statistics)[0]
    assert verdict_tables(statistics) == []
    assert statistics.declared.empty


def test_a_verdict_is_on_its_task_whatever_else_was_run() -> None:
    """The main column is that of the only declared task, not the last one of GLUE's order."""
    statistics = computed(cells(0.03), average=("cola",))
    first = verdict_sentences(statistics)[0]
    assert "is better than lora r=1 (1,000 trained values each) on CoLA (Matthews): " in first
    assert statistics.scope.main.task == "cola"
    (table,) = verdict_tables(computed(cells(0.03), average=("stsb",)))
    assert table.data["nll"].isna().all()  # a regression has no probabilities, whatever CoLA's are


def test_no_table_decides_before_all_seeds_of_a_look_have_ended() -> None:
    statistics = computed(cells(0.03, missing=2), average=("cola", "stsb"))
    assert set(statistics.declared["verdict"]) == {"not finished"}
    of_stsb = statistics.default[statistics.default["task"] == "stsb"]
    assert set(of_stsb["verdict"]) == {"not finished"}


def test_lost_seeds_are_named_beside_the_difference() -> None:
    lost = [
        record(None, status="diverged", params=(1000, 10), task=task, method="vera", rank=64, targets="qv", seed=10)
        for task in LEVELS
    ]
    names = {"cola": "matthews", "stsb": "pearson"}
    lost = [one.model_copy(update={"metric": names[one.cell.task]}) for one in lost]
    kept = [one for one in cells(0.03, seeds=11) if not (one.cell.method == "vera" and one.cell.seed == 10)]
    first = verdict_sentences(computed(iter([*kept, *lost]), looks=(11,)))[0]
    assert "over 11 seeds (failed or diverged: 1 of vera r=64), p" in first


def test_an_interval_that_excludes_no_difference_does_not_contradict_not_decided() -> None:
    """With several sizes the test is corrected and the interval is not: the sentence says which decides."""
    pairs = [
        {"arm": {"method": "vera", "rank": rank, "targets": "qv"}, "against": {"method": "lora", "rank": other}}
        for rank, other in ((64, 1), (128, 2))
    ]
    records = []
    for score, method, rank in ((0.516, "vera", 64), (0.5, "lora", 1), (0.501, "vera", 128), (0.5, "lora", 2)):
        draw = random.Random(rank)
        noise = [draw.gauss(0, 0.02) for _ in range(20)]
        level = score - sum(noise) / len(noise)
        settings: dict[str, Any] = {"task": "cola", "method": method, "rank": rank, "targets": "qv"}
        records += [record(level + shift, seed=seed, **settings) for seed, shift in enumerate(noise)]
    statistics = computed(iter(records), looks=(20,), pairs=pairs, average=("cola",))
    row = statistics.declared.iloc[0]
    assert row["low"] > 0
    assert row["holm"] > 0.05 > row["p"]
    assert "over 2 sizes (Holm's p = 0.0" in verdict_sentences(statistics)[0]
    assert "Holm" not in verdict_sentences(statistics)[1]


def test_tasks_on_which_nothing_was_learnt_are_named() -> None:
    """Equal constant answers are equivalent over seeds, and say nothing of the methods."""
    records = [
        record(0.5, task="rte", method=method, rank=rank, targets="qv", seed=seed, predictions=(answer_given,) * 8)
        for method, rank in (("vera", 64), ("lora", 1))
        for seed, answer_given in enumerate((0.0, 1.0, 1.0))
    ]
    sentences = answer(computed(iter(records), looks=(3,), average=("rte",)))
    assert any(sentence.startswith("On RTE every cell gives one answer to all rows: ") for sentence in sentences)
    learnt = [*records[1:], records[0].model_copy(update={"predictions": (0.0, 1.0) * 4})]
    assert not any("every cell" in one for one in answer(computed(iter(learnt), looks=(3,), average=("rte",))))


def test_a_folder_without_any_cell_of_the_grid_has_a_sentence_too(fill: Fill, console: Console) -> None:
    """Where every rate of a search has failed, nothing else is trained."""
    failed = record(None, status="diverged", task="cola", method="vera", rank=64, targets="qv", seed=100)
    search = SearchInfo(role="trial", settings=("lr",))
    results = fill([failed.model_copy(update={"search": search})])
    declared = {"subject": "vera", "pairs": PAIRS, "over": "seeds", "looks": [10], "average": ["cola"]}
    compare = Comparisons.model_validate(declared)
    reports.build(results, results, console, compare=compare, verdict_only=True)
    expected = "vera r=64 on qv against lora r=1: not finished, no seed of both has ended on CoLA."
    assert expected in shown(console)
    assert expected in (results / "report.md").read_text(encoding="utf-8")


def test_the_table_has_both_methods_with_costs_and_calibration() -> None:
    (table,) = verdict_tables(computed(cells(0.03)))
    subject, reference = table.data.to_dict("records")
    assert (subject["size"], reference["size"]) == ("vera r=64", "lora r=1")
    assert subject["verdict"] == "better"
    assert subject["nll"] == pytest.approx(0.45)  # of CoLA alone: a regression has no probabilities
    assert subject["ece"] == pytest.approx(0.05)
    assert subject["adapter_bytes"] == 4000
    assert "with\nexamples" in table.heads


def test_examples_may_take_a_difference_back() -> None:
    """Over seeds the difference is certain; on 40 other examples it might not be, and the sentence says so."""
    draw = random.Random(0)
    records = []
    for method, rank in (("vera", 64), ("lora", 1)):
        for seed in range(10):
            right = [draw.random() < 0.02 if method == "lora" and row < 3 else True for row in range(40)]
            score = sum(right) / 40
            settings: dict[str, Any] = {"task": "rte", "method": method, "rank": rank, "targets": "qv", "seed": seed}
            epoch = (Epoch(epoch=1, loss=1.0, metrics={"accuracy": score}),)
            predictions = tuple(float(one) for one in right)
            records.append(record(score, curve=epoch, predictions=predictions, **settings))
    over_seeds = computed(iter(records))
    sentence = verdict_sentences(over_seeds)[0]
    assert "is better than" in sentence
    assert "On other examples of the same tasks: [" in sentence
    assert sentence.endswith("so it may not hold there.")
    over_both = computed(iter(records), over="seeds+examples")
    assert "not decided" in verdict_sentences(over_both)[0]
    assert "with\nexamples" not in verdict_tables(over_both)[0].heads


def cola_with_predictions(tasks: tuple[str, ...], over: str) -> list[str]:
    """The sentences on some of the tasks: better by ten points; predictions are there, for a regression too."""
    draw = random.Random(1)
    records = []
    for task, method, rank, seed in itertools.product(tasks, ("vera", "lora"), (64,), range(6)):
        score = 0.5 + 0.1 * (method == "vera") + draw.gauss(0, 0.002)
        names = ("pearson",) if task == "stsb" else ("matthews", "accuracy")
        epoch = (Epoch(epoch=1, loss=1.0, metrics=dict.fromkeys(names, score)),)
        predictions = tuple(float(draw.random() < 0.5) for _ in range(40))
        settings: dict[str, Any] = {"task": task, "method": method, "targets": "qv", "seed": seed}
        settings["rank"] = rank if method == "vera" else 1
        one = record(score, curve=epoch, predictions=predictions, **settings)
        records.append(one.model_copy(update={"metric": names[0]}))
    return verdict_sentences(computed(iter(records), looks=(6,), over=over, average=tasks))


def test_tasks_whose_examples_do_not_count_are_named() -> None:
    """What other rows of a regression would change is not known, so an interval over examples is without them."""
    over_seeds = cola_with_predictions(("cola", "stsb"), "seeds")[0]
    assert "On other examples of the same tasks (those of STS-B do not count): [" in over_seeds
    assert "On other examples" not in cola_with_predictions(("stsb",), "seeds")[0]
    over_both = cola_with_predictions(("cola", "stsb"), "seeds+examples")[-1]
    assert "over seeds and the examples of CoLA; what those of STS-B would change is not known." in over_both
    assert cola_with_predictions(("cola",), "seeds+examples")[-1].endswith("over seeds and the examples of CoLA.")
    alone = cola_with_predictions(("stsb",), "seeds+examples")[-1]
    assert alone.endswith("over seeds alone: what other examples of STS-B would change is not known.")


def test_examples_may_take_an_equivalence_back() -> None:
    """Each side is right on ten rows of forty on which the other one is wrong, with every seed but for one row."""
    records = []
    for method, rank in (("vera", 64), ("lora", 1)):
        for seed in range(10):
            wrong = range(10) if method == "lora" else range(10, 20)
            right = [row not in wrong or row == wrong[0] + seed for row in range(40)]
            score = sum(right) / 40
            settings: dict[str, Any] = {"task": "rte", "method": method, "rank": rank, "targets": "qv", "seed": seed}
            epoch = (Epoch(epoch=1, loss=1.0, metrics={"accuracy": score}),)
            records.append(record(score, curve=epoch, predictions=tuple(map(float, right)), **settings))
    sentence = verdict_sentences(computed(iter(records)))[0]
    assert "is equivalent to lora r=1 within 1 point" in sentence
    assert sentence.endswith("so it may not hold there.")


def test_a_report_of_the_folder_begins_with_the_verdict(fill: Fill, console: Console) -> None:
    """The looks stand in the folder's compare.yaml, so that every later report knows them."""
    results = fill(cells(0.03))
    declared = {"subject": "vera", "reference": "lora", "pairs": PAIRS, "over": "seeds", "looks": [10]}
    keep_comparisons(results, Comparisons.model_validate(declared))
    compare = load_comparisons(results)
    assert compare.looks == (10,)
    reports.build(results, results, console, compare=compare, verdict_only=True)
    lines = [line for line in shown(console).splitlines() if line]
    assert lines[2].startswith("vera r=64 on qv is better than lora r=1")
    assert lines[-1] == str(results / "report.html")
    assert any(line.startswith("Figure: ") and "frontier-" in line for line in lines)
    page = (results / "report.html").read_text(encoding="utf-8")
    assert page.index("is better than lora r=1") < page.index("<details")
    assert "Lan and DeMets" in page
    assert (results / "tables" / "verdict-tiny.csv").is_file()


@pytest.mark.parametrize("looks", ["[20, 10]", "[10, 10]", "[2]", "[0]", "[1.5]", "ten"])
def test_looks_that_cannot_be_are_refused(looks: str, tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text(f"looks: {looks}\n", encoding="utf-8")
    with pytest.raises(BenchError, match="looks"):
        load_comparisons(tmp_path)
