"""GLUE's test splits: texts and the index of each row, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_bench.data import DataSource, sources
from lora_bench.data.formats import Raw
from lora_bench.data.sources import Rows
from lora_bench.errors import MISSING, BenchError
from lora_bench.tasks.glue import DIAGNOSTIC
from lora_bench.tasks.task import Submission, Task


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
        BenchError: Exit code 3 if the source has no such split, or it cannot be read.
    """
    if source.root is None:
        from lora_bench.data.hub import read_hub_test

        raws = [read_hub_test(task, test.split, offline)]
    else:
        parts = sources.read_parts(find(source.root, task, test), test.split)
        raws = [sources.parse(content, path, task, labelled=False) for path, content in parts]
    return Unlabelled(sources.join([sources.to_rows(raw, task) for raw in raws], test.split), _numbers(raws))


def find(root: Path, task: Task, test: Submission) -> tuple[Path, ...]:
    """Return the files of a test split under `root`; the diagnostic set may also be named as in GLUE's download."""
    glue_file = root / "diagnostic" / "diagnostic.tsv"
    if task == DIAGNOSTIC and glue_file.is_file():
        return (glue_file,)
    return sources.find(root, task, test.split)


def _numbers(raws: Sequence[Raw]) -> list[int]:
    """Return the numbers of the rows of all parts; rows are numbered in order if a file has no index."""
    count = sum(len(raw.labels) for raw in raws)
    if any(raw.index is None for raw in raws):
        return list(range(count))
    numbers = [_number(value) for raw in raws for value in raw.index or ()]
    valid = [number for number in numbers if number is not None]
    if sorted(valid) != list(range(count)):
        what = f"{raws[0].where}: its index is not 0 to {count - 1}, each once."
        raise BenchError(what, "Give the complete test file.", MISSING)
    return valid


def _number(value: Any) -> int | None:
    """Return a whole number, also one that a table with gaps has stored as a float; None for anything else."""
    try:
        number = float(value) if type(value) in (int, float, str) else 0.5
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
