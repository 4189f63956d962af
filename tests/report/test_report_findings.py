"""Comparisons, the answer in sentences, the symmetry of a and b, and the choice of the epoch."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import matthews_corrcoef

from lora_bench.compare import Comparisons, Pair
from lora_bench.errors import BenchError
from lora_bench.grid.config import keep_comparisons, load_comparisons, parse_config
from lora_bench.records.schema import Epoch, Record
from lora_bench.report.numbers import symmetry
from lora_bench.report.numbers.answer import answer
from lora_bench.report.numbers.comparison_tables import comparison_tables
from lora_bench.report.numbers.comparisons import ScopeStatistics
from lora_bench.report.numbers.epochs import epoch_tables
from lora_bench.report.numbers.examples import ExampleTerms
from lora_bench.report.numbers.frame import rows_of
from lora_bench.report.numbers.score_tables import method_table
from lora_bench.report.numbers.tables import signed_percent
from lora_bench.testing import make_epochs
from tests.report.report_factory import record, statistics, texts


def named(computed: ScopeStatistics, table: pd.DataFrame) -> list[tuple[str, str]]:
    """The two settings of each comparison."""
    sizes = computed.scope.entries["size"]
    return list(zip(sizes.loc[table["entry"]], sizes.loc[table["reference"]], strict=True))


LEVELS = {"cola": 0.5, "sst2": 0.9, "stsb": 0.85}


def frontier(gap: float = 0.0, spread: float = 0.004, seeds: int = 5) -> Iterator[Record]:
    """LoRA and LoRA-Mini at equal sizes on three tasks, mini better by the gap; head alone; two (a, b) a rank."""
    draw = random.Random(4)
    for task, level in LEVELS.items():
        for seed in range(seeds):
            for rank in (2, 8):
                size = (12_500 * rank, 592_130)
                gain = 0.002 * rank
                settings: dict[str, Any] = {"task": task, "seed": seed, "rank": rank, "params": size}
                yield record(level + gain + draw.gauss(0, spread), method="lora", **settings)
                for a in (8, 16):
                    held = make_epochs(0.1, held_out=[a / 100 + rank / 1000])
                    yield record(level + gain + gap + draw.gauss(0, spread), a=a, b=24 - a, curve=held, **settings)
            yield record(level - 0.2 + draw.gauss(0, spread), task=task, seed=seed, method="head", params=(0, 592_130))


# ---- families


def test_each_method_is_compared_with_the_reference_of_the_nearest_size() -> None:
    computed = statistics(frontier())
    table = computed.default
    assert named(computed, table[table["task"] == "average"]) == [
        ("head", "lora r=2"),
        ("mini r=8 a=16 b=8", "lora r=8"),
    ]
    assert list(table["task"].unique()) == ["average", "cola", "sst2", "stsb"]
    assert set(table["family_size"]) == {2}, "each task is a family"


def test_a_method_has_the_same_setting_on_every_task() -> None:
    table = statistics(frontier()).default
    sizes = statistics(frontier()).scope.entries["size"]
    assert {sizes[entry] for entry in table["entry"]} == {"head", "mini r=8 a=16 b=8"}


def test_a_reference_on_the_same_targets_is_preferred() -> None:
    records = [
        record(
            0.5 + 0.01 * seed, method=method, rank=rank, a=None, b=None, targets=targets, seed=seed, params=(size, 2)
        )
        for seed in range(3)
        for method, rank, targets, size in (
            ("lora", 2, "attention", 1000),
            ("lora", 4, "qv", 5000),
            ("xs", 2, "qv", 1000),
            ("ia3", None, "kv+ffn", 900),
        )
    ]
    computed = statistics(records)
    assert sorted(named(computed, computed.default)) == [("ia3", "lora r=2"), ("xs r=2", "lora r=4")]


@pytest.mark.parametrize(
    ("gap", "spread", "verdict"),
    [
        (-0.03, 0.004, "worse"),
        (0.03, 0.004, "better"),
        (0.0, 0.03, "not distinguishable"),
        (0.0, 0.002, "equivalent"),
        (-0.005, 0.001, "worse, within the margin"),
    ],
)
def test_verdicts(gap: float, spread: float, verdict: str) -> None:
    assert set(statistics(frontier(gap, spread)).equal["verdict"]) == {verdict}


def test_at_equal_size_the_setting_is_chosen_on_held_out_rows() -> None:
    computed = statistics(frontier())
    assert named(computed, computed.equal) == [("mini r=2 a=16 b=8", "lora r=2"), ("mini r=8 a=16 b=8", "lora r=8")]
    assert computed.equal["of"].tolist() == [2, 2]


def test_fewer_than_three_seeds_are_not_tested() -> None:
    assert set(statistics(frontier(seeds=2)).equal["verdict"]) == {"not tested"}


def test_declared_pairs_are_a_family() -> None:
    pairs = (
        {"arm": {"method": "mini", "rank": 2, "a": 8, "b": 16}, "against": {"method": "lora", "rank": 8}},
        {"arm": {"method": "mini", "rank": 2}, "against": {"method": "lora", "rank": 2}},
        {"arm": {"method": "mini", "rank": 99}, "against": {"method": "lora"}},
    )
    computed = statistics(frontier(), pairs=pairs)
    names = named(computed, computed.declared)
    assert names == [("mini r=2 a=8 b=16", "lora r=8"), ("mini r=2 a=16 b=8", "lora r=2")], (
        "what was not run is left out"
    )
    tables = {table.title.partition(":")[0]: table for table in comparison_tables(computed)}
    assert texts(tables["Declared comparisons"], "setting") == [name for name, _ in names]


def test_the_comparison_has_students_interval_paired_by_seed_beside_it() -> None:
    computed = statistics(frontier())
    row = rows_of(computed.equal)[0]
    by_seed = computed.scope.cells[computed.scope.cells["entry"] >= 0].pivot_table(
        index=["arm", "seed"], columns="task", values="score"
    )
    means = by_seed.mean(axis=1).unstack("seed")
    arms = computed.scope.entries["arm"]
    wanted = stats.ttest_rel(means.loc[arms[row["entry"]]], means.loc[arms[row["reference"]]]).confidence_interval(0.95)
    assert (row["paired_low"], row["paired_high"]) == pytest.approx((wanted.low, wanted.high))


def predicted(task: str, method: str, seed: int) -> Record:
    """A cell with predictions on 300 rows: each method always fails on 40 rows of its own, the rest is chance."""
    hard = set(random.Random(f"{task} {method}").sample(range(300), 40))
    labels = [float(number % 3 > 0) for number in range(300)]
    draw = random.Random(f"{task} {method} {seed}")
    right = [number not in hard and draw.random() < 0.95 for number in range(300)]
    predictions = tuple(label if hit else 1 - label for label, hit in zip(labels, right, strict=True))
    accuracy = sum(one == other for one, other in zip(labels, predictions, strict=True)) / 300
    score = accuracy if task != "cola" else matthews_corrcoef(labels, predictions)
    metrics = {"accuracy": accuracy} | ({"matthews": score} if task == "cola" else {})
    curve = (Epoch(epoch=1, loss=1.0, metrics=metrics),)
    return record(
        score, task=task, method=method, a=None, b=None, rank=8, seed=seed, curve=curve, predictions=predictions
    )


@pytest.mark.parametrize("task", ["sst2", "cola"])
def test_examples_widen_an_interval_where_the_records_have_predictions(task: str) -> None:
    cells = [predicted(task, method, seed) for method in ("lora", "xs") for seed in range(3)]
    plain = [one.model_copy(update={"predictions": ()}) for one in cells]
    widths = [rows_of(statistics(records).default)[0]["error"] for records in (cells, plain)]
    assert widths[0] > widths[1] > 0
    terms = statistics(cells).means[task].example_terms
    assert terms is not None
    assert terms.examples() == 300
    assert statistics(plain).means[task].example_terms is None


def test_cells_on_other_rows_add_nothing() -> None:
    cells = [predicted("sst2", method, seed) for method in ("lora", "xs", "dora") for seed in range(3)]
    other = cells[-1].data
    assert other is not None
    moved = [
        one
        if one.cell.method != "xs"
        else one.model_copy(update={"data": other.model_copy(update={"fingerprint": "a+b"})})
        for one in cells
    ]
    terms = statistics(moved).means["sst2"].example_terms
    assert isinstance(terms, ExampleTerms)
    labels = statistics(moved).scope.entries["label"].tolist()
    assert dict(zip(labels, terms.known.tolist(), strict=True)) == {"dora": True, "lora": True, "xs": False}


def test_a_metric_without_a_formula_has_intervals_over_seeds_alone() -> None:
    records = [record(0.8 + 0.01 * seed, task="stsb", seed=seed, predictions=(0.5,) * 100) for seed in range(3)]
    computed = statistics(records)
    assert computed.means["stsb"].example_terms is None
    low, high = computed.intervals(computed.scope.main)
    assert (low[0] + high[0]) / 2 == pytest.approx(0.81)


def test_signs() -> None:
    assert [signed_percent(value) for value in (0.01, -0.01, 0.0001, None)] == ["+1.0", "-1.0", "0.0", "—"]


# ---- what is declared


def test_a_config_declares_what_is_compared(tmp_path: Path) -> None:
    text = "name: x\ncompare: {average: [cola, sst2], margin: 0.5, subject: xs}\n"
    assert parse_config(text, "x").compare == Comparisons(average=("cola", "sst2"), margin=0.5, subject="xs")
    (tmp_path / "x.yaml").write_text(text)
    assert load_comparisons(tmp_path, tmp_path / "x.yaml").margin == 0.5
    assert load_comparisons(tmp_path) == Comparisons()
    (tmp_path / "compare.yaml").write_text("margin: 2\n")
    assert load_comparisons(tmp_path).margin == 2


def test_a_run_leaves_the_declaration_where_the_report_finds_it(tmp_path: Path) -> None:
    keep_comparisons(tmp_path, Comparisons())
    assert list(tmp_path.iterdir()) == []
    pair = Pair(arm={"method": "mini", "rank": 2}, against={"method": "lora"})
    declared = Comparisons(average=("cola", "sst2"), pairs=(pair,))
    keep_comparisons(tmp_path, declared)
    assert load_comparisons(tmp_path) == declared


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("margin: 0", "compare.yaml:1: margin: 0 is not allowed"),
        ("averages: [cola]", "compare.yaml:1: unknown key 'averages'"),
        ("pairs: [{arm: {rank: 2}, against: {method: lora}}]", "is not allowed"),
        ("pairs: [{arm: {method: mini, size: 2}, against: {method: lora}}]", "is not allowed"),
        ("", "the file is empty"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "compare.yaml").write_text(text)
    with pytest.raises(BenchError) as caught:
        load_comparisons(tmp_path)
    assert what in caught.value.what


# ---- the answer


def test_the_answer_says_which_is_best_and_whether_the_method_matches() -> None:
    match, best, *rest = answer(statistics(frontier(-0.03)))
    assert "Does LoRA-Mini match LoRA at equal size" in match
    assert "No: it is worse at every size. In 2 of 2 comparisons of chosen settings its mean is lower" in match
    assert re.search(r"Over all of them the mean difference is -[23]\.\d \[-", match)
    assert best.startswith(
        "At about 100,000 trained values (56,235 to 177,827) the best mean of 2 methods on the average of"
    )
    assert "is that of lora r=8 on attention, 76.6" in best
    assert "mini r=8 a=16 b=8 on attention" in best
    assert "No other one may be the best. Not the best, with 95% confidence: mini r=8" in best
    assert rest[0].startswith("Evidence: 105 cells on tiny, 7 settings")
    assert "Not tested here: any other encoder, MRPC, QQP, MNLI, QNLI, RTE and WNLI" in rest[1]


def test_a_report_on_fewer_than_three_seeds_says_that_nothing_is_compared() -> None:
    first, *rest = answer(statistics([record(0.5, seed=seed, seconds=9.0) for seed in range(2)]))
    assert first == "No setting has 3 seeds or more here: nothing is compared."
    assert "0.3 GPU-minutes of training" in rest[0]


@pytest.mark.parametrize(
    ("gap", "spread", "words"),
    [
        (0.03, 0.004, "Yes: where these seeds can tell, it is better."),
        (0.0, 0.002, "Yes: it is equivalent at every size."),
        (0.0, 0.03, "Unknown: these seeds show no difference"),
    ],
)
def test_the_answer_follows_the_verdicts(gap: float, spread: float, words: str) -> None:
    assert words in answer(statistics(frontier(gap, spread)))[0]


def test_declared_comparisons_come_first_and_count_for_the_answer() -> None:
    """Of a setting that is not the chosen one, and worse where the chosen ones are not distinguishable."""

    def records() -> Iterator[Record]:
        for one in frontier(0.0, 0.03):
            lower = one.cell.method == "mini" and one.cell.a == 8
            yield one.model_copy(update={"score": (one.score or 0) - 0.1}) if lower else one

    pair = Pair(arm={"method": "mini", "rank": 2, "a": 8}, against={"method": "lora", "rank": 2})
    first, match, *_ = answer(statistics(records(), pairs=(pair,)))
    assert first == (
        "Of the 1 declared comparison the first setting is worse in 1, better in 0, equivalent within ±1 point in 0 "
        "and not distinguishable in 0."
    )
    assert "No: where these seeds can tell, it is worse." in match
    assert "after Holm's correction 0 are worse" in match


def many_methods(points: float) -> list[Record]:
    """LoRA and LoRA-Mini of one size, so far apart, and seven others between them, on one task with five seeds."""
    between = ("xs", "cora", "vera", "dora", "pissa", "rslora", "lora-fa")
    levels = {"lora": points, "mini": 0.0} | dict.fromkeys(between, points / 2)
    return [
        record(
            0.7 + level / 100 + 0.006 * (seed - 2),
            task="cola",
            seed=seed,
            method=method,
            rank=8,
            a=8 if method == "mini" else None,
            b=8 if method == "mini" else None,
            params=(100_000, 592_130),
        )
        for method, level in levels.items()
        for seed in range(5)
    ]


def test_a_pair_that_is_worse_in_one_family_and_may_be_the_best_in_another_is_explained() -> None:
    """Of one comparison at equal size it is significant, of the eight with all others of its size it is not."""
    computed = statistics(many_methods(1.6))
    assert computed.equal["verdict"].tolist() == ["worse"]
    explanation = (
        "mini r=8 a=8 b=8 on attention may be the best by its 8 comparisons here, and is worse than lora r=8 on "
        "attention among the 1 comparison at equal size. Each family of comparisons is corrected for its own number "
        "of them."
    )
    _, best, *_ = answer(computed)
    assert "Others that may be the best: mini r=8 a=8 b=8 on attention" in best
    assert best.endswith(explanation)
    notes = {table.title.partition(":")[0]: table.notes for table in comparison_tables(computed)}
    pair = "mini r=8 a=8 b=8 on attention against lora r=8 on attention is"
    assert notes["mini against lora at equal size"][-1].startswith(
        f"{pair} worse here, and not distinguishable among the 8 comparisons of each method with lora. Each family"
    )
    assert notes["Each method against lora"][-1].startswith(
        f"{pair} not distinguishable here, and worse among the 1 comparison at equal size. Each family"
    )
    assert explanation in method_table(computed).notes


@pytest.mark.parametrize("points", [0.3, 6.0])
def test_nothing_is_explained_where_all_families_agree(points: float) -> None:
    computed = statistics(many_methods(points))
    tables = [*comparison_tables(computed), method_table(computed)]
    assert not any("corrected for its own number" in note for table in tables for note in table.notes)
    assert "corrected for its own number" not in " ".join(answer(computed))


def test_what_no_method_learns_is_named() -> None:
    unlearnt = [
        record(0.5 + 0.01 * (seed % 3), task="rte", seed=seed, method=method, rank=rank, a=None, b=None)
        for seed in range(5)
        for method, rank in (("lora", 8), ("head", None))
    ]
    sentences = answer(statistics([*frontier(), *unlearnt]))
    assert any("No method is distinguishable from training the head alone on RTE" in sentence for sentence in sentences)


def test_without_the_reference_there_is_no_answer_on_it() -> None:
    sentences = answer(statistics([record(0.5, seed=seed) for seed in range(3)]))
    assert not any("match" in sentence for sentence in sentences)


# ---- a against b


def mirrored(gain: float, seeds: int = 5) -> Iterator[Record]:
    draw = random.Random(1)
    for rank in (4, 8):
        for a, b in ((8, 16), (16, 8), (8, 8)):
            for seed in range(seeds):
                yield record(0.8 + (gain if a > b else 0) + draw.gauss(0, 0.001), rank=rank, a=a, b=b, seed=seed)


@pytest.mark.parametrize(("gain", "verdict"), [(0.02, "a"), (-0.02, "b"), (0.0, "not distinguishable")])
def test_mirrored_pairs(gain: float, verdict: str) -> None:
    scope = statistics(mirrored(gain)).scope
    (row,) = rows_of(symmetry.measure_symmetry(scope))
    assert (row["verdict"], row["pairs"], row["n"]) == (verdict, 2, 5)
    assert row["difference"] == pytest.approx(gain, abs=0.002)
    assert bool(symmetry.sentences(symmetry.measure_symmetry(scope))) == (verdict != "not distinguishable")


def test_mirrored_pairs_are_tested_by_seed() -> None:
    scope = statistics(mirrored(0.001)).scope
    (row,) = rows_of(symmetry.measure_symmetry(scope))
    cells = scope.cells[scope.cells["a"] != scope.cells["b"]]
    signed = cells["score"].where(cells["a"] > cells["b"], -cells["score"])
    by_seed = signed.groupby(cells["seed"]).sum() / 2
    wanted = stats.ttest_1samp(by_seed, 0)
    assert row["p"] == row["holm"] == pytest.approx(wanted.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(wanted.confidence_interval(0.95)))


def test_without_mirrored_pairs_there_is_no_table() -> None:
    scope = statistics([record(0.5, a=8, b=16)]).scope
    assert symmetry.symmetry_tables(scope, symmetry.measure_symmetry(scope)) == []


def test_two_seeds_of_mirrored_pairs_are_not_tested() -> None:
    (row,) = rows_of(symmetry.measure_symmetry(statistics(mirrored(0.02, seeds=2)).scope))
    assert (row["verdict"], row["p"], row["n"]) == ("not tested", None, 2)


# ---- the choice of the epoch


def test_the_three_choices_of_the_epoch_stand_side_by_side() -> None:
    curve = make_epochs(0.7, 0.9, 0.8, held_out=[0.1, 0.2, 0.3])
    records = [record(0.9, seed=seed, curve=curve) for seed in range(3)]
    (table,) = epoch_tables(statistics(records).scope)
    assert [texts(table, head) for head in ("best epoch", "last epoch", "held-out epoch")] == [
        ["90.0"],
        ["80.0"],
        ["80.0"],
    ]
    assert texts(table, "best − last") == texts(table, "best − held-out") == ["+10.0"]
    assert len(table.data) == 1


def test_without_held_out_rows_that_choice_is_empty_and_the_note_says_how_to_have_it() -> None:
    (table,) = epoch_tables(statistics([record(0.9)]).scope)
    assert texts(table, "held-out epoch") == ["—"]
    assert "run with --set select=held-out" in table.notes[1]
    assert epoch_tables(statistics([record(None, status="failed")]).scope) == []
