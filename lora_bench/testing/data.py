"""Data that a tiny encoder can learn: tables of tokens in memory, and folders of rows as `--data-dir` takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_bench import tasks
from lora_bench.data.tokens import TokenTable
from lora_bench.tasks import Task

# One token per word: 0 to 3 are special, the others are the vocabulary of `make_data` and of the encoders.
WORDS = ("<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(63)))
TRAIN_ROWS, VALIDATION_ROWS = 40, 24  # of each split that `make_data` writes
SCORES = 6  # a regression's label is one of 0, 1 … 5


def make_tokens(lengths: int | Sequence[int], seed: int = 0, task: str = "sst2") -> TokenTable:
    """Return random sequences; nine of ten tokens come from a part of the vocabulary that belongs to the label.

    Args:
        lengths: The number of tokens of each sequence; a single number is that many sequences of 4 to 23 tokens.
        seed: The same seed gives the same table.
        task: The task that the labels are of.
    """
    if isinstance(lengths, int):
        sizes = np.random.default_rng(seed + 100).integers(4, 24, lengths)
    else:
        sizes = np.asarray(lengths, dtype=np.int64)
    draw = np.random.default_rng(seed)
    kinds = tasks.get(task).num_outputs if tasks.get(task).labels else SCORES
    labels = draw.integers(0, kinds, len(sizes))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    ids = draw.integers(3, len(WORDS), offsets[-1])
    part = (len(WORDS) - 3) // kinds
    ids = np.where(draw.random(len(ids)) < 0.9, 3 + np.repeat(labels, sizes) * part + ids % part, ids)
    ids[offsets[:-1]] = 3 + labels * part + draw.integers(0, 4, len(sizes))
    types = draw.integers(0, 2, offsets[-1]).astype(np.uint8)
    dtype: Any = np.float32 if tasks.get(task).is_regression else np.int64
    return TokenTable(ids.astype(np.int32), types, offsets, labels.astype(dtype))


def make_data(folder: Path, *names: str) -> Path:
    """Write a data folder with all splits of the tasks (by default `sst2`) as JSON lines, and return the folder.

    The words of a row depend on its label, so that a few epochs learn something.
    """
    for name in names or ("sst2",):
        task = tasks.get(name)
        (folder / name).mkdir(parents=True)
        for number, split in enumerate(task.splits):
            draw = np.random.default_rng(number)
            count = TRAIN_ROWS if split == "train" else VALIDATION_ROWS
            lines = [json.dumps(_row(task, draw)) for _ in range(count)]
            (folder / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _row(task: Task, draw: np.random.Generator) -> dict[str, Any]:
    label = int(draw.integers(0, len(task.labels) or SCORES))
    texts = [" ".join(f"w{9 * label + word}" for word in draw.integers(0, 11, 6)) for _ in task.columns]
    return {**dict(zip(task.columns, texts, strict=True)), "label": label if task.labels else float(label)}
