"""The frame, what is pooled and what is not, and every number against pandas or arithmetic by hand."""

from __future__ import annotations

import random
from dataclasses import astuple
from typing import Any

import pandas as pd
import pytest
from report_factory import grid, record, small

from lora_bench.report.captions import choice_notes
from lora_bench.report.frame import SETTINGS, frame
from lora_bench.report.slots import Column, Entry, average, entry, percent, pieces
from lora_bench.report.tables import Table, method_table, rank_tables, tables, unfinished
from lora_bench.store import COLUMNS, Status

SST2 = Column("sst2", "accuracy")


def texts(table: Table, head: str) -> list[str]:
    at = table.heads.index(head)
    return [row[at].text for row in table.rows]


def test_frame_has_the_columns_of_metrics_csv_and_a_row_a_record() -> None:
    data = frame(small())
    assert list(data.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert {"score", "precision", "status", "split", "start", "notes", *SETTINGS} <= set(data.columns)
    assert len(data) == len(small())
    assert list(data["id"]) == sorted(data["id"])


def test_frame_types() -> None:
    data = frame(small())
    assert str(data["rank"].dtype) == str(data["seed"].dtype) == "Int64"
    assert str(data["score"].dtype) == str(data["lr"].dtype) == "float64"
    assert str(data["method"].dtype) == "string"
    assert data.loc[data["method"] == "head", "rank"].isna().all()


def test_frame_of_nothing_is_empty() -> None:
    assert frame([]).empty
    assert tables(frame([])) == ()


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_unfinished_cells_keep_their_row_without_a_score(status: Status) -> None:
    data = frame([record(0.99, status=status), record(0.5, seed=1)])
    assert len(data) == 2
    assert data.loc[data["status"] == status, "score"].isna().all()
    (piece,) = pieces(data)
    assert piece.columns[SST2][0].entry == Entry(0.5, None, 0.5, 1, 2)


def test_a_cell_without_a_score_is_counted() -> None:
    (piece,) = pieces(frame([record(None), record(0.5, seed=1)]))
    assert piece.columns[SST2][0].entry.text() == "50.0 (1/2)†"


def test_slots_match_pandas() -> None:
    data = frame(grid(tasks=("cola", "sst2")))
    whole = data.fillna({"rank": 0, "a": 0, "b": 0})
    by_hand = whole.groupby(["task", "method", "rank", "a", "b"])["score"].agg(
        ["mean", "std", "median", "count", "size"]
    )
    (piece,) = pieces(data)
    got = {
        (column.task, slot.method, slot.rank or 0, slot.a or 0, slot.b or 0): astuple(slot.entry)
        for column, slots in piece.columns.items()
        for slot in slots
    }
    assert len(got) == len(by_hand)
    for key, *wanted in by_hand.itertuples():
        assert got[key] == pytest.approx(tuple(wanted))


def test_average_row_matches_pandas() -> None:
    data = frame(grid(tasks=("cola",)))
    mini = data[(data["method"] == "mini") & (data["rank"] == 16)]
    mean = mini.groupby(["a", "b"])["score"].mean().mean()
    by_seed = mini.pivot(index="seed", columns=["a", "b"], values="score").dropna().mean(axis=1)
    (piece,) = pieces(data)
    table = rank_tables(piece)[0]
    assert table.rows[-1][0].text == "average"
    assert table.rows[-1][4].text == f"{100 * mean:.1f} ± {100 * by_seed.std():.1f} ({len(by_seed)}/5)"
    assert len(by_seed) < 5


def test_average_by_hand() -> None:
    scores = {(8, 0): 0.5, (8, 1): 0.7, (16, 0): 0.7, (16, 1): 0.8}
    (piece,) = pieces(frame(record(score, a=a, b=a, seed=seed) for (a, seed), score in scores.items()))
    got = average(piece.columns[SST2])
    assert astuple(got) == pytest.approx((0.675, pd.Series([0.6, 0.75]).std(), 0.675, 2, 2))


def test_average_over_seeds_that_no_row_shares_has_no_spread() -> None:
    rows = [record(0.5, a=8), record(None, status="failed", a=16), record(None, status="failed", a=8, seed=1)]
    (piece,) = pieces(frame([*rows, record(0.7, a=16, seed=1)]))
    assert average(piece.columns[SST2]).text() == "60.0 (0/2)†"


def test_uneven_average_is_said() -> None:
    rows = [record(0.5, a=8), record(0.6, a=16), record(0.7, a=8, rank=8)]
    (piece,) = pieces(frame(rows))
    table = rank_tables(piece)[0]
    assert texts(table, "r=8") == ["70.0 (1)†", "", "70.0 (1)†"]
    assert table.notes == ("The averages are over unequal sets of (a, b): 1 of 2 at r=8.",)


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
def test_entry_text(scores: list[float], total: int, text: str) -> None:
    assert entry(scores, total).text() == text


def test_there_is_no_negative_zero() -> None:
    assert percent(-0.0001) == "0.0"


def test_learning_rates_are_not_pooled() -> None:
    good, bad = (0.90, 0.91, 0.92), (0.80, 0.81, 0.99)
    rows = [record(score, seed=seed, lr=1e-3) for seed, score in enumerate(good)]
    rows += [record(score, seed=seed, lr=1e-2) for seed, score in enumerate(bad)]
    rows += [record(None, status="diverged", seed=seed, lr=1.0) for seed in range(3)]
    (piece,) = pieces(frame(rows))
    (slot,) = piece.columns[SST2]
    assert slot.entry.text() == "91.0 ± 1.0 (3)"
    assert (slot.settings["lr"], slot.tried, slot.varying) == (1e-3, 3, ("lr",))
    assert choice_notes([slot]) == (
        "Each entry is the best of 3 learning rates, by the mean of the reported scores (which flatters it).",
        "Under settings not shown, 3 more cells have no score.",
    )
    assert method_table(piece).notes == rank_tables(piece)[0].notes == choice_notes([slot])
    assert rank_tables(piece)[0].data[0]["lr"] == 1e-3


def test_choice_over_several_settings_names_them() -> None:
    rows = [record(0.5, lr=1e-3), record(0.6, lr=1e-2, epochs=3), record(0.7, rank=8), record(0.1, rank=8, epochs=3)]
    (piece,) = pieces(frame([*rows, record(0.7, rank=16)]))
    where, how = (
        "Where several were run, an entry is the best of",
        "by the mean of the reported scores (which flatters it).",
    )
    assert choice_notes(piece.columns[SST2]) == (
        f"{where} 2 numbers of epochs, {how}",
        f"{where} 2 settings (epochs, lr), {how}",
    )


def test_every_setting_failed() -> None:
    rows = [record(None, status="failed", seed=seed, lr=lr) for seed in range(2) for lr in (1e-3, 1e-2)]
    (piece,) = pieces(frame(rows))
    (slot,) = piece.columns[SST2]
    assert (slot.entry.text(), slot.hidden_failures) == ("— (0/2)", 2)
    assert rank_tables(piece)[0].rows[-1][2].text == "— (0/2)"


@pytest.mark.parametrize(
    "other", [{"model": "other"}, {"data": "other"}, {"select": "last"}, {"split": "test"}, {"start": "mnli"}]
)
def test_what_cannot_be_compared_is_another_table(other: dict[str, Any]) -> None:
    found = pieces(frame([record(0.5), record(0.9, seed=1, **other)]))
    assert len(found) == 2
    assert len({piece.title for piece in found}) == 2
    assert all(piece.columns[SST2][0].tried == 1 for piece in found)


def test_head_stands_beside_every_target_set() -> None:
    rows = [record(0.9), record(0.8, targets="qv"), record(0.7, method="head")]
    assert [[slot.method for slot in piece.columns[SST2]] for piece in pieces(frame(rows))] == [["head", "mini"]] * 2


def test_head_alone_has_a_table_and_no_ranks() -> None:
    (piece,) = pieces(frame([record(0.7, method="head")]))
    assert piece.title == "tiny, no adapter"
    assert rank_tables(piece) == []
    assert texts(method_table(piece), "method") == ["head"]


def test_published_start_is_another_row_and_default_is_none() -> None:
    rows = [record(0.9), record(0.8, seed=1, init="default"), record(0.7, init="published")]
    (piece,) = pieces(frame(rows))
    assert [slot.label for slot in piece.columns[SST2]] == ["mini", "mini (published start)"]
    assert piece.columns[SST2][0].total == 2


def test_method_table() -> None:
    table = method_table(pieces(frame(small()))[0])
    assert table.heads[:6] == ("method", "rank", "a", "b", "CoLA\nMatthews", "SST-2\naccuracy")
    assert texts(table, "method") == ["head", "lora", "mini", "mini", "mini", "mini"]
    assert texts(table, "SST-2\naccuracy")[:3] == ["71.0 ± 1.0 (3)", "92.5 ± 0.7 (2/3)†", "91.5 ± 1.0 (3)"]
    assert texts(table, "adapter\nparams")[:3] == ["0", "9,000", "1,000"]
    assert texts(table, "head\nparams")[0] == "592,130"
    assert texts(table, "no\nscore") == ["0", "1", "0", "0", "0", "0"]
    assert [row[5].strong for row in table.rows] == [False, True, False, False, False, False]


def test_bold_is_for_all_that_print_the_same_best() -> None:
    table = method_table(pieces(frame([record(0.90001), record(0.90002, rank=8), record(0.8, rank=16)]))[0])
    assert [row[4].strong for row in table.rows] == [True, True, False]


def test_parameters_that_differ_by_task_are_a_span() -> None:
    rows = [record(0.9, params=(10, 592_130)), record(0.9, task="stsb", params=(10, 591_361))]
    assert texts(method_table(pieces(frame(rows))[0]), "head\nparams") == ["591,361–592,130"]
    assert texts(method_table(pieces(frame([record(0.9, params=None)]))[0]), "head\nparams") == ["—"]


def test_rank_tables() -> None:
    mini, others = rank_tables(pieces(frame(small()))[0])[2:]
    assert mini.title == "SST-2 (accuracy) by rank: mini; tiny, attention"
    assert mini.heads == ("a", "b", "r=4", "r=8")
    assert texts(mini, "a") == ["8", "16", "average"]
    assert texts(mini, "r=8") == ["91.9 ± 1.0 (3)", "92.0 ± 1.0 (3)", "91.9 ± 1.0 (3)"]
    assert mini.footer == 1
    assert (others.heads, texts(others, "r=4")) == (("method", "r=4"), ["92.5 ± 0.7 (2/3)†"])


def test_tasks_stand_in_the_order_of_glue_then_by_name() -> None:
    rows = [record(0.9, task=task) for task in ("zzz", "aaa", "rte", "cola")]
    assert [column.task for column in pieces(frame(rows))[0].columns] == ["cola", "rte", "aaa", "zzz"]


def test_unfinished_lists_the_cell_and_the_reason() -> None:
    (table,) = unfinished(frame(small()))
    assert [field.text for field in table.rows[0]][1:] == [
        "sst2", "lora", "4", "", "", "2", "0.001", "failed", "out of memory",
    ]  # fmt: skip
    assert unfinished(frame([record(0.5)])) == []


def test_a_seed_of_63_bits_survives() -> None:
    assert list(frame([record(0.9, seed=2**63 - 1)])["seed"]) == [2**63 - 1]


def test_order_of_records_changes_nothing() -> None:
    records = small()
    shuffled = random.Random(1).sample(records, len(records))
    assert tables(frame(records)) == tables(frame(shuffled))


def test_tasks_of_one_folder_share_a_table() -> None:
    """A folder's data are hashed by task; only two contents of one task are kept apart."""
    cola = record(0.5, task="cola", data="files:aaa")
    (piece,) = pieces(frame([record(0.9, data="files:bbb"), cola, record(0.8, task="mnli", data="files:ccc")]))
    assert [column.task for column in piece.columns] == ["cola", "sst2", "mnli"]
    two = frame([record(0.9, data="files:bbb"), record(0.8, data="files:ddd", seed=1)])
    assert len(pieces(two)) == 2


def test_both_splits_of_mnli_are_the_validation() -> None:
    """MNLI stands beside the others."""
    mnli = record(0.8, task="mnli", split="validation_matched+validation_mismatched")
    assert len(pieces(frame([mnli, record(0.9)]))) == 1
