"""GLUE's test splits: texts and the index of each row, without labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_bench.data import DataSource, sources
from lora_bench.data.sources import Raw, Rows
from lora_bench.errors import MISSING, BenchError
from lora_bench.tasks import DIAGNOSTIC, Submission, Task

INDEX = ("idx", "index", "id")  # the Hub's name, GLUE's, and GLUE's for QQP

Columns = Mapping[str, Sequence[Any]]


class Unlabelled(NamedTuple):
    """N texts a text column (labels are zeros that mean nothing) and the leaderboard's number of each row."""

    rows: Rows
    numbers: list[int]


def read(task: Task, test: Submission, source: DataSource, offline: bool) -> Unlabelled:
    """A test split.

    Raises:
        BenchError: exit code 3 if the source has none, or what it has cannot be read.
    """
    if source.root is None:
        from lora_bench.data.hub import read_hub_test

        return _taken(read_hub_test(task, test.split, offline).to_pydict(), task, f"{task.name}/{test.split}")
    path = find(source.root, task, test)
    with sources.unreadable(path):
        columns = {".parquet": _parquet, ".jsonl": _jsonl, ".tsv": _tsv}[path.suffix](path)
    return _taken(columns, task, str(path))


def find(root: Path, task: Task, test: Submission) -> Path:
    """The file of a test split under `root`; the diagnostic set may also have GLUE's own name."""
    own = root / task.tsv.folder / "diagnostic.tsv"
    if task == DIAGNOSTIC and own.is_file():
        return own
    return sources.find(root, task, test.split)


def _parquet(path: Path) -> Columns:
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

    columns: Columns = pq.read_table(path).to_pydict()
    return columns


def _jsonl(path: Path) -> Columns:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    names = list(rows[0]) if rows else []
    return {name: [row[name] for row in rows] for name in names}


def _tsv(path: Path) -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as file:
        names, *lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    if any(len(line) < len(names) for line in lines):
        raise ValueError(f"a row has fewer than {len(names)} fields")
    return {name: [line[place] for line in lines] for place, name in enumerate(names)}


def _taken(columns: Columns, task: Task, where: str) -> Unlabelled:
    """The task's texts by the Hub's names of them or GLUE's, and the index, by place where there is no column of it."""
    texts = []
    for hub, own in zip(task.columns, task.tsv.columns, strict=True):
        found = next((columns[name] for name in (hub, own) if name in columns), None)
        if found is None:
            raise BenchError(f"{where}: no column '{hub}'.", "Give GLUE's test file as it is.", MISSING)
        texts.append(list(found))
    count = len(texts[0])
    numbers = next((columns[name] for name in INDEX if name in columns), range(count))
    index = [int(number) for number in numbers if str(number).isdecimal()]
    if sorted(index) != list(range(count)):
        raise BenchError(
            f"{where}: its index is not 0 to {count - 1}, each once.", "Give the whole test file.", MISSING
        )
    return Unlabelled(sources.checked(Raw(where, texts, [0] * count), task), index)
