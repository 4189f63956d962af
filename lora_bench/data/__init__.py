"""Reads the rows of a task from its source: the task's own source, a folder or the bundled sample.

`sources` locates files and checks their rows, `content` reads their bytes, `formats` parses them, `hub` reads datasets
of the Hugging Face Hub, and `tokens` tokenizes rows for training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_bench.data import sources
from lora_bench.data.content import data_error
from lora_bench.data.sources import Rows
from lora_bench.errors import MISSING, BenchError
from lora_bench.records.files import is_folder
from lora_bench.sample import DATA
from lora_bench.tasks.task import Files, Hub, Task


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where rows come from. A cell contains its `identity`, never its path.

    Attributes:
        kind: `task` for the task's own source (the Hub for GLUE), `folder`, or `sample` for the bundled data.
        root: The folder; None for the task's own source.
    """

    kind: Literal["task", "folder", "sample"]
    root: Path | None = None

    @classmethod
    def parse(cls, data_dir: Path | None = None, sample: bool = False) -> DataSource:
        """Return the source of a folder if one is given, else the bundled sample if `sample`, else the task's own.

        Raises:
            BenchError: Exit code 3 if the folder does not exist.
        """
        if data_dir is not None:
            if not is_folder(data_dir):
                example = Path("<task>") / "train.parquet"
                hint = f"Expected a folder that holds '{example}' (or .jsonl, .csv, or GLUE's .tsv)."
                raise BenchError(f"The data folder '{data_dir}' does not exist.", hint, MISSING)
            return cls("folder", data_dir)
        return cls("sample", DATA) if sample else cls("task")

    def files(self, task: Task) -> dict[str, tuple[Path, ...]] | None:
        """Return the files of each split of a task; None if its rows are on the Hub.

        Raises:
            BenchError: Exit code 3 if a file is missing, or if there is neither a folder nor a source of the task.
        """
        if self.root is not None:
            return {split: sources.find(self.root, task, split) for split in task.splits}
        if isinstance(task.source, Files):
            files = {split: sources.listed_files(task.source, task, split) for split in task.splits}
            sources.refuse_shared_files(files)
            return files
        if isinstance(task.source, Hub):
            return None
        hint = f"Give a folder that holds '{Path(task.name) / 'train.csv'}' and its other splits: --data-dir DIR."
        raise BenchError(f"The task '{task.name}' does not say where its data are.", hint, MISSING)

    def identity(self, task: Task) -> str:
        """Return what names the task's data in a cell: the Hub's revision, or a hash of the task's files.

        Raises:
            BenchError: Exit code 3 if a file is missing.
        """
        files = self.files(task)
        if files is None:
            assert isinstance(task.source, Hub)
            return f"{task.source.id}@{task.source.revision[:8]}"
        return self._hash(
            (split, content) for split, paths in files.items() for _, content in sources.read_parts(paths, split)
        )

    def read(self, task: Task) -> tuple[str, Iterator[tuple[str, Rows]]]:
        """Read a task's files once, and return their identity and an iterator of the rows of each split.

        Raises:
            BenchError: Exit code 3 if a file is missing. The iterator raises it if a file is broken.
        """
        files = self.files(task)
        assert files is not None  # `hub` reads tasks that are on the Hub
        contents = {split: sources.read_parts(paths, split) for split, paths in files.items()}
        identity = self._hash((split, content) for split, parts in contents.items() for _, content in parts)

        def rows_of(split: str) -> Rows:
            parts = contents.pop(split)  # frees the bytes once they are parsed
            raw_parts = (sources.parse(content, path, task) for path, content in parts)
            return sources.join([sources.to_rows(raw, task) for raw in raw_parts], split)

        return identity, ((split, rows_of(split)) for split in files)

    def _hash(self, contents: Iterable[tuple[str, bytes]]) -> str:
        digest = hashlib.sha256()
        for split, content in contents:
            digest.update(f"{split} {len(content)}\n".encode())
            digest.update(content)
        return f"{'sample' if self.kind == 'sample' else 'files'}:{digest.hexdigest()[:12]}"


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task's train split, and its evaluation splits by name in the task's order."""

    train: Rows
    evals: dict[str, Rows]

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages about the files for the user."""
        return tuple(note for rows in (self.train, *self.evals.values()) for note in rows.notes)


def load(task: Task, source: DataSource, offline: bool = False, planned: str | None = None) -> TaskData:
    """Load all splits of a task.

    Args:
        task: The task.
        source: Where its rows come from.
        offline: Whether to use only the local copy that `datasets` may have, without asking the Hub.
        planned: The identity that the data had when the plan was made; None to accept any.

    Raises:
        BenchError: Exit code 3 if data is missing, broken, unreachable, or has changed since the plan.
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
            raise data_error(what, "Put them back, or give the same command again: it plans with what is there now.")
        splits = dict(rows)
    return TaskData(splits.pop("train"), splits)
