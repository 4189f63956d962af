"""What a record says of how its number was made: the slice held out, MNLI's halves, full fine-tuning, odd numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.records.store import read_records
from lora_bench.testing import (
    TRAIN_ROWS,
    VALIDATION_ROWS,
    QuietView,
    TinyBench,
    assert_same_numbers,
    make_data,
    make_model,
)

TASKS = ("sst2", "stsb", "mnli", "cola", "mrpc")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=40)


@pytest.fixture(scope="module")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder."""
    return make_data(tmp_path_factory.mktemp("data"), *TASKS)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("order", [("best", "held-out"), ("held-out", "best")])
def test_held_out_trains_on_fewer_rows_and_chooses_by_them(bench: TinyBench, order: tuple[str, str], seed: int) -> None:
    records = bench.run([{"method": "lora", "rank": 4, "select": list(order)}], epochs=4, seed=seed)
    best, held = sorted(records, key=lambda record: record.cell.select)
    assert (best.reason, held.reason) == (None, None)
    assert best.data is not None
    assert held.data is not None
    assert best.data.train_rows == TRAIN_ROWS
    assert held.data.train_rows == TRAIN_ROWS - 4
    assert best.data.eval_rows == held.data.eval_rows == VALIDATION_ROWS
    assert all(epoch.held_out is None for epoch in best.epochs)
    slices = [epoch.held_out["accuracy"] for epoch in held.epochs if epoch.held_out]
    assert len(slices) == 4
    values = [value for value in slices if value is not None]
    assert held.score_epoch == 1 + values.index(max(values))
    assert held.score == held.epochs[held.score_epoch - 1].metrics["accuracy"]
    assert held.best == max(epoch.metrics["accuracy"] or 0 for epoch in held.epochs)
    assert best.score == best.best
    assert (held.protocol.select, best.protocol.select) == ("held-out", "best")
    assert best.epochs[0].loss != held.epochs[0].loss


def test_mnli_is_both_halves_and_each(bench: TinyBench) -> None:
    (record,) = bench.run([{"method": "lora", "rank": 4, "task": "mnli"}])
    assert record.status == "done"
    assert len(record.predictions) == 2 * VALIDATION_ROWS
    assert record.protocol.split == "validation_matched+validation_mismatched"
    for epoch in record.epochs:
        both, one, other = (epoch.metrics[name] for name in ("accuracy", "accuracy_matched", "accuracy_mismatched"))
        assert both == pytest.approx((one + other) / 2)  # type: ignore[operator]
    (row,) = bench.csv()
    best = record.epochs[(record.best_epoch or 0) - 1].metrics
    assert float(row["accuracy_matched_best"]) == best["accuracy_matched"]


def test_a_regression_predicts_numbers(bench: TinyBench) -> None:
    (record,) = bench.run([{"method": "mini", "rank": 4, "a": 8, "b": 8, "task": "stsb"}])
    assert record.metric == "pearson"
    assert len(set(record.predictions)) > 3
    assert -1 <= (record.score or 0) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_every_kind_of_task_trains(bench: TinyBench, task: str) -> None:
    (record,) = bench.run([{"method": "head", "task": task}], epochs=1)
    assert record.status == "done"
    assert set(record.epochs[0].metrics) >= {record.metric}


def test_full_fine_tuning_leaves_the_backbone_as_it_was(bench: TinyBench, tmp_path: Path) -> None:
    """The runner keeps one backbone for all packs."""
    lora = {"method": "lora", "rank": 4}
    full, after = bench.run([{"method": "full", "lr": 1e-3}, lora])
    (alone,) = TinyBench(bench.model, bench.rows, tmp_path / "alone").run([lora])
    assert_same_numbers(after, alone)
    assert full.status == "done"
    assert full.counts is not None
    assert full.counts.adapter_params > 10_000
    assert full.epochs[-1].loss != after.epochs[-1].loss


@pytest.mark.parametrize("method", ["lora", "full"])
def test_bfloat16_trains(bench: TinyBench, method: str) -> None:
    (record,) = bench.run([{"method": method}], precision="bf16", lr=1e-3)
    assert record.status == "done"
    assert all(math.isfinite(epoch.loss or math.nan) for epoch in record.epochs)


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_cell_that_overflows_has_a_record_that_can_be_read(bench: TinyBench, task: str) -> None:
    """With one step a epoch the loss is finite, and the weights after it are not."""
    settings: dict[str, Any] = {"precision": "float32", "batch_size": TRAIN_ROWS, "warmup": 0.0, "epochs": 1}
    (record,) = bench.run([{"method": "lora", "lr": 1e38, "task": task}], **settings)
    loaded = read_records(bench.results)
    assert loaded.broken == ()
    assert loaded.records == (record,)
    assert bench.plan([{"method": "lora", "lr": 1e38, "task": task}], **settings).todo == ()


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_cell_whose_outputs_are_no_numbers_is_not_done(bench: TinyBench, task: str) -> None:
    """The class of a NaN is no prediction."""
    settings: dict[str, Any] = {
        "precision": "float32",
        "batch_size": TRAIN_ROWS,
        "warmup": 0.0,
        "epochs": 1,
        "task": task,
    }
    (record,) = bench.run([{"method": "lora", "lr": 1e38}], **settings)
    assert record.status == "diverged"
    assert record.score is None


def test_a_diverged_cell_is_recorded_beside_good_ones(bench: TinyBench) -> None:
    bad, good = bench.run([{"method": "lora", "lr": [1e30, 1e-2]}], precision="float32")
    assert (bad.status, good.status) == ("diverged", "done")
    assert bad.score is None
    assert "epoch 1" in (bad.reason or "")
    assert [cell.lr for cell in bench.plan([{"method": "lora", "lr": [1e30, 1e-2]}], precision="float32").todo] == []
    assert read_records(bench.results).broken == ()


def test_a_tokenizer_of_another_model_is_refused(bench: TinyBench, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="embeddings") as error:
        bench.run([{"method": "head"}], model=str(make_model(tmp_path / "small", vocab_size=20)))
    assert error.value.code == MISSING


def test_sequences_longer_than_the_model_takes_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    rows = make_data(tmp_path / "data")
    path = rows / "sst2" / "train.jsonl"
    path.write_text(path.read_text() + '{"sentence": "' + "w1 " * 50 + '", "label": 0}\n')
    bench = TinyBench(tiny_model, rows, tmp_path / "results")
    with pytest.raises(BenchError, match="--max-length 38") as error:
        bench.run([{"method": "head"}], max_length=64)
    assert error.value.code == USAGE
    assert [record.status for record in bench.run([{"method": "head"}], max_length=38)] == ["done"]


def test_the_view_is_told_of_every_cell(bench: TinyBench) -> None:
    view = QuietView()
    records = bench.follow(bench.plan([{"method": ["head", "lora"], "seed": [0, 1]}]), view)
    assert view.packs == 2
    assert sorted(view.ended) == sorted(record.id for record in records)
