"""NLL, ECE and Brier: scikit-learn's and a plain loop's values, of the trainer's own logits, in records and the CSV."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from lora_bench.engine.calibration import calibration, row_values
from lora_bench.records.schema import Record
from lora_bench.records.store import COLUMNS, metrics_frame
from lora_bench.testing import TinyBench, make_cell, make_epochs, make_record, make_tokens
from tests.engine.engine_factory import backbone, table, trainer

BINS = 15  # as the documentation says
Floats = NDArray[np.float64]


def plain(logits: Floats, labels: NDArray[np.int64]) -> dict[str, float]:
    """The metrics of one cell's logits `[rows, classes]` from their definitions."""
    p = softmax(logits, axis=1)
    classes = range(logits.shape[1])
    error = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [row for row in range(len(p)) if low < p[row].max() <= high]
        if inside:
            accuracy = np.mean([p[row].argmax() == labels[row] for row in inside])
            error += len(inside) / len(p) * abs(accuracy - np.mean([p[row].max() for row in inside]))
    brier = sum(brier_score_loss(labels == c, p[:, c], pos_label=True) for c in classes)
    return {"nll": log_loss(labels, p, labels=list(classes)), "ece": error, "brier": brier}


def ours(logits: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """The metrics of the cells' logits `[K, rows, classes]`."""
    return calibration(row_values(logits, labels).numpy(), (logits.argmax(-1) == labels).numpy())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 60), st.sampled_from([0.1, 1.0, 4.0]))
def test_they_are_scikit_learns_and_a_loops(seed: int, classes: int, rows: int, size: float) -> None:
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(3, rows, classes)) * size, random.integers(0, classes, rows)
    for cell, values in zip(logits, ours(torch.from_numpy(logits), torch.from_numpy(labels)), strict=True):
        assert values == pytest.approx(plain(cell, labels), rel=1e-9, abs=1e-12)


def test_certain_and_tied_rows() -> None:
    """Probabilities of exactly 0 and 1, for which scikit-learn's NLL stops at -log of a small number; equal logits."""
    certain = torch.tensor([[[1000.0, 0.0], [0.0, 1000.0], [1000.0, 0.0], [1e5, -1e5]]])
    (found,) = ours(certain, torch.tensor([0, 1, 1, 0]))
    assert found == {"nll": 250.0, "ece": 0.25, "brier": 0.5}
    single = torch.tensor([[[3e38, -3e38]]])  # float32
    (wrong,) = ours(single, torch.tensor([1]))
    assert wrong == pytest.approx({"nll": 6e38, "ece": 1.0, "brier": 2.0})
    (tied,) = ours(torch.full((1, 4, 3), 7.0), torch.tensor([0, 1, 2, 0]))  # the first of equal classes is predicted
    assert tied == pytest.approx({"nll": np.log(3), "ece": 1 / 2 - 1 / 3, "brier": 2 / 3})


def test_edges_belong_to_the_bin_below() -> None:
    confidence = np.array([1 / 3, np.nextafter(1 / 3, 1), 1.0])
    values = np.stack([np.zeros(3), np.zeros(3), confidence])[:, None]
    (found,) = calibration(values, np.array([[True, False, True]]))
    assert found["ece"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    (together,) = calibration(values[..., [0, 0]], np.array([[True, False]]))
    assert together["ece"] == pytest.approx(abs(1 - 2 / 3) / 2)


def test_a_row_that_is_not_finite_leaves_no_value() -> None:
    logits = torch.tensor([[[0.0, 1.0], [0.0, math.inf]], [[0.0, 1.0], [0.0, 2.0]]])
    first, second = ours(logits, torch.tensor([1, 0]))
    assert all(map(math.isnan, first.values()))
    assert all(map(math.isfinite, second.values()))
    assert all(map(math.isnan, calibration(np.empty((3, 1, 0)), np.empty((1, 0), dtype=bool))[0].values()))


@pytest.mark.parametrize("task", ["sst2", "mnli"])
def test_a_training_records_those_of_its_logits(task: str) -> None:
    cells = [make_cell("lora", task=task, select="last"), make_cell("red", task=task, select="last")]
    held_out = table(make_tokens(11, 5, task))
    trained = trainer(cells, backbone(), held_out=held_out)
    progress = trained.run()
    for name, rows in (("calibration", trained.evaluation.table), ("held_out_calibration", held_out)):
        with trained.pack, torch.no_grad():
            trained.pack.compose()
            logits = trained.pack.logits(next(rows.batches([np.arange(len(rows))]))).numpy()
        for cell, cells_logits in zip(progress, logits, strict=True):
            recorded = getattr(cell, name)
            assert len(recorded) == 2
            assert recorded[-1] == pytest.approx(plain(cells_logits, rows.labels.numpy()), rel=1e-9)
            assert recorded[0] != recorded[1]


def test_records_and_the_csv_have_them(tmp_path: Path) -> None:
    bench = TinyBench.create(tmp_path, "sst2", "stsb")
    classes, values = sorted(
        (*bench.run([{"method": "lora"}], task="sst2"), *bench.run([{"method": "lora"}], task="stsb")),
        key=lambda record: record.cell.task,
    )
    assert [set(epoch.calibration or ()) for epoch in classes.epochs] == [{"nll", "ece", "brier"}] * 2
    assert all(epoch.calibration is None for epoch in values.epochs)
    by_task = {row["task"]: row for row in bench.csv()}
    last = classes.epochs[-1].calibration
    assert last is not None
    assert last["nll"] is not None
    assert float(by_task["sst2"]["nll_last"]) == pytest.approx(last["nll"])
    assert by_task["stsb"]["ece_best"] == ""


def test_the_csv_has_the_columns_only_where_a_record_has_the_values() -> None:
    old = make_record(0.5, epochs=make_epochs(0.4, 0.5))
    assert Record.model_validate_json(old.model_dump_json(exclude={"epochs": {"__all__": {"calibration"}}})) == old
    epochs = [epoch.model_copy(update={"calibration": {"nll": 0.7, "ece": None}}) for epoch in old.epochs]
    new = make_record(0.5, cell=make_cell("lora", seed=9), epochs=epochs, best_epoch=2)
    assert list(metrics_frame([old]).columns) == list(COLUMNS)
    table = metrics_frame([old, new]).to_csv(index=False)
    header, *rows = csv.reader(io.StringIO(table))
    assert header == [*COLUMNS, "nll_best", "nll_last"]
    assert {tuple(row[-2:]) for row in rows} == {("", ""), ("0.7", "0.7")}
