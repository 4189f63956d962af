"""The nine tasks: what is written about them is GLUE's, and importing them is free."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_bench import tasks
from lora_bench.data import sources
from lora_bench.errors import USAGE, BenchError
from lora_bench.tasks import TASKS, Hub, Task, get
from lora_bench.tasks.definition import validated
from lora_bench.tasks.glue import HUB_ID, HUB_REVISION, tsv_file
from lora_bench.tasks.metrics import METRICS
from lora_bench.tasks.task import CLASS_METRICS, VALUE_METRICS

GLUE = os.environ.get("LORA_BENCH_GLUE")
NAMES = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def test_the_nine_tasks_are_there() -> None:
    assert list(TASKS) == NAMES
    assert all(get(name) is TASKS[name] for name in NAMES)
    assert len({hash(task) for task in TASKS.values()}) == 9


@each_task
def test_a_record_is_whole(task: Task) -> None:
    assert len(task.columns) in (1, 2)
    assert task.tsv is not None and len(task.tsv.columns) == len(task.columns)
    assert task.source == Hub(HUB_ID, HUB_REVISION, config=task.name) and tasks.origin(task.name) is None
    assert task.num_outputs == (1 if task.is_regression else len(task.labels))
    assert task.main_metric == task.metrics[0]
    assert {name.partition("_")[0] for name in task.metric_names} <= set(METRICS)
    assert task.splits[0] == "train" and len(task.splits) == 1 + len(task.eval_splits)
    assert len(task.rows) == len(task.splits) and (task.train_rows, task.eval_rows) == (
        task.rows[0],
        sum(task.rows[1:]),
    )
    assert validated(task, "glue.py", Path("glue.py")) == task


def test_only_stsb_is_a_regression_and_only_mnli_has_three_classes_and_two_splits() -> None:
    assert [name for name in NAMES if TASKS[name].is_regression] == ["stsb"]
    assert {name: TASKS[name].num_outputs for name in NAMES if TASKS[name].num_outputs != 2} == {"stsb": 1, "mnli": 3}
    assert [name for name in NAMES if len(TASKS[name].eval_splits) > 1] == ["mnli"]


def test_the_names_of_metrics_are_those_that_are_defined() -> None:
    assert set(METRICS) == CLASS_METRICS | VALUE_METRICS


def test_the_metric_of_a_split_names_an_official_split() -> None:
    for task in TASKS.values():
        parts = [part for part in (name.partition("_")[2] for name in task.metric_names) if part]
        assert all(f"validation_{part}" in task.splits for part in parts)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("rte", ("entailment", "not_entailment")),
        ("qnli", ("entailment", "not_entailment")),
        ("wnli", ("not_entailment", "entailment")),
        ("mnli", ("entailment", "neutral", "contradiction")),
        ("sst2", ("negative", "positive")),
        ("stsb", ()),
    ],
)
def test_labels_are_in_the_order_of_the_hub(task: str, labels: tuple[str, ...]) -> None:
    assert get(task).labels == labels


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(BenchError, match="Unknown task 'sst-2'") as caught:
        get("sst-2")
    assert caught.value.code == USAGE
    assert "sst2" in caught.value.hint


def test_the_revision_is_a_whole_commit() -> None:
    assert len(HUB_REVISION) == 40 and int(HUB_REVISION, 16)


def test_glues_own_file_names() -> None:
    splits = ("train", "validation", "validation_matched")
    assert [tsv_file(split) for split in splits] == ["train.tsv", "dev.tsv", "dev_matched.tsv"]


def test_importing_what_plan_needs_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "datasets", "evaluate", "sklearn", "scipy", "pandas", "pyarrow"]
    imported = "lora_bench.data.tokens, lora_bench.tasks.metrics"
    code = f"import sys, {imported}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not GLUE, reason="LORA_BENCH_GLUE names no folder with the real GLUE")
@each_task
def test_official_rows_of_the_real_files(task: Task) -> None:
    rows = dict(zip(task.splits, task.rows, strict=True))
    seen = 0
    for split in task.splits:
        path = Path(str(GLUE)) / task.name / f"{split}.parquet"
        if path.is_file():
            seen += 1
            split_rows = sources.read(path, task)
            assert len(split_rows) == rows[split]
            assert len(set(split_rows.labels.tolist())) >= max(len(task.labels), 2)
    if not seen:
        pytest.skip(f"no file of {task.name} there")
