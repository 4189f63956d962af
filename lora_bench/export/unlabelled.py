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
    """N texts a text column (labels are zeros that mean nothing) and the leaderboard's number of each row."""

    rows: Rows
    numbers: list[int]


def read(task: Task, test: Submission, source: DataSource, offline: bool) -> Unlabelled:
    """A test split, by the code that reads splits with labels.

    Raises:
        BenchError: exit code 3 if the source has none, or what it has cannot be read.
    """
    if source.root is None:
        from lora_bench.data.hub import read_hub_test

        raws = [read_hub_test(task, test.split, offline)]
    else:
        parts = sources.read_parts(find(source.root, task, test), test.split)
        raws = [sources.parse(content, path, task, labelled=False) for path, content in parts]
    return Unlabelled(sources.joined([sources.checked(raw, task) for raw in raws], test.split), _numbers(raws))


def find(root: Path, task: Task, test: Submission) -> tuple[Path, ...]:
    """The files of a test split under `root`; the diagnostic set may also have GLUE's own name."""
    diagnostic = root / "diagnostic" / "diagnostic.tsv"
    if task == DIAGNOSTIC and diagnostic.is_file():
        return (diagnostic,)
    return sources.find(root, task, test.split)


def _numbers(raws: Sequence[Raw]) -> list[int]:
    """The numbers of the rows of all parts, by their order where a file has none."""
    count = sum(len(raw.labels) for raw in raws)
    if any(raw.index is None for raw in raws):
        return list(range(count))
    numbers = [_number(value) for raw in raws for value in raw.index or ()]
    whole = [number for number in numbers if number is not None]
    if sorted(whole) != list(range(count)):
        what = f"{raws[0].where}: its index is not 0 to {count - 1}, each once."
        raise BenchError(what, "Give the whole test file.", MISSING)
    return whole


def _number(value: Any) -> int | None:
    """A whole number, also where a table with gaps has stored it as 0.0; None for anything else."""
    try:
        number = float(value) if type(value) in (int, float, str) else 0.5
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
