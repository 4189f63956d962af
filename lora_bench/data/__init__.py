"""From a task and a source (the Hub, a folder, the bundled sample) to rows.

`content` reads files, `formats` their columns, `sources` finds and checks them, `hub` asks the Hub, `tokens` turns rows
into the table that training takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_bench.data import sources
from lora_bench.data.content import broken, read_content
from lora_bench.data.sources import Rows
from lora_bench.errors import MISSING, BenchError
from lora_bench.records.files import is_folder
from lora_bench.sample import DATA
from lora_bench.tasks import HUB_ID, HUB_REVISION, Task


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where rows come from; `root` is None for the Hub. Its path never enters a cell, its `identity` does."""

    kind: Literal["hub", "folder", "sample"]
    root: Path | None = None

    @classmethod
    def parse(cls, data_dir: Path | None = None, sample: bool = False) -> DataSource:
        """A folder if one is given, else the bundled sample if wanted, else the Hub.

        Raises BenchError (code 3) when the folder does not exist.
        """
        if data_dir is not None:
            if not is_folder(data_dir):
                hint = f"Expected a folder that holds '{Path('<task>') / 'train.parquet'}' (or .jsonl, or GLUE's .tsv)."
                raise BenchError(f"The data folder '{data_dir}' does not exist.", hint, MISSING)
            return cls("folder", data_dir)
        return cls("sample", DATA) if sample else cls("hub")

    def identity(self, task: Task) -> str:
        """What names the task's data in a cell: the Hub's revision, or a hash over the bytes of the task's files.

        Raises BenchError (code 3) when a file is missing.
        """
        if self.root is None:
            return f"{HUB_ID}@{HUB_REVISION[:8]}"
        return self._named((split, read_content(sources.find(self.root, task, split))) for split in task.splits)

    def read(self, task: Task) -> tuple[str, Iterator[tuple[str, Rows]]]:
        """The identity of a folder's files of a task, and the rows of each split from the very bytes that were hashed.

        Raises BenchError (code 3) when a file is missing; the rows, when one is broken.
        """
        assert self.root is not None
        paths = {split: sources.find(self.root, task, split) for split in task.splits}
        contents = {split: read_content(path) for split, path in paths.items()}
        identity = self._named(contents.items())
        columns = ((split, sources.parse(contents.pop(split), path, task)) for split, path in paths.items())
        return identity, ((split, sources.checked(raw, task)) for split, raw in columns)

    def _named(self, contents: Iterable[tuple[str, bytes]]) -> str:
        digest = hashlib.sha256()
        for split, content in contents:
            digest.update(f"{split} {len(content)}\n".encode())
            digest.update(content)
        return f"{'sample' if self.kind == 'sample' else 'files'}:{digest.hexdigest()[:12]}"


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task's train split and its evaluation splits, by their official names and in the task's order."""

    train: Rows
    evals: dict[str, Rows]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the files."""
        return tuple(note for rows in (self.train, *self.evals.values()) for note in rows.notes)


def load(task: Task, source: DataSource, offline: bool = False, planned: str | None = None) -> TaskData:
    """Every split of the task.

    Args:
        task: The task.
        source: Where its rows are.
        offline: The Hub is not asked, only the copy that `datasets` may keep of it.
        planned: The identity that the data had when the plan was made, if they must be those.

    Raises:
        BenchError: exit code 3 when data is missing, broken, out of reach, or not what was planned.
    """
    if source.root is None:
        from lora_bench.data.hub import read_hub

        splits = read_hub(task, offline)
    else:
        identity, rows = source.read(task)
        if planned not in (None, identity):
            what = f"The data of {task.name} in '{source.root}' changed since the plan: {identity}, not {planned}."
            raise broken(what, "Put them back, or give the same command again: it plans with what is there now.")
        splits = dict(rows)
    return TaskData(splits.pop("train"), splits)
