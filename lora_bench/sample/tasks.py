"""The rows of the nine tasks: their functions, columns and splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from lora_bench.sample import paired, single

SampleRow = dict[str, str | int | float]
Maker = Callable[[Random, int], tuple[str, ...]]
TRAIN, VALIDATION = 400, 240
PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True)
class SampleTask:
    """How the rows of a task are generated.

    Attributes:
        maker: Returns the texts of a row with a label.
        columns: The columns of the texts.
        labels: The number of labels.
        graded: Whether labels are floats.
    """

    maker: Maker
    columns: tuple[str, ...]
    labels: int = 2
    graded: bool = False


TASKS: dict[str, SampleTask] = {
    "cola": SampleTask(single.cola, ("sentence",)),
    "sst2": SampleTask(single.sst2, ("sentence",)),
    "mrpc": SampleTask(paired.mrpc, PAIR),
    "stsb": SampleTask(paired.stsb, PAIR, labels=6, graded=True),
    "qqp": SampleTask(paired.qqp, ("question1", "question2")),
    "mnli": SampleTask(paired.mnli, ("premise", "hypothesis"), labels=3),
    "qnli": SampleTask(paired.qnli, ("question", "sentence")),
    "rte": SampleTask(paired.rte, PAIR),
    "wnli": SampleTask(paired.wnli, PAIR),
}


def draw_rows(
    task: SampleTask, rng: Random, size: int, seen: set[tuple[str, ...]], maker: Maker | None = None
) -> list[SampleRow]:
    """Draw rows with the labels in turn, then shuffle them.

    Args:
        task: The task.
        rng: The random numbers.
        size: The number of rows.
        seen: Texts that must not occur again; the new texts are added.
        maker: Replaces the task's own.
    """
    texts: list[tuple[tuple[str, ...], int]] = []
    while len(texts) < size:
        label = len(texts) % task.labels
        text = (maker or task.maker)(rng, label)
        if text not in seen:
            seen.add(text)
            texts.append((text, label))
    rng.shuffle(texts)
    return [make_row(task, text, label, idx) for idx, (text, label) in enumerate(texts)]


def make_row(task: SampleTask, text: tuple[str, ...], label: int, idx: int) -> SampleRow:
    """Return a row with the columns of the Hub's data set."""
    return {**dict(zip(task.columns, text, strict=True)), "label": float(label) if task.graded else label, "idx": idx}


def splits(name: str) -> dict[str, list[SampleRow]]:
    """Return a task's splits by file name; they are the same on every machine and with every hash seed."""
    task, rng, seen = TASKS[name], Random(f"lora-bench sample {name}"), set[tuple[str, ...]]()
    train = draw_rows(task, rng, TRAIN, seen)
    if name != "mnli":
        return {"train": train, "validation": draw_rows(task, rng, VALIDATION, seen)}
    matched = draw_rows(task, rng, VALIDATION, seen)
    mismatched = draw_rows(task, rng, VALIDATION, seen, paired.mnli_people)
    return {"train": train, "validation_matched": matched, "validation_mismatched": mismatched}


def as_json_lines(rows: list[SampleRow]) -> bytes:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows).encode()


def write_all(folder: Path) -> None:
    """Write `<folder>/<task>/<split>.jsonl` for every task."""
    for name in TASKS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, rows in splits(name).items():
            (folder / name / f"{split}.jsonl").write_bytes(as_json_lines(rows))
