"""What `tests/tools/scaling.py` computes: predicted rows, the file that they share with measured ones, the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_bench.records import store
from lora_bench.records.store import read_records
from tests.robust.robust_kit import lora_bench
from tests.tools.scaling import Row, count_differing, forecast, merged, simulate, table, write_seconds

GRID = ("--preset", "paper", "--task", "rte", "--device", "H100")


def make_row(gpus: int, seconds: float = 10.0) -> Row:
    return Row(
        gpus=gpus,
        cells=2000,
        failed=0,
        seconds=seconds,
        cells_per_second=2000 / seconds,
        efficiency=0.9,
        training_share=0.8,
        idle=(0.1, 0.3),
        driver_cpu=12.0,
        worker_cpu=3456.0,
        write_seconds=0.01,
        differing=7,
        predicted=11.0,
    )


@pytest.fixture
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_simulated_rows_are_what_plan_says(empty_folder: Path) -> None:
    predicted = forecast(GRID, empty_folder / "nothing")
    rows = list(simulate([1, 8, 64], predicted))
    assert all(row.simulated for row in rows)
    assert [row.gpus for row in rows] == [1, 8, 64]
    assert rows[0].efficiency == 1
    assert [row.seconds for row in rows] == sorted((row.seconds for row in rows), reverse=True)
    for row in rows:
        assert row.cells == predicted.cells
        assert row.cells_per_second == pytest.approx(row.cells / row.seconds, rel=0.01)
        assert row.efficiency == pytest.approx(rows[0].seconds / row.seconds / row.gpus, abs=0.01)
        assert row.training_share <= 1
        assert row.idle[0] == pytest.approx(1 - row.training_share, abs=0.01)
        assert row.seconds == row.predicted
    slower = list(simulate([64], predicted, writing=0.5))
    assert slower[0].seconds > 0.5 * predicted.cells
    line = lora_bench("plan", *GRID, "--engine", "ray", "--gpus", "8").out.splitlines()[0]
    assert f"({rows[1].seconds / 60:.0f} min on 8 GPUs" in line


def test_a_file_holds_a_row_of_each_kind_and_number_of_gpus(empty_folder: Path) -> None:
    simulated = next(iter(simulate([2], forecast(GRID, empty_folder / "nothing"))))
    content = merged({"rows": []}, make_row(2), ["--task", "rte"])
    content = merged(content, simulated, GRID)
    content = merged(content, make_row(1), ["--task", "rte"])
    content = json.loads(json.dumps(merged(content, make_row(2, 20.0), ["--task", "rte"])))
    kinds = [(row["gpus"], row["simulated"], row["seconds"]) for row in content["rows"]]
    assert kinds == [(1, False, 10.0), (2, False, 20.0), (2, True, simulated.seconds)]
    assert content["options"] == ["--task", "rte"]
    assert content["simulated_options"] == list(GRID)
    lines = table(content["rows"]).splitlines()
    assert lines[3] == "| 2 | 2,000 | 20.0 | 100.00 | 1.80 | 90% | 20% | 12 | 3,456 | 7 | 11.0 |"
    assert lines[4].startswith("| 2, simulated |")
    assert lines[4].endswith("|  |  |  |  |")
    assert len({line.count("|") for line in lines}) == 1


def test_records_are_compared_and_written_once_more(tmp_path: Path) -> None:
    results = tmp_path / "results"
    trained = lora_bench(
        *("run", "--model", "sample", "--task", "sst2", "--method", "lora", "--rank", "1", "--rank", "2"),
        *("--epochs", "1", "--device", "cpu", "--results", str(results)),
    )
    assert trained.code == 0, trained
    records = {record.id: json.loads(store.record_text(record)) for record in read_records(results).records}
    assert count_differing(records, records) == 0
    first = next(iter(records))
    other = records | {first: records[first] | {"status": "failed"}}
    assert count_differing(other, records) == 1
    assert count_differing({first: records[first]}, records) == 1
    later = {cell_id: record | {"timing": None} for cell_id, record in records.items()}
    assert count_differing(later, records) == 0
    assert 0 < write_seconds(results, tmp_path / "written") < 10
    assert not (tmp_path / "written").exists()


def test_the_committed_table_is_that_of_the_committed_rows() -> None:
    bench = Path(__file__).parents[1] / "results" / "bench"
    rows = json.loads((bench / "scaling.json").read_text(encoding="utf-8"))["rows"]
    assert table(rows) in (bench / "README.md").read_text(encoding="utf-8")
    assert {row["gpus"] for row in rows if not row["simulated"]} == {1, 4}
    assert all(row["differing"] == row["failed"] == 0 for row in rows if not row["simulated"])
