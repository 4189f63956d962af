"""GLUE's test splits: texts and the index of each row, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lora_bench.data import DataSource, sources
from lora_bench.data.content import read_content
from lora_bench.data.formats import Raw
from lora_bench.data.sources import Rows
from lora_bench.errors import MISSING, BenchError
from lora_bench.tasks import DIAGNOSTIC, Submission, Task


class Unlabelled(NamedTuple):
    """A test split.

    Attributes:
        rows: The texts, N for each text column; the labels are zeros without a meaning.
        numbers: The leaderboard's number of each row.
    """

    rows: Rows
    numbers: list[int]


def read(task: Task, test: Submission, source: DataSource, offline: bool) -> Unlabelled:
    """Read a test split with the same readers and checks as splits with labels.

    Raises:
        BenchError: exit code 3 if the source has no such split, or it cannot be read.
    """
    if source.root is None:
        from lora_bench.data.hub import read_hub_test

        raw = read_hub_test(task, test.split, offline)
    else:
        path = find(source.root, task, test)
        raw = sources.parse(read_content(path), path, task, labelled=False)
    return Unlabelled(sources.checked(raw, task), _numbers(raw))


def find(root: Path, task: Task, test: Submission) -> Path:
    """Return the file of a test split under `root`; the diagnostic set may also be named as in GLUE's download."""
    glue_file = root / task.tsv.folder / "diagnostic.tsv"
    if task == DIAGNOSTIC and glue_file.is_file():
        return glue_file
    return sources.find(root, task, test.split)


def _numbers(raw: Raw) -> list[int]:
    """Return the numbers of the rows; rows of a file without an index are numbered in order."""
    count = len(raw.labels)
    if raw.index is None:
        return list(range(count))
    numbers = [_number(value) for value in raw.index]
    valid = [number for number in numbers if number is not None]
    if sorted(valid) != list(range(count)):
        what = f"{raw.where}: its index is not 0 to {count - 1}, each once."
        raise BenchError(what, "Give the complete test file.", MISSING)
    return valid


def _number(value: Any) -> int | None:
    """Return a whole number, also one that a table with gaps has stored as a float; None for anything else."""
    try:
        number = float(value) if type(value) in (int, float, str) else 0.5
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
