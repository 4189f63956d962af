"""`report --results DIR --against OTHER`: matched cells, differences with intervals, and what is written."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner

from lora_bench.cli.app import app
from lora_bench.errors import NOTHING, SOME_FAILED, USAGE, BenchError
from lora_bench.records.schema import Record
from lora_bench.records.store import record_path, write_record
from lora_bench.report.against import compare_folders, describe
from lora_bench.report.numbers.changes import PAIRED, SEPARATE, all_changes
from lora_bench.report.numbers.matching import match
from lora_bench.testing import make_epochs
from tests.report.report_factory import record, shown, small

RANKS = (4, 8, 16)


def grid(gain: float = 0.0, noise: float = 0.0, seeds: Iterable[int] = range(4), **settings: Any) -> list[Record]:
    """lora with three ranks; `noise` varies between the cells."""
    draw = random.Random(3)
    base: dict[str, Any] = {"method": "lora", "a": None, "b": None}
    return [
        record(
            0.8 + 0.01 * rank / 16 + 0.001 * seed + gain + draw.gauss(0, noise),
            **(base | {"rank": rank, "seed": seed} | settings),
        )
        for rank in RANKS
        for seed in seeds
    ]


def fill(folder: Path, records: Iterable[Record]) -> Path:
    for each in records:
        write_record(folder, each)
    return folder


def text_of(new: Sequence[Record], old: Sequence[Record]) -> str:
    return "\n".join(describe(match(new, old), "A", "B").answer)


def test_the_same_grid_twice_is_the_same() -> None:
    matched = match(small(), small())
    assert (len(matched.pairs), matched.only_new, matched.only_old, dict(matched.fields)) == (len(small()), (), (), {})
    assert not matched.status_changes and not matched.facts
    for changes in all_changes(matched, 0.01):
        assert changes.same == len(changes.pairs) and changes.largest == 0
        assert changes.mean is not None and (changes.mean.low, changes.mean.high) == (0, 0)
        tested = changes.settings[changes.settings["seeds"] == "3"]
        assert set(tested["verdict"]) == {"equivalent"}
    assert "36 of 36 have the same losses, metrics and predictions to the last bit" in text_of(small(), small())


def test_scores_in_different_metrics_are_not_compared() -> None:
    new = grid()
    old = [
        each.model_copy(
            update={
                "metric": "f1",
                "epochs": [epoch.model_copy(update={"metrics": {"f1": 0.5}}) for epoch in each.epochs],
            }
        )
        if each.cell.rank == 4
        else each
        for each in grid()
    ]
    matched = match(new, old)
    assert (len(matched.pairs), len(matched.only_new), len(matched.only_old)) == (8, 4, 4)
    (changes,) = all_changes(matched, 0.01)
    assert (changes.metric, len(changes.pairs), set(changes.settings["rank"])) == (new[0].metric, 8, {8, 16})
    text = text_of(new, old)
    task, metric = new[0].cell.task, new[0].metric
    assert f"The metric of {task} is {metric} in A, {metric}; f1 in B; different metrics are not compared." in text
    assert "metric of" not in text_of(new, [*new, *grid(task="mrpc")])


def test_what_is_in_one_folder_only_is_counted() -> None:
    new, old = grid(seeds=(0, 1, 2)), grid(seeds=(1, 2, 3, 4))
    matched = match(new, old)
    assert (len(matched.pairs), len(matched.only_new), len(matched.only_old)) == (6, 3, 6)
    assert "6 cells are in both; 3 only in A, 6 only in B." in text_of(new, old)


def test_interval_of_paired_seeds_is_students_of_the_differences() -> None:
    new, old = grid(0.01, noise=0.004), grid()
    (changes,) = all_changes(match(new, old), 0.01)
    assert set(changes.settings["pairing"]) == {PAIRED}
    differences = {
        rank: [(a.score or 0) - (b.score or 0) for a, b in zip(new, old, strict=True) if a.cell.rank == rank]
        for rank in RANKS
    }
    for _, row in changes.settings.iterrows():
        mean = fmean(differences[row["rank"]])
        assert row["difference"] == pytest.approx(mean, abs=1e-12)
        wanted = stats.ttest_1samp(differences[row["rank"]], 0)
        assert row["high"] == pytest.approx(wanted.confidence_interval(0.95).high, rel=1e-9)
        assert row["p"] == pytest.approx(wanted.pvalue, rel=1e-9)
    assert changes.mean is not None
    overall = fmean(map(fmean, differences.values()))
    assert changes.mean.difference == pytest.approx(overall, abs=1e-12)
    parts = [stdev(values) ** 2 / 4 / len(RANKS) ** 2 for values in differences.values()]
    degrees = sum(parts) ** 2 / sum(part**2 / 3 for part in parts)  # Satterthwaite's
    half = stats.t.ppf(0.975, degrees) * math.sqrt(sum(parts))
    assert changes.mean.high - overall == pytest.approx(half, rel=1e-9)


def test_other_seeds_are_compared_as_two_samples() -> None:
    (changes,) = all_changes(match(grid(0.05, seeds=range(4)), grid(seeds=range(10, 14))), 0.01)
    assert set(changes.settings["pairing"]) == {SEPARATE} and not changes.pairs
    assert set(changes.settings["seeds"]) == {"4, 4"}
    assert set(changes.settings["verdict"]) == {"better"}
    assert changes.mean is not None and changes.mean.low > 0.03


def test_fewer_than_three_seeds_are_not_tested() -> None:
    (changes,) = all_changes(match(grid(0.05, seeds=(0,)), grid(seeds=(0,))), 0.01)
    assert set(changes.settings["verdict"]) == {"not tested"}
    assert changes.mean is not None and math.isnan(changes.mean.low)
    assert "no setting has two seeds" in text_of(grid(0.05, seeds=(0,)), grid(seeds=(0,)))


def test_a_field_in_which_all_cells_differ_is_named_and_not_matched() -> None:
    new, old = grid(precision="bf16"), grid(precision="float32")
    matched = match(new, old)
    assert dict(matched.fields) == {"precision": ("bf16", "float32")} and len(matched.pairs) == len(new)
    assert "All cells differ in precision: bf16 in A, float32 in B" in text_of(new, old)
    # with both values in one folder it tells cells apart
    assert len(match(new, [*old, *grid(precision="bf16", seeds=(0,))]).pairs) == len(RANKS)


def test_losses_tell_apart_what_has_equal_scores() -> None:
    epochs = make_epochs(0.5, 0.9)
    other = (epochs[0].model_copy(update={"loss": 0.1}), *epochs[1:])
    (pair,) = match([record(curve=epochs)], [record(curve=other)]).pairs
    assert not pair.is_same and pair.difference == 0


def test_cells_that_ended_in_another_way_are_listed() -> None:
    lost = record(None, status="diverged", reason="loss is not finite at step 3")
    report = describe(match([lost, record(0.5, seed=1)], [record(0.5), record(0.5, seed=1)]), "A", "B")
    (table,) = (table for table in report.tables if table.name == "against-status")
    assert [field.text for field in table.rows[0]][-3:] == ["diverged", "done", "loss is not finite at step 3"]
    assert "1 cell ended in another way (table below)." in report.answer


def test_versions_and_data_that_differ_are_named() -> None:
    old = [record(seed=seed) for seed in range(3)]
    new = [each.model_copy(update={"environment": {**each.environment, "torch": "9"}}) for each in old]
    matched = match(new, old)
    assert dict(matched.facts) == {"torch": ("9", "")}
    assert old[0].data is not None
    data = old[0].data.model_copy(update={"fingerprint": "other"})
    assert "Not all data have the same fingerprint" in text_of([old[0].model_copy(update={"data": data})], old[:1])


def test_files_and_what_is_printed(tmp_path: Path, console: Console) -> None:
    new, old = fill(tmp_path / "new", grid(0.01)), fill(tmp_path / "old", grid())
    page = compare_folders(new, old, tmp_path / "out", console)
    assert page == tmp_path / "out" / "against.html" and shown(console).endswith(str(page))
    written = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    tables = {f"against-{name}.csv" for name in ("tasks", "settings", "cells")}
    assert written == {"against.html", "against.md", "against.json", *tables}
    content = json.loads((tmp_path / "out" / "against.json").read_text())
    assert content["title"] == "new against old"
    rows = next(table["rows"] for table in content["tables"] if table["name"] == "against-settings")
    assert [row["difference"] for row in rows] == pytest.approx([0.01] * 3)
    assert {row["verdict"] for row in rows} == {"better"}
    assert "By setting" in shown(console) and "## By setting" in (tmp_path / "out" / "against.md").read_text()
    before = page.read_bytes()
    compare_folders(new, old, tmp_path / "out", console)
    assert page.read_bytes() == before and str(tmp_path).encode() not in before


def test_names_from_outside_are_escaped(tmp_path: Path, console: Console) -> None:
    evil = "<script>alert(1)</script>"
    new = fill(tmp_path / evil.replace("/", "_"), [record(None, status="failed", reason=evil)])
    page = compare_folders(new, fill(tmp_path / "old", [record()]), tmp_path / "out", console)
    assert "<script" not in page.read_text()


def test_what_cannot_be_compared_is_refused(tmp_path: Path, console: Console) -> None:
    new, old = fill(tmp_path / "new", grid()), fill(tmp_path / "old", grid())
    for against, code in ((new, USAGE), (tmp_path / "empty", NOTHING)):
        with pytest.raises(BenchError) as caught:
            compare_folders(new, against, tmp_path / "out", console)
        assert caught.value.code == code
    record_path(old, grid()[0].id).write_text("{}")
    with pytest.raises(BenchError) as caught:
        compare_folders(new, old, tmp_path / "out", console)
    assert caught.value.code == SOME_FAILED and not (tmp_path / "out").exists()
    ended = CliRunner().invoke(app, ["report", "--results", str(new), "--against", str(old), "--vs-paper"])
    assert ended.exit_code == USAGE and "exclude each other" in ended.output


def test_the_margin_is_that_of_the_config(tmp_path: Path) -> None:
    new, old = fill(tmp_path / "new", grid(0.011)), fill(tmp_path / "old", grid())
    (new / "compare.yaml").write_text("margin: 2.0")
    ended = CliRunner().invoke(app, ["report", "--results", str(new), "--against", str(old)], env={"COLUMNS": "200"})
    assert ended.exit_code == 0 and "better, within the margin" in ended.output
