"""What is pooled and what is not, how settings are chosen, and every number compared with pandas or by hand."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pytest

from lora_bench.compare import Comparisons
from lora_bench.records.schema import Record, Status
from lora_bench.records.store import Loaded
from lora_bench.report.content import gather
from lora_bench.report.numbers.comparisons import scope_statistics
from lora_bench.report.numbers.entries import AVERAGE, Scope, comparable_scopes, seed_scores, short_model
from lora_bench.report.numbers.frame import SETTINGS, cell_frame, rows_of
from lora_bench.report.numbers.score_tables import (
    best_table,
    class_text,
    entries_table,
    frontier_tables,
    method_table,
    rank_tables,
)
from lora_bench.report.numbers.tables import ReportTable, missing_score_tables, percent, summary_text
from lora_bench.testing import make_epochs
from tests.report.report_factory import grid, record, small, texts


def scopes(records: Iterable[Record], **compare: Any) -> tuple[Scope, ...]:
    return comparable_scopes(cell_frame(records), Comparisons(**compare))


def scope(records: Iterable[Record], **compare: Any) -> Scope:
    (only,) = scopes(records, **compare)
    return only


def entry(records: Iterable[Record], task: str = "sst2", **settings: Any) -> dict[str, Any]:
    """The only entry of a task with these values."""
    frame = scope(records).entries
    rows = [row for row in rows_of(frame) if row["task"] == task and row.items() >= settings.items()]
    assert len(rows) == 1
    return dict(rows[0])


def test_a_row_a_record_by_id() -> None:
    cells = cell_frame(reversed(small()))
    assert list(cells["id"]) == sorted(record.id for record in small())
    assert {"score", "split", "start", "notes", *SETTINGS} <= set(cells.columns)


def test_nothing_is_an_empty_report() -> None:
    assert gather(Loaded((), ())).tables == ()


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_unfinished_cells_keep_their_row_without_a_score(status: Status) -> None:
    records = [record(0.99, status=status), record(0.5, seed=1)]
    row = entry(records)
    assert (row["mean"], row["std"], row["n"], row["seeds"], row[status]) == (0.5, None, 1, 2, 1)
    assert summary_text(row) == "50.0 (1/2)†"
    table = method_table(scope_statistics(scope(records)))
    assert texts(table, "without\nscore") == [f"1 {status}"]
    assert table.data[status].iloc[0] == 1


def test_a_cell_that_is_done_without_a_score_is_counted() -> None:
    row = entry([record(None), record(0.5, seed=1)])
    assert (row["undefined"], summary_text(row)) == (1, "50.0 (1/2)†")


def test_lost_seeds_are_stated_both_ways() -> None:
    records = [record(0.9, seed=seed) for seed in range(4)] + [record(None, seed=4, status="diverged")]
    table = method_table(scope_statistics(scope(records)))
    assert table.data["mean"].iloc[0] == 0.9
    assert table.data["lost_as_zero"].iloc[0] == pytest.approx(0.72)
    assert any("With lost seeds as 0: mini r=4 a=8 b=8 72.0." in note for note in table.notes)


def test_the_trimmed_mean_leaves_out_as_many_of_the_best_as_were_lost() -> None:
    records = [record(score, seed=seed) for seed, score in enumerate((0.5, 0.9, 0.6, 0.7))]
    row = entry([*records, record(None, seed=4, status="failed")])
    assert (row["mean"], row["trimmed"]) == pytest.approx((0.675, 0.6))
    assert entry(records)["trimmed"] == pytest.approx(0.675)


def test_entries_match_pandas() -> None:
    cells = cell_frame(grid(tasks=("cola", "sst2")))
    keys = ["task", "method", "rank", "a", "b"]
    by_hand = cells.groupby(keys, dropna=False)["score"].agg(["mean", "std", "median", "count", "size"])
    entries = scope(grid(tasks=("cola", "sst2"))).entries
    tasks = entries[entries["task"] != AVERAGE].set_index(keys)[["mean", "std", "median", "n", "seeds"]]
    wanted = by_hand.rename(columns={"count": "n", "size": "seeds"})
    pd.testing.assert_frame_equal(tasks.sort_index(), wanted.sort_index(), check_dtype=False, check_index_type=False)


def test_the_average_is_by_seed_over_the_seeds_that_have_all_tasks() -> None:
    records = list(grid(tasks=("cola", "sst2", "rte")))
    cells = cell_frame(records)
    chosen = cells[(cells["method"] == "mini") & (cells["rank"] == 16) & (cells["a"] == 32) & (cells["b"] == 64)]
    by_seed = chosen.pivot(index="seed", columns="task", values="score").dropna().mean(axis=1)
    row = entry(records, AVERAGE, method="mini", rank=16, a=32, b=64)
    assert (row["mean"], row["std"], row["n"]) == pytest.approx((by_seed.mean(), by_seed.std(), len(by_seed)))


def test_the_average_of_an_incomplete_seed() -> None:
    records = [record(0.5 + 0.1 * seed, task=task, seed=seed) for task in ("cola", "sst2") for seed in range(3)]
    lost = [record(None, task="cola", seed=3, status="failed"), record(0.99, task="sst2", seed=3)]
    row = entry([*records, *lost], AVERAGE)
    assert (row["mean"], row["n"], row["seeds"], row["failed"]) == (pytest.approx(0.6), 3, 4, 1)


def test_which_tasks_are_averaged() -> None:
    records = [record(0.5, task=task, seed=seed) for task in ("cola", "sst2", "wnli") for seed in range(3)]
    assert scope(records).averaged == ("cola", "sst2")
    assert scope(records, average=("sst2", "wnli")).averaged == ("sst2", "wnli")
    assert scope(records, average=("sst2",)).main.task == "sst2"  # of one task there is no average, but it is the one
    assert scope(records).main.task == AVERAGE


def test_a_method_without_all_tasks_has_no_average() -> None:
    records = [record(0.5, task=task) for task in ("cola", "sst2")] + [record(0.9, method="lora", a=None, b=None)]
    entries = scope(records).entries
    assert entries[entries["task"] == AVERAGE]["method"].tolist() == ["mini"]


def test_seed_scores_of_the_average() -> None:
    records = [record(0.5 + 0.1 * seed, task=task, seed=seed) for task in ("cola", "sst2") for seed in range(2)]
    results = scope([*records, record(0.9, seed=7)])
    assert seed_scores(results, results.main).tolist() == pytest.approx([0.5, 0.6])


@pytest.mark.parametrize(
    ("scores", "total", "text"),
    [
        ([0.9, 0.92, 0.91], 3, "91.0 ± 1.0 (3)"),
        ([0.9, 0.92], 2, "91.0 ± 1.4 (2)†"),
        ([0.9], 1, "90.0 (1)†"),
        ([0.9, 0.9, 0.9], 5, "90.0 ± 0.0 (3/5)"),
        ([], 5, "— (0/5)"),
        ([-0.5, -0.5, -0.5], 3, "-50.0 ± 0.0 (3)"),
    ],
)
def test_summary_text(scores: list[float], total: int, text: str) -> None:
    records = [record(score, seed=seed) for seed, score in enumerate(scores)]
    lost = [record(None, seed=seed, status="failed") for seed in range(len(scores), total)]
    assert summary_text(entry([*records, *lost])) == text


def test_there_is_no_negative_zero() -> None:
    assert percent(-0.0001) == "0.0"


# ---- the choice of settings


def rates(held_out: dict[float, float], score: dict[float, float], **settings: Any) -> list[Record]:
    """Three seeds at each learning rate, with these held-out metrics and scores."""
    return [
        record(
            score[lr],
            seed=seed,
            lr=lr,
            select="held-out",
            curve=make_epochs(score[lr], held_out=[held_out[lr]]),
            **settings,
        )
        for lr in held_out
        for seed in range(3)
    ]


def test_settings_are_chosen_by_the_held_out_score_and_not_by_the_one_that_is_shown() -> None:
    row = entry(rates({1e-3: 0.8, 1e-2: 0.7}, {1e-3: 0.90, 1e-2: 0.95}))
    assert (row["lr"], row["mean"], row["tried"], row["varying"]) == (1e-3, pytest.approx(0.9), 2, "lr")
    assert row["chosen_by"] == "held-out"


def test_sizes_are_chosen_by_the_held_out_score_too_and_say_among_how_many() -> None:
    small_size = rates({1e-3: 0.8, 1e-2: 0.7}, {1e-3: 0.90, 1e-2: 0.1}, rank=4)
    large_size = rates({1e-3: 0.6, 1e-2: 0.5}, {1e-3: 0.99, 1e-2: 0.1}, rank=8)
    table = method_table(scope_statistics(scope([*small_size, *large_size])))
    assert texts(table, "method") == ["mini r=4 a=8 b=8"]
    assert texts(table, "of") == ["4"]
    assert "chosen by the mean score on held-out training rows" in table.notes[0]


def test_without_held_out_rows_the_shown_score_decides_and_the_table_says_so() -> None:
    records = [record(score, seed=seed, lr=lr) for lr, score in ((1e-3, 0.9), (1e-2, 0.8)) for seed in range(3)]
    assert entry(records)["lr"] == 1e-3
    assert "which flatters a method with many settings" in method_table(scope_statistics(scope(records))).notes[0]


def test_learning_rates_are_not_pooled() -> None:
    good, bad = (0.90, 0.91, 0.92), (0.80, 0.81, 0.99)
    records = [record(score, seed=seed, lr=1e-3) for seed, score in enumerate(good)]
    records += [record(score, seed=seed, lr=1e-2) for seed, score in enumerate(bad)]
    records += [record(None, status="diverged", seed=seed, lr=1.0) for seed in range(3)]
    row = entry(records)
    assert (summary_text(row), row["lr"], row["tried"], row["hidden_lost"]) == ("91.0 ± 1.0 (3)", 1e-3, 3, 3)


def test_starts_from_cells_of_other_settings_are_not_pooled() -> None:
    """The cells are alike but for what the cells were trained with that they continue from."""
    first, second = (record(0.7, seed=0), record(0.8, seed=1))
    started = [
        made.model_copy(
            update={"protocol": made.protocol.model_copy(update={"start": "mnli", "start_settings": settings})}
        )
        for made, settings in ((first, "a"), (second, "b"))
    ]
    assert (entry(started)["tried"], entry(started)["n"]) == (2, 1)
    assert (entry([first, second])["tried"], entry([first, second])["n"]) == (1, 2)


def test_a_setting_that_loses_a_seed_is_not_chosen_before_one_that_does_not() -> None:
    sound = [record(0.8, seed=seed) for seed in range(5)]
    lossy = [record(0.9, seed=seed, lr=1e-2) for seed in range(4)]
    assert entry([*sound, *lossy, record(None, seed=4, lr=1e-2, status="diverged")])["lr"] == 1e-3


def test_a_lucky_single_seed_is_not_the_chosen_setting() -> None:
    steady = [record(0.8 + 0.01 * seed, seed=seed) for seed in range(3)]
    lucky = [record(0.99, rank=8), record(None, rank=8, seed=1, status="diverged")]
    assert scope([*steady, *lucky]).chosen["sst2"]["rank"].tolist() == [4]
    assert scope(lucky).chosen["sst2"]["rank"].tolist() == [8]


def test_every_setting_failed() -> None:
    records = [record(None, status="failed", seed=seed, lr=lr) for seed in range(2) for lr in (1e-3, 1e-2)]
    row = entry(records)
    assert (summary_text(row), row["hidden_lost"]) == ("— (0/2)", 2)
    assert gather(Loaded(tuple(records), ())).sections[0].answer == ()


# ---- scopes and tables


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
def test_what_cannot_be_compared_is_another_scope(other: dict[str, Any]) -> None:
    both = scopes([record(0.5), record(0.9, seed=1, **other)])
    assert len(both) == len({one.title for one in both}) == 2
    assert all(one.entries["tried"].tolist() == [1] for one in both)


def test_tasks_of_which_some_start_from_another_task_share_a_table_and_an_average() -> None:
    """As in LoRA's protocol; a task with several starts has a table for each of them."""
    tasks = [record(0.5, task="cola"), record(0.6, task="mrpc", start="mnli"), record(0.7, task="rte", start="mnli")]
    (joined,) = scopes(tasks)
    assert [column.task for column in joined.columns] == ["cola", "mrpc", "rte", AVERAGE]
    assert joined.values["start"] == "pretrained, mnli for mrpc and rte"
    assert [joined.start_of(column) for column in joined.tasks] == ["pretrained", "mnli", "mnli"]
    apart = scopes([*tasks, record(0.9, task="rte")])
    assert {one.values["start"]: [column.task for column in one.tasks] for one in apart} == {
        "mnli": ["mrpc", "rte"],
        "pretrained": ["cola", "rte"],
    }
    assert [one.values["start"] for one in scopes([*tasks, record(0.9, task="sst2", data="other")])] == [
        "pretrained, mnli for mrpc and rte",
        "pretrained",
    ]


def test_models_are_named_without_owner_and_revision_unless_that_is_the_same() -> None:
    assert short_model("FacebookAI/roberta-base@abc") == "roberta-base"
    assert [one.title for one in scopes([record(0.5, model="a/b@1"), record(0.5, model="a/c@1")])] == ["b", "c"]
    assert [one.title for one in scopes([record(0.5, model="a/b"), record(0.5, model="c/b")])] == ["a/b", "c/b"]


def test_targets_are_part_of_a_setting() -> None:
    results = scope([record(0.9), record(0.8, targets="qv"), record(0.7, method="head")])
    assert len(results.entries) == 3
    assert results.chosen["sst2"]["targets"].tolist() == [None, "attention", "qv"]


def test_published_start_is_another_row_and_default_is_none() -> None:
    records = [record(0.9), record(0.8, seed=1, init="default"), record(0.7, init="published")]
    entries = scope(records).entries
    assert entries["label"].tolist() == ["mini", "mini (published start)"]
    assert entries["seeds"].tolist() == [2, 1]


def test_method_table() -> None:
    table = method_table(scope_statistics(scope(small())))
    assert table.heads[:6] == ("method", "targets", "average", "95%\ninterval", "rank", "of")
    assert table.heads[6:8] == ("CoLA\nMatthews", "SST-2\naccuracy")
    assert texts(table, "method") == ["lora r=4", "mini r=8 a=16 b=32", "head"]
    assert texts(table, "SST-2\naccuracy") == ["92.5 ± 0.7 (2/3)†", "92.0 ± 1.0 (3)", "71.0 ± 1.0 (3)"]
    assert texts(table, "of") == ["1", "4", "1"]
    assert texts(table, "adapter\nparams") == ["9,000", "1,000", "0"]
    assert texts(table, "without\nscore") == ["1 failed", "0", "0"]


def test_the_best_of_each_task_has_an_interval_and_a_rank() -> None:
    table = best_table(scope_statistics(scope(small())))
    assert texts(table, "task") == ["CoLA (Matthews)"] * 3 + ["SST-2 (accuracy)"] * 3
    assert texts(table, "setting")[:3] == ["lora r=4", "mini r=8 a=16 b=32", "head"]
    assert texts(table, "rank")[:3] == ["1–2", "1–2", "3"]
    assert [row[1].bold for row in table.rows[:3]] == [True, True, False]
    assert table.data["low"].iloc[0] < table.data["mean"].iloc[0] < table.data["high"].iloc[0]


def test_all_settings_are_data_alone() -> None:
    table = entries_table(scope_statistics(scope(small())))
    assert table.is_data
    assert len(table.data) == 3 * 6  # two tasks and the average
    assert {"lr", "epochs", "mean", "low", "adapter_bytes"} <= set(table.data.columns)


def test_the_frontier_has_each_method_once_in_a_size_class() -> None:
    records = [
        record(0.5 + rank / 1000 + 0.001 * seed, task=task, seed=seed, rank=rank, params=(1000 * rank, 2))
        for rank in (1, 2, 4, 100)
        for task in ("cola", "sst2")
        for seed in range(3)
    ]
    (table,) = frontier_tables(scope_statistics(scope(records)))
    assert texts(table, "about") == ["1,000", "3,200", "100,000"]
    assert texts(table, "setting") == ["mini r=1 a=8 b=8", "mini r=4 a=8 b=8", "mini r=100 a=8 b=8"]
    assert texts(table, "of") == ["1", "2", "1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(10**2.5, "320"), (10**5, "100,000"), (10**4.75, "56,000"), (10**0, "1"), (10**7.5, "32,000,000")],
)
def test_class_text(value: float, text: str) -> None:
    assert class_text(value) == text


def test_rank_tables() -> None:
    mini, others = rank_tables(scope(small()))
    assert mini.title == "Average by rank: mini attention; tiny"
    assert mini.heads == ("a", "b", "r=4", "r=8")
    assert texts(mini, "a") == ["8", "16"]
    assert texts(mini, "r=8") == ["71.9 ± 1.0 (3)", "72.0 ± 1.0 (3)"]
    assert (others.heads, texts(others, "r=4")) == (("method", "targets", "r=4"), ["72.5 ± 0.7 (2/3)†"])
    assert rank_tables(scope([record(0.7, method="head")])) == []


def test_tasks_stand_in_the_order_of_glue_then_by_name() -> None:
    results = scope([record(0.9, task=task) for task in ("zzz", "aaa", "rte", "cola")])
    assert [column.task for column in results.columns] == ["cola", "rte", "aaa", "zzz", AVERAGE]


def test_unfinished_lists_the_cell_and_the_reason() -> None:
    (table,) = missing_score_tables(cell_frame(small()))
    row = ["sst2", "lora", "4", "", "", "2", "0.001", "failed", "out of memory"]
    assert [field.text for field in table.rows[0]][1:] == row
    assert missing_score_tables(cell_frame([record(0.5)])) == []


def test_a_seed_of_63_bits_survives() -> None:
    assert list(cell_frame([record(0.9, seed=2**63 - 1)])["seed"]) == [2**63 - 1]


def test_order_of_records_changes_nothing() -> None:
    records = small()
    shuffled = random.Random(1).sample(records, len(records))
    first, second = (gather(Loaded(tuple(ordered), ())).tables for ordered in (records, shuffled))
    assert first == second
    for one, other in zip(first, second, strict=True):
        pd.testing.assert_frame_equal(one.data.reset_index(drop=True), other.data.reset_index(drop=True))


def test_tasks_of_one_folder_share_a_scope() -> None:
    """A folder's data are hashed by task; only two contents of one task are kept apart."""
    records = [record(0.9, data="files:bbb"), record(0.8, task="mnli", data="files:ccc")]
    results = scope([*records, record(0.5, task="cola", data="files:aaa")])
    assert [column.task for column in results.tasks] == ["cola", "sst2", "mnli"]
    assert len(scopes([record(0.9, data="files:bbb"), record(0.8, data="files:ddd", seed=1)])) == 2


def test_both_splits_of_mnli_are_the_validation() -> None:
    """MNLI stands beside the others."""
    mnli = record(0.8, task="mnli", split="validation_matched+validation_mismatched")
    assert len(scopes([mnli, record(0.9)])) == 1


def test_cost_columns_name_the_device_and_the_mean_seconds() -> None:
    def table(*records: Record) -> ReportTable:
        return method_table(scope_statistics(scope(records)))

    first, second = record(0.9, seconds=2.0), record(0.8, seed=1, seconds=4.0)
    assert texts(table(first, second), "GPU-seconds\na cell") == ["3.0"]
    assert texts(table(first, second), "adapter\nbytes") == ["4,000"]
    on_cpu = record(0.9, seconds=2.0, device="cpu, x86_64, 2 threads")
    assert "CPU-seconds\na cell" in table(on_cpu).heads
    assert "seconds\na cell" in table(on_cpu, second).heads
