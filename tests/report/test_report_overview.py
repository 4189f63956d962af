"""The table of all methods: a row per setting with its rates, values, bytes, scores, calibration and verdict."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean, stdev
from typing import Any

import pytest

from lora_bench import methods
from lora_bench.compare import Comparisons
from lora_bench.records.schema import Epoch, PosteriorInfo, Record, SearchInfo
from lora_bench.records.store import Loaded
from lora_bench.report.content import gather
from lora_bench.report.formats.latex import latex_table
from lora_bench.report.formats.render import csv_table, markdown_table
from lora_bench.report.numbers.frame import rows_of
from lora_bench.report.numbers.overview import MAX_SETTINGS
from lora_bench.report.numbers.tables import ReportTable
from tests.report.report_factory import record

SEEDS = range(5)
LEVELS = {"cola": 0.5, "sst2": 0.9, "stsb": 0.8}
AFTER = {"nll": 0.4, "ece": 0.05, "brier": 0.2}


def calibration(task: str, seed: int) -> dict[str, float | None] | None:
    """None of a regression, as in records."""
    return None if task == "stsb" else {"nll": 0.5 + LEVELS[task] + seed / 100, "ece": 0.1 + seed / 50, "brier": 0.3}


def trained(task: str, seed: int, gain: float = 0.0, edges: tuple[str, ...] = (), **settings: Any) -> Record:
    """A cell whose rate was searched, with its calibration at the epoch of the score."""
    score = LEVELS[task] + gain + seed / 1000
    curve = (Epoch(epoch=1, loss=0.5, metrics={"accuracy": score}, calibration=calibration(task, seed)),)
    search = SearchInfo(role="chosen", settings=("lr",), edges=edges)
    settings = {"params": (9000, 500), "curve": curve, "lr": 5e-4, "select": "held-out", **settings}
    return record(score, task=task, seed=seed, **settings).model_copy(update={"search": search})


def experiment() -> list[Record]:
    """lora, a method with a posterior, a worse one whose rate on CoLA stands at an edge, one of two sizes, the head."""
    posterior = PosteriorInfo(metrics={}, calibration=dict(AFTER), before={}, seconds=1.0)
    records = []
    for task in LEVELS:
        for seed in SEEDS:
            records += [
                trained(task, seed, method="lora", rank=4),
                trained(task, seed, -0.2, ("lr",) if task == "cola" else (), method="xs", rank=8, lr=0.002),
                trained(task, seed, method="vera", rank=64),
                trained(task, seed, method="vera", rank=256),
                trained(task, seed, -0.3, method="head", params=(0, 500)),
            ]
            averaged = None if task == "stsb" else posterior
            records.append(
                trained(task, seed, method="laplace-lora", rank=4).model_copy(update={"posterior": averaged})
            )
    return records


def overview(records: Iterable[Record], compare: Comparisons | None = None, grouped: bool = True) -> list[ReportTable]:
    kinds = methods.by_kind().items() if grouped else ()
    tables = gather(Loaded(tuple(records), ()), compare=compare, kinds=kinds).tables
    return [table for table in tables if table.name.startswith("overview")]


def printed(table: ReportTable) -> dict[str, dict[str, str]]:
    """The fields by setting and heading."""
    heads = [head.replace("\n", " ") for head in table.heads]
    return {row[0].text: dict(zip(heads, (field.text for field in row), strict=True)) for row in table.rows}


def test_rows_stand_in_the_groups_of_the_list_of_methods() -> None:
    (table,) = overview(experiment())
    rows = printed(table)
    assert list(rows) == ["lora r=4", "vera r=64", "vera r=256", "xs r=8", "laplace-lora r=4", "head"]
    order = list(methods.by_kind())
    groups = [row["group"] for row in rows.values()]
    assert groups == sorted(groups, key=lambda group: [*map(str, order)].index(group))
    (plain,) = overview(experiment(), grouped=False)
    assert "group" not in plain.heads
    assert list(printed(plain)) == sorted(rows, key=lambda size: (size.split()[0], size != "vera r=64"))


def test_a_row_has_rates_values_bytes_and_scores() -> None:
    (table,) = overview(experiment())
    rows = printed(table)
    assert (rows["xs r=8"]["rate CoLA"], rows["xs r=8"]["rate SST-2"]) == ("0.002*", "0.002")
    assert any("*: the lowest or the highest that was tried" in note for note in table.notes)
    bytes_of = {entry.cell.method: entry.counts.adapter_bytes for entry in experiment() if entry.counts is not None}
    assert rows["lora r=4"]["trained values"] == "9,000"
    assert rows["lora r=4"]["adapter bytes"] == f"{bytes_of['lora']:,}"
    assert rows["lora r=4"]["CoLA Matthews"] == "50.2 ± 0.2 (5)"
    assert rows["lora r=4"]["average"] == "73.5 ± 0.2 (5)"


def test_calibration_is_averaged_by_seed_over_the_tasks_with_classes() -> None:
    (table,) = overview(experiment())
    rows = printed(table)
    by_seed = [fmean((calibration(task, seed) or {})["nll"] or 0.0 for task in ("cola", "sst2")) for seed in SEEDS]
    assert rows["lora r=4"]["NLL"] == f"{fmean(by_seed):.3f} ± {stdev(by_seed):.3f}"
    assert (rows["lora r=4"]["ECE after"], rows["laplace-lora r=4"]["ECE after"]) == ("", "0.050 ± 0.000")
    data = {(row["size"], row["task"]): row for row in rows_of(table.data)}
    assert data["lora r=4", "average"]["nll"] == pytest.approx(fmean(by_seed))
    assert data["lora r=4", "stsb"]["nll"] is None
    assert any("the mean over CoLA and SST-2" in note for note in table.notes)


def test_a_seed_without_calibration_on_a_task_does_not_count() -> None:
    bare = [
        entry.model_copy(update={"epochs": ()}) if (entry.cell.task, entry.cell.seed) == ("cola", 4) else entry
        for entry in experiment()
    ]
    (table,) = overview(bare)
    by_seed = [fmean((calibration(task, seed) or {})["nll"] or 0.0 for task in ("cola", "sst2")) for seed in range(4)]
    assert printed(table)["lora r=4"]["NLL"] == f"{fmean(by_seed):.3f} ± {stdev(by_seed):.3f}"


def test_differences_and_verdicts_are_those_of_the_comparisons_with_the_reference() -> None:
    content = gather(Loaded(tuple(experiment()), ()))
    (table,) = [table for table in content.tables if table.name.startswith("overview")]
    (family,) = [table for table in content.tables if table.name.startswith("default tiny")]
    compared = {row["size"]: row for row in rows_of(family.data)}
    for row in rows_of(table.data[table.data["task"] == "average"]):
        names = ("difference", "low", "high", "holm", "verdict")
        other = compared.get(row["size"], dict.fromkeys(names))
        assert [row[f"against_{name}"] for name in names] == [other[name] for name in names]
    rows = printed(table)
    assert (rows["xs r=8"]["difference to lora"], rows["xs r=8"]["verdict"]) == ("-20.0", "worse")
    assert rows["lora r=4"]["verdict"] == "—"
    # One setting of a method is compared.
    assert sorted(rows[size]["verdict"] == "—" for size in ("vera r=64", "vera r=256")) == [False, True]


def test_without_the_reference_nothing_is_said_of_differences() -> None:
    (table,) = overview(entry for entry in experiment() if entry.cell.method in ("xs", "vera"))
    assert not {"difference to lora", "verdict"} & {head.replace("\n", " ") for head in table.heads}
    assert not any("lora" in note for note in table.notes)


def test_collapsed_cells_are_counted() -> None:
    one_answer = {"predictions": (1.0,) * 4}
    collapsed = [
        entry.model_copy(update=one_answer) if (entry.cell.method, entry.cell.seed) == ("xs", 1) else entry
        for entry in experiment()
    ]
    (table,) = overview(collapsed)
    said = "3 of 3 cells of xs r=8 on attention (CoLA 1, SST-2 1, STS-B 1) give one answer to all rows"
    assert any(said in note for note in table.notes)


def test_lost_seeds_are_counted_and_said() -> None:
    lost = [
        entry.model_copy(update={"status": "diverged", "score": None, "best": None})
        if (entry.cell.method, entry.cell.task, entry.cell.seed) == ("xs", "sst2", 1)
        else entry
        for entry in experiment()
    ]
    (table,) = overview(lost)
    row = printed(table)["xs r=8"]
    assert row["SST-2 accuracy"].endswith("(4/5)")
    assert row["average"].endswith("(4/5)")
    assert any("lost seeds as 0: xs r=8" in note for note in table.notes)


def test_a_method_that_ran_on_one_task_has_a_row_without_an_average() -> None:
    (table,) = overview([*experiment(), *(trained("sst2", seed, method="bitfit") for seed in SEEDS)])
    row = printed(table)["bitfit"]
    assert (row["average"], row["CoLA Matthews"], row["verdict"]) == ("", "", "")
    assert row["SST-2 accuracy"] == "90.2 ± 0.2 (5)"


def test_it_is_left_out_where_it_would_be_no_overview() -> None:
    lora = [entry for entry in experiment() if entry.cell.method == "lora"]
    assert overview(lora) == []
    ranks = [trained("sst2", seed, method="xs", rank=rank) for seed in SEEDS for rank in range(1, MAX_SETTINGS + 2)]
    assert overview([*lora, *ranks]) == []
    assert overview(experiment(), Comparisons(looks=(5,))) == []


def test_names_from_outside_are_escaped() -> None:
    name = "=a|b<i>"
    (table,) = overview([*experiment(), *(trained("sst2", seed, method=name) for seed in SEEDS)])
    assert "=a\\|b&lt;i&gt;" in markdown_table(table)
    assert "'=a|b<i>" in csv_table(table)
    assert name not in latex_table(table)
