"""From a task and a source (the task's own, a folder, the bundled sample) to rows.

`content` reads files, `formats` their columns, `sources` locates and checks them, `hub` asks the Hub, `tokens` turns
rows into the table that training takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_bench.data import sources
from lora_bench.data.content import broken
from lora_bench.data.sources import Rows
from lora_bench.errors import MISSING, BenchError
from lora_bench.records.files import is_folder
from lora_bench.sample import DATA
from lora_bench.tasks.task import Files, Hub, Task


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where rows come from. Its path never enters a cell, its `identity` does.

    Attributes:
        kind: `task` for the source that the task itself names (the Hub for GLUE), `folder`, or the bundled `sample`.
        root: the folder; None for the task's own source.
    """

    kind: Literal["task", "folder", "sample"]
    root: Path | None = None

    @classmethod
    def parse(cls, data_dir: Path | None = None, sample: bool = False) -> DataSource:
        """A folder if one is given, else the bundled sample if asked for, else the task's own source.

        Raises BenchError (code 3) when the folder does not exist.
        """
        if data_dir is not None:
            if not is_folder(data_dir):
                example = Path("<task>") / "train.parquet"
                hint = f"Expected a folder that holds '{example}' (or .jsonl, .csv, or GLUE's .tsv)."
                raise BenchError(f"The data folder '{data_dir}' does not exist.", hint, MISSING)
            return cls("folder", data_dir)
        return cls("sample", DATA) if sample else cls("task")

    def files(self, task: Task) -> dict[str, tuple[Path, ...]] | None:
        """The files of each split of a task; None if its rows are on the Hub.

        Raises:
            BenchError: exit code 3 if a file is missing, or if the task names no source and no folder is given.
        """
        if self.root is not None:
            return {split: sources.find(self.root, task, split) for split in task.splits}
        if isinstance(task.source, Files):
            return {split: sources.listed(task.source, task, split) for split in task.splits}
        if isinstance(task.source, Hub):
            return None
        hint = f"Give a folder that holds '{Path(task.name) / 'train.csv'}' and its other splits: --data-dir DIR."
        raise BenchError(f"The task '{task.name}' does not say where its data are.", hint, MISSING)

    def identity(self, task: Task) -> str:
        """What names the task's data in a cell: the Hub's revision, or a hash over the bytes of the task's files.

        Raises BenchError (code 3) when a file is missing.
        """
        files = self.files(task)
        if files is None:
            assert isinstance(task.source, Hub)
            return f"{task.source.id}@{task.source.revision[:8]}"
        return self._name_of(
            (split, content) for split, paths in files.items() for _, content in sources.read_parts(paths, split)
        )

    def read(self, task: Task) -> tuple[str, Iterator[tuple[str, Rows]]]:
        """The identity of a task's files, and the rows of each split from the very bytes that were hashed.

        Raises BenchError (code 3) when a file is missing; the rows, when one is broken.
        """
        files = self.files(task)
        assert files is not None  # what is on the Hub is read by `hub`
        contents = {split: sources.read_parts(paths, split) for split, paths in files.items()}
        identity = self._name_of((split, content) for split, parts in contents.items() for _, content in parts)

        def rows_of(split: str) -> Rows:
            parts = contents.pop(split)  # not needed once they are parsed
            raws = (sources.parse(content, path, task) for path, content in parts)
            return sources.joined([sources.checked(raw, task) for raw in raws], split)

        return identity, ((split, rows_of(split)) for split in files)

    def _name_of(self, contents: Iterable[tuple[str, bytes]]) -> str:
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
    files = source.files(task)
    if files is None:
        from lora_bench.data.hub import read_hub

        splits = read_hub(task, offline)
    else:
        identity, rows = source.read(task)
        if planned not in (None, identity):
            where = source.root or files["train"][0].parent
            what = f"The data of {task.name} in '{where}' changed since the plan: {identity}, not {planned}."
            raise broken(what, "Put them back, or give the same command again: it plans with what is there now.")
        splits = dict(rows)
    return TaskData(splits.pop("train"), splits)
