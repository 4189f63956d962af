"""The metrics are scikit-learn's and scipy's, quietly, and `evaluate` gives the same."""

from __future__ import annotations

import math
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from lora_bench.tasks import TASKS, Task, get
from lora_bench.tasks.metrics import metric_class, score, task_metric

NAN = float("nan")
MNLI = {"validation_matched": slice(0, 2), "validation_mismatched": slice(2, 5)}
pairs_of_classes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
number = st.one_of(st.integers(-8, 8).map(float), st.floats(-100, 100, width=32))
pairs_of_numbers = st.lists(st.tuples(number, number), min_size=2, max_size=40)


def same(found: dict[str, float], wanted: dict[str, float]) -> bool:
    assert list(found) == list(wanted) and all(type(value) is float for value in found.values())
    return all(math.isclose(found[k], wanted[k]) or (math.isnan(found[k]) and math.isnan(wanted[k])) for k in wanted)


def quietly(function: Any, *args: Any, **more: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(function(*args, **more))


@settings(max_examples=50)
@given(pairs_of_classes)
def test_classes_as_scikit_learn_has_them(pairs: list[tuple[int, int]]) -> None:
    found, true = np.array(pairs).T
    accuracy = sk.accuracy_score(true, found)
    matthews = quietly(sk.matthews_corrcoef, true, found)
    assert same(score(get("cola"), found, true), {"matthews": matthews, "accuracy": accuracy})
    assert same(score(get("mrpc"), found, true), {"accuracy": accuracy, "f1": quietly(sk.f1_score, true, found)})
    assert same(score(get("rte"), found, true), {"accuracy": accuracy})


@settings(max_examples=50)
@given(pairs_of_numbers)
def test_scores_as_scipy_has_them(pairs: list[tuple[float, float]]) -> None:
    found, true = np.array(pairs).T
    pearson = quietly(lambda: stats.pearsonr(found, true).statistic)
    spearman = quietly(lambda: stats.spearmanr(found, true).statistic)
    assert same(score(get("stsb"), found, true), {"pearson": pearson, "spearman": spearman})


def test_matthews_and_f1_by_hand() -> None:
    found, true = [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1]
    assert score(get("cola"), found, true)["matthews"] == pytest.approx((2 * 2 - 1) / 9)
    assert score(get("qqp"), found, true)["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("true", [[0, 1, 0], [0, 0, 0], [1, 1, 1], [1]])
def test_a_constant_prediction_makes_no_noise(value: int, true: list[int]) -> None:
    found = [value] * len(true)
    assert score(get("cola"), found, true)["matthews"] == 0.0
    assert score(get("mrpc"), found, true)["f1"] == quietly(sk.f1_score, true, found, zero_division=0)


@pytest.mark.parametrize(
    "found", [[2.0] * 4, [NAN, 1, 2, 3], [NAN] * 4, [math.inf, 1, 2, 3]], ids=["constant", "nan", "nans", "inf"]
)
def test_an_undefined_correlation_is_nan(found: list[float]) -> None:
    assert same(score(get("stsb"), found, [0, 1, 2, 4]), {"pearson": NAN, "spearman": NAN})


def test_constant_references_give_nan() -> None:
    assert same(score(get("stsb"), [0, 1, 2], [3, 3, 3]), {"pearson": NAN, "spearman": NAN})


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_nan_one_row_and_no_rows(task: Task) -> None:
    assert all(math.isnan(value) for value in score(task, [NAN, 0.0], [0, 1]).values())
    assert all(math.isnan(value) for value in score(task, [], []).values())
    one = score(task, [1], [1])
    assert all(math.isnan(v) if task.is_regression else v in (0.0, 1.0) for v in one.values())


def test_mnli_over_both_splits_and_each() -> None:
    found, true = [0, 1, 2, 2, 2], [0, 2, 2, 2, 1]
    expected = {"accuracy": 3 / 5, "accuracy_matched": 1 / 2, "accuracy_mismatched": 2 / 3}
    assert same(score(get("mnli"), found, true, MNLI), expected)
    assert same(score(get("mnli"), found, true), {"accuracy": 3 / 5})


def test_splits_change_nothing_elsewhere() -> None:
    whole = {"validation": slice(0, 2)}
    assert score(get("rte"), [0, 1], [0, 0], whole) == score(get("rte"), [0, 1], [0, 0]) == {"accuracy": 0.5}


@pytest.mark.parametrize(("found", "true"), [([1], [1, 0]), ([[1]], [[1]]), (1, 1)])
def test_shapes_must_agree(found: Any, true: Any) -> None:
    with pytest.raises(ValueError, match="the same length"):
        score(get("rte"), found, true)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_evaluate_gives_the_same_without_a_network(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    draw = np.random.default_rng(7)
    true = draw.random(5) * 5 if task.is_regression else draw.integers(0, task.num_outputs, 5)
    found = draw.permutation(true)
    splits = MNLI if task.name == "mnli" else None
    result = task_metric(task).compute(predictions=found, references=true, splits=splits)
    assert same(result, score(task, found, true, splits))
    assert set(result) == set(task.metric_names)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_one_call_for_all_cells_of_a_pack_gives_the_same_bits_as_score(task: Task) -> None:
    """As the trainer calls it: float64 predictions, some of them NaN, and labels of the type that the tables have."""
    draw = np.random.default_rng(3)
    true: Any = draw.random(50).astype(np.float32) * 5 if task.is_regression else draw.integers(0, task.num_outputs, 50)
    found = draw.normal(size=(4, 50)) if task.is_regression else draw.integers(0, task.num_outputs, (4, 50)) * 1.0
    found[1, 0] = NAN
    splits = {name: slice(index, 50, 2) for index, name in enumerate(task.eval_splits)}
    result = task_metric(task).compute(predictions=found, references=np.broadcast_to(true, (4, 50)), splits=splits)
    expected = [score(task, row, true, splits) for row in found]
    assert list(result) == list(task.metric_names)
    for name, values in result.items():
        np.testing.assert_array_equal(values, [scores[name] for scores in expected])


def test_macro_f1_is_the_mean_over_the_classes() -> None:
    task = Task("own", "Own", ("text",), ("a", "b", "c"), ("macro_f1", "accuracy"))
    found, true = [0, 1, 2, 2, 0, 1], [0, 1, 2, 1, 1, 1]
    result = score(task, found, true)
    assert result == {"macro_f1": sk.f1_score(true, found, average="macro"), "accuracy": 4 / 6}
    assert result["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 2 / 3) / 3)


def test_nothing_is_written_to_the_cache_of_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    assert task_metric(get("rte")).compute(predictions=[0, 1], references=[0, 1]) == {"accuracy": 1.0}
    assert list(tmp_path.iterdir()) == []


def test_the_class_is_an_evaluate_metric_that_adds_batches() -> None:
    import evaluate

    metric = task_metric(get("mrpc"))
    assert isinstance(metric, evaluate.Metric) and type(metric) is metric_class()
    assert "MRPC" in metric.description
    metric.add_batch(predictions=[1, 0], references=[1, 1])
    metric.add(prediction=1, reference=1)
    assert metric.compute() == pytest.approx({"accuracy": 2 / 3, "f1": 0.8})
