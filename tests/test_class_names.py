"""Classes by the names that a file has for them, in every format, whatever numbers it gives them."""

from __future__ import annotations

from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_bench.data import sources
from lora_bench.tasks import TASKS, Task, get
from tests.test_sources import WRITERS, Table, each_format, refused, table, write_parquet


def with_names(path: Path, columns: Table, names: list[str]) -> None:
    """As `datasets` writes a column of classes: numbers, and their names in the schema."""
    kinds = {name: datasets.Value("string") for name in columns} | {"label": datasets.ClassLabel(names=names)}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(path)


each_class_task = pytest.mark.parametrize(
    "task", [task for task in TASKS.values() if task.labels], ids=lambda task: task.name
)


@each_class_task
def test_numbers_of_classes_go_by_the_names_in_the_file(task: Task, tmp_path: Path) -> None:
    columns, path = table(task, 11), tmp_path / "train.parquet"
    names = list(task.labels)
    for order in (names, names[::-1], [*names[1:], names[0]], ["other", *names]):
        ids = [order.index(task.labels[label]) for label in columns["label"]]
        with_names(path, columns | {"label": ids}, order)
        rows = sources.read(path, task)
        assert rows.labels.tolist() == columns["label"] and list(rows.texts) == [columns[name] for name in task.columns]


def test_names_of_classes_that_are_not_the_tasks(tmp_path: Path) -> None:
    """Names that no row uses may be any; numbers written as names are numbers."""
    path, columns = tmp_path / "train.parquet", table(get("rte")) | {"label": [1, 1, 0, 1]}
    with_names(path, columns, ["no", "entailment"])
    refused(
        lambda: sources.read(path, get("rte")), "train.parquet, row 3: label 'no' is not one of 0 entailment, 1 not_"
    )
    with_names(path, columns, ["1", "0"])
    assert sources.read(path, get("rte")).labels.tolist() == [0, 0, 1, 0]
    with_names(path, columns | {"label": [1, -1, 0, 1]}, ["not_entailment", "entailment"])
    refused(lambda: sources.read(path, get("rte")), "row 2: label -1 is GLUE's hidden test label")


def test_numbers_of_a_dictionary_are_classes(tmp_path: Path) -> None:
    columns = table(get("sst2"))
    path = tmp_path / "train.parquet"
    write_parquet(path, get("sst2"), columns | {"label": pa.array(columns["label"]).dictionary_encode()})
    assert sources.read(path, get("sst2")).labels.tolist() == columns["label"]


@pytest.mark.parametrize("content", [b"[]", b'{"info": []}', b'{"info": {"features": {"label": {"names": 3}}}}', b"{}"])
def test_other_metadata_name_no_classes(content: bytes, tmp_path: Path) -> None:
    columns = table(get("sst2"))
    pq.write_table(pa.table(columns).replace_schema_metadata({b"huggingface": content}), tmp_path / "train.parquet")
    assert sources.read(tmp_path / "train.parquet", get("sst2")).labels.tolist() == columns["label"]


@each_class_task
@each_format
def test_classes_may_be_given_by_their_names(form: str, task: Task, tmp_path: Path) -> None:
    """As text, and in parquet also as pandas keeps categories: the order of those is another."""
    columns = table(task, 11)
    named = [task.labels[label] for label in columns["label"]]
    path = tmp_path / f"train.{form}"
    WRITERS[form](path, task, columns | {"label": named})
    assert sources.read(path, task).labels.tolist() == columns["label"]
    if form == "parquet":
        frame = pd.DataFrame(columns | {"label": pd.Categorical(named, sorted(task.labels, reverse=True))})
        frame.to_parquet(path)
        assert sources.read(path, task).labels.tolist() == columns["label"]
    if form == "jsonl":
        WRITERS[form](path, task, columns | {"label": [*named[:-1], "neither"]})
        refused(lambda: sources.read(path, task), "line 11: label 'neither' is not one of 0")
