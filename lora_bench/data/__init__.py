"""From a task and a source (the Hub, a folder, the bundled sample) to rows.

`sources` reads files, `hub` asks the Hub, `tokens` turns rows into the table that training takes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_bench.data import sources
from lora_bench.data.sources import Rows
from lora_bench.errors import MISSING, BenchError
from lora_bench.files import is_folder
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
        digest = hashlib.sha256()
        for split in task.splits:
            path = sources.find(self.root, task, split)
            with sources.unreadable(path):
                content = path.read_bytes()
            digest.update(f"{split} {len(content)}\n".encode())
            digest.update(content)
        return f"{'sample' if self.kind == 'sample' else 'files'}:{digest.hexdigest()[:12]}"


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task's train split and its evaluation splits, by their official names and in the task's order."""

    train: Rows
    evals: dict[str, Rows]


def load(task: Task, source: DataSource, offline: bool = False) -> TaskData:
    """Every split of the task. Raises BenchError (code 3) when data is missing, broken or out of reach.

    `offline`: the Hub is not asked, only the copy that `datasets` may keep of it.
    """
    if source.root is None:
        from lora_bench.data.hub import read_hub

        splits = read_hub(task, offline)
    else:
        splits = {split: sources.read(sources.find(source.root, task, split), task) for split in task.splits}
    return TaskData(splits.pop("train"), splits)
