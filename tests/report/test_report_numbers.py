"""What is pooled and what is not, and every number compared with pandas or arithmetic by hand."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import astuple
from typing import Any

import pandas as pd
import pytest

from lora_bench.records.schema import Record, Status
from lora_bench.records.store import Loaded
from lora_bench.report.content import gather
from lora_bench.report.numbers.entries import (
    Column,
    Subset,
    Summary,
    average_summary,
    comparable_subsets,
    percent,
    summarise,
)
from lora_bench.report.numbers.frame import SETTINGS, cell_frame
from lora_bench.report.numbers.score_tables import best_table, method_table, rank_tables
from lora_bench.report.numbers.tables import ReportTable, missing_score_tables
from lora_bench.report.numbers.wording import selection_notes
from tests.report.report_factory import grid, record, small

SST2 = Column("sst2", "accuracy")


def subsets(records: Iterable[Record]) -> tuple[Subset, ...]:
    return comparable_subsets(cell_frame(records))


def texts(table: ReportTable, head: str) -> list[str]:
    column = table.heads.index(head)
    return [row[column].text for row in table.rows]


def frame(records: Iterable[Record]) -> pd.DataFrame:
    return cell_frame(records).drop(columns="record").infer_objects()


def test_a_row_a_record_by_id() -> None:
    found = cell_frame(reversed(small()))
    assert list(found["id"]) == sorted(record.id for record in small())
    assert {"score", "split", "start", "notes", *SETTINGS} <= set(found.columns)


def test_nothing_is_an_empty_report() -> None:
    assert gather(Loaded((), ())).tables == ()


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_unfinished_cells_keep_their_row_without_a_score(status: Status) -> None:
    found = cell_frame([record(0.99, status=status), record(0.5, seed=1)])
    assert dict(zip(found["status"], found["score"], strict=True)) == {status: None, "done": 0.5}
    (subset,) = comparable_subsets(found)
    (entry,) = subset.columns[SST2]
    assert entry.summary == Summary(0.5, None, 0.5, 1, 2)
    assert entry.missing == {status: 1}
    assert texts(method_table(subset), "without\nscore") == [f"1 {status}"]
    assert method_table(subset).data[status].iloc[0] == 1


def test_a_cell_without_a_score_is_counted() -> None:
    (subset,) = subsets([record(None), record(0.5, seed=1)])
    assert subset.columns[SST2][0].summary.text() == "50.0 (1/2)†"


def test_entries_match_pandas() -> None:
    data = frame(grid(tasks=("cola", "sst2")))
    whole = data.fillna({"rank": 0, "a": 0, "b": 0}).astype({"score": float})
    by_hand = whole.groupby(["task", "method", "rank", "a", "b"])["score"].agg(
        ["mean", "std", "median", "count", "size"]
    )
    (subset,) = subsets(grid(tasks=("cola", "sst2")))
    got = {
        (column.task, entry.method, entry.rank or 0, entry.a or 0, entry.b or 0): astuple(entry.summary)
        for column, entries in subset.columns.items()
        for entry in entries
    }
    assert len(got) == len(by_hand)
    for key, *wanted in by_hand.itertuples():
        assert got[key] == pytest.approx(tuple(wanted))


def test_average_row_matches_pandas() -> None:
    data = frame(grid(tasks=("cola",))).astype({"score": float})
    mini = data[(data["method"] == "mini") & (data["rank"] == 16)]
    mean = mini.groupby(["a", "b"])["score"].mean().mean()
    by_seed = mini.pivot(index="seed", columns=["a", "b"], values="score").dropna().mean(axis=1)
    (subset,) = subsets(grid(tasks=("cola",)))
    table = rank_tables(subset)[0]
    assert table.rows[-1][0].text == "average"
    assert table.rows[-1][4].text == (
        f"{100 * mean:.1f} ± {100 * by_seed.std():.1f}; {100 * by_seed.median():.1f} ({len(by_seed)}/5)"
    )
    assert len(by_seed) < 5


def test_average_by_hand() -> None:
    scores = {(8, 0): 0.5, (8, 1): 0.7, (16, 0): 0.7, (16, 1): 0.8}
    (subset,) = subsets(record(score, a=a, b=a, seed=seed) for (a, seed), score in scores.items())
    got = average_summary(subset.columns[SST2])
    assert astuple(got) == pytest.approx((0.675, pd.Series([0.6, 0.75]).std(), 0.675, 2, 2))


def test_average_over_seeds_that_no_row_shares_has_no_spread() -> None:
    found = [record(0.5, a=8), record(None, status="failed", a=16), record(None, status="failed", a=8, seed=1)]
    (subset,) = subsets([*found, record(0.7, a=16, seed=1)])
    assert average_summary(subset.columns[SST2]).text() == "60.0 (0/2)†"


def test_an_uneven_average_has_a_note() -> None:
    found = [record(0.5, a=8), record(0.6, a=16), record(0.7, a=8, rank=8)]
    (subset,) = subsets(found)
    table = rank_tables(subset)[0]
    assert texts(table, "r=8") == ["70.0 (1)†", "", "70.0 (1)†"]
    assert table.notes == ("The averages are over unequal sets of (a, b): 1 of 2 at r=8.",)


@pytest.mark.parametrize(
    ("scores", "total", "text"),
    [
        ([0.9, 0.92, 0.91], 3, "91.0 ± 1.0; 91.0 (3)"),
        ([0.9, 0.92], 2, "91.0 ± 1.4; 91.0 (2)†"),
        ([0.9], 1, "90.0 (1)†"),
        ([0.9, 0.9, 0.9], 5, "90.0 ± 0.0; 90.0 (3/5)"),
        ([], 5, "— (0/5)"),
        ([-0.5, -0.5, -0.5], 3, "-50.0 ± 0.0; -50.0 (3)"),
    ],
)
def test_summary_text(scores: list[float], total: int, text: str) -> None:
    assert summarise(scores, total).text() == text


def test_there_is_no_negative_zero() -> None:
    assert percent(-0.0001) == "0.0"


def test_learning_rates_are_not_pooled() -> None:
    good, bad = (0.90, 0.91, 0.92), (0.80, 0.81, 0.99)
    found = [record(score, seed=seed, lr=1e-3) for seed, score in enumerate(good)]
    found += [record(score, seed=seed, lr=1e-2) for seed, score in enumerate(bad)]
    found += [record(None, status="diverged", seed=seed, lr=1.0) for seed in range(3)]
    (subset,) = subsets(found)
    (entry,) = subset.columns[SST2]
    assert entry.summary.text() == "91.0 ± 1.0; 91.0 (3)"
    assert (entry.settings["lr"], entry.settings_tried, entry.varying) == (1e-3, 3, ("lr",))
    assert selection_notes([entry]) == (
        "Each entry is the best of 3 learning rates, by the mean of the reported scores (which flatters it).",
        "Under settings not shown, 3 more cells have no score.",
    )
    assert method_table(subset).notes == rank_tables(subset)[0].notes == selection_notes([entry])
    assert rank_tables(subset)[0].data["lr"].iloc[0] == 1e-3


def test_a_selection_among_several_settings_names_them() -> None:
    found = [record(0.5, lr=1e-3), record(0.6, lr=1e-2, epochs=3), record(0.7, rank=8), record(0.1, rank=8, epochs=3)]
    (subset,) = subsets([*found, record(0.7, rank=16)])
    where, how = (
        "Where several were run, an entry is the best of",
        "by the mean of the reported scores (which flatters it).",
    )
    assert selection_notes(subset.columns[SST2]) == (
        f"{where} 2 numbers of epochs, {how}",
        f"{where} 2 settings (epochs, lr), {how}",
    )


def test_every_setting_failed() -> None:
    found = [record(None, status="failed", seed=seed, lr=lr) for seed in range(2) for lr in (1e-3, 1e-2)]
    (subset,) = subsets(found)
    (entry,) = subset.columns[SST2]
    assert (entry.summary.text(), entry.hidden_failures) == ("— (0/2)", 2)
    assert rank_tables(subset)[0].rows[-1][2].text == "— (0/2)"


@pytest.mark.parametrize(
    "other",
    [
        {"model": "other"},
        {"data": "other"},
        {"select": "last"},
        {"split": "test"},
        {"start": "mnli"},
        {"head": "model"},
    ],
)
def test_what_cannot_be_compared_is_another_table(other: dict[str, Any]) -> None:
    found = subsets([record(0.5), record(0.9, seed=1, **other)])
    assert len(found) == 2
    assert len({subset.title for subset in found}) == 2
    assert all(subset.columns[SST2][0].settings_tried == 1 for subset in found)


def test_head_stands_beside_every_target_set() -> None:
    found = [record(0.9), record(0.8, targets="qv"), record(0.7, method="head")]
    assert [[entry.method for entry in subset.columns[SST2]] for subset in subsets(found)] == [["head", "mini"]] * 2


def test_head_alone_has_a_table_and_no_ranks() -> None:
    (subset,) = subsets([record(0.7, method="head")])
    assert subset.title == "tiny, no adapter"
    assert rank_tables(subset) == []
    assert texts(method_table(subset), "method") == ["head"]


def test_published_start_is_another_row_and_default_is_none() -> None:
    found = [record(0.9), record(0.8, seed=1, init="default"), record(0.7, init="published")]
    (subset,) = subsets(found)
    assert [entry.label for entry in subset.columns[SST2]] == ["mini", "mini (published start)"]
    assert len(subset.columns[SST2][0].cells) == 2


def test_method_table() -> None:
    table = method_table(subsets(small())[0])
    assert table.heads[:6] == ("method", "rank", "a", "b", "CoLA\nMatthews", "SST-2\naccuracy")
    assert texts(table, "method") == ["head", "lora", "mini", "mini", "mini", "mini"]
    assert texts(table, "SST-2\naccuracy")[:3] == [
        "71.0 ± 1.0; 71.0 (3)",
        "92.5 ± 0.7; 92.5 (2/3)†",
        "91.5 ± 1.0; 91.5 (3)",
    ]
    assert texts(table, "adapter\nparams")[:3] == ["0", "9,000", "1,000"]
    assert texts(table, "head\nparams")[0] == "592,130"
    assert texts(table, "without\nscore") == ["0", "1 failed", "0", "0", "0", "0"]
    assert [row[5].bold for row in table.rows] == [False, True, False, False, False, False]


def test_bold_is_for_all_that_print_the_same_best() -> None:
    table = method_table(subsets([record(0.90001), record(0.90002, rank=8), record(0.8, rank=16)])[0])
    assert [row[4].bold for row in table.rows] == [True, True, False]


def test_parameters_that_differ_by_task_are_a_range() -> None:
    found = [record(0.9, params=(10, 592_130)), record(0.9, task="stsb", params=(10, 591_361))]
    assert texts(method_table(subsets(found)[0]), "head\nparams") == ["591,361–592,130"]
    assert texts(method_table(subsets([record(0.9, params=None)])[0]), "head\nparams") == ["—"]


def test_rank_tables() -> None:
    mini, others = rank_tables(subsets(small())[0])[2:]
    assert mini.title == "SST-2 (accuracy) by rank: mini; tiny, attention"
    assert mini.heads == ("a", "b", "r=4", "r=8")
    assert texts(mini, "a") == ["8", "16", "average"]
    assert texts(mini, "r=8") == ["91.9 ± 1.0; 91.9 (3)", "92.0 ± 1.0; 92.0 (3)", "91.9 ± 1.0; 91.9 (3)"]
    assert mini.footer_rows == 1
    assert (others.heads, texts(others, "r=4")) == (("method", "r=4"), ["92.5 ± 0.7; 92.5 (2/3)†"])


def test_tasks_stand_in_the_order_of_glue_then_by_name() -> None:
    found = [record(0.9, task=task) for task in ("zzz", "aaa", "rte", "cola")]
    assert [column.task for column in subsets(found)[0].columns] == ["cola", "rte", "aaa", "zzz"]


def test_unfinished_lists_the_cell_and_the_reason() -> None:
    (table,) = missing_score_tables(cell_frame(small()))
    assert [field.text for field in table.rows[0]][1:] == [
        "sst2",
        "lora",
        "4",
        "",
        "",
        "2",
        "0.001",
        "failed",
        "out of memory",
    ]
    assert missing_score_tables(cell_frame([record(0.5)])) == []


def test_a_seed_of_63_bits_survives() -> None:
    assert list(cell_frame([record(0.9, seed=2**63 - 1)])["seed"]) == [2**63 - 1]


def test_order_of_records_changes_nothing() -> None:
    records = small()
    shuffled = random.Random(1).sample(records, len(records))
    first, second = (gather(Loaded(tuple(ordered), ())).tables for ordered in (records, shuffled))
    assert first == second
    for one, other in zip(first, second, strict=True):
        pd.testing.assert_frame_equal(one.data, other.data)


def test_tasks_of_one_folder_share_a_table() -> None:
    """A folder's data are hashed by task; only two contents of one task are kept apart."""
    cola = record(0.5, task="cola", data="files:aaa")
    (subset,) = subsets([record(0.9, data="files:bbb"), cola, record(0.8, task="mnli", data="files:ccc")])
    assert [column.task for column in subset.columns] == ["cola", "sst2", "mnli"]
    two = cell_frame([record(0.9, data="files:bbb"), record(0.8, data="files:ddd", seed=1)])
    assert len(comparable_subsets(two)) == 2


def test_both_splits_of_mnli_are_the_validation() -> None:
    """MNLI stands beside the others."""
    mnli = record(0.8, task="mnli", split="validation_matched+validation_mismatched")
    assert len(subsets([mnli, record(0.9)])) == 1


def test_cost_columns_name_the_device_and_the_mean_seconds() -> None:
    found = [record(0.9, seconds=2.0), record(0.8, seed=1, seconds=4.0)]
    table = method_table(subsets(found)[0])
    assert texts(table, "GPU-seconds\na cell") == ["3.0"]
    assert texts(table, "adapter\nbytes") == ["4,000"]
    on_cpu = subsets([record(0.9, seconds=2.0, device="cpu, x86_64, 2 threads")])[0]
    assert "CPU-seconds\na cell" in method_table(on_cpu).heads
    mixed = subsets([record(0.9, seconds=2.0), record(0.8, seed=1, seconds=4.0, device="cpu, x86_64")])[0]
    assert "seconds\na cell" in method_table(mixed).heads


def test_best_setting_of_each_method_counts_what_it_was_chosen_from() -> None:
    found = [
        record(0.8 + 0.01 * rank, rank=rank, seed=seed, lr=lr) for rank in (4, 8) for seed in range(3) for lr in (1, 2)
    ]
    table = best_table(subsets([*found, record(0.7, method="head")])[0])
    assert texts(table, "method") == ["head", "mini"]
    assert texts(table, "rank") == ["", "8"]
    assert texts(table, "of") == ["1", "4"]


def test_a_lucky_single_seed_is_not_the_best_setting() -> None:
    steady = [record(0.8 + 0.01 * seed, seed=seed) for seed in range(3)]
    lucky = [record(0.99, rank=8), record(None, rank=8, seed=1, status="diverged")]
    (chosen,) = subsets([*steady, *lucky])[0].best_entries(SST2).values()
    assert chosen.rank == 4
    (chosen,) = subsets(lucky)[0].best_entries(SST2).values()
    assert chosen.rank == 8
