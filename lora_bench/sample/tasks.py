"""The nine tasks' rows: which maker writes which task, under which columns, into which splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from lora_bench.sample import paired, single

Row = dict[str, str | int | float]
Maker = Callable[[Random, int], tuple[str, ...]]
TRAIN, VALIDATION = 400, 240
PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True)
class Task:
    """How one task's rows are made; `graded` labels are floats."""

    maker: Maker
    columns: tuple[str, ...]
    labels: int = 2
    graded: bool = False


TASKS: dict[str, Task] = {
    "cola": Task(single.cola, ("sentence",)),
    "sst2": Task(single.sst2, ("sentence",)),
    "mrpc": Task(paired.mrpc, PAIR),
    "stsb": Task(paired.stsb, PAIR, labels=6, graded=True),
    "qqp": Task(paired.qqp, ("question1", "question2")),
    "mnli": Task(paired.mnli, ("premise", "hypothesis"), labels=3),
    "qnli": Task(paired.qnli, ("question", "sentence")),
    "rte": Task(paired.rte, PAIR),
    "wnli": Task(paired.wnli, PAIR),
}


def draw(task: Task, rng: Random, size: int, seen: set[tuple[str, ...]], maker: Maker | None = None) -> list[Row]:
    """`size` rows with the labels in turn, then shuffled; no text that is in `seen`, which grows."""
    texts: list[tuple[tuple[str, ...], int]] = []
    while len(texts) < size:
        label = len(texts) % task.labels
        text = (maker or task.maker)(rng, label)
        if text not in seen:
            seen.add(text)
            texts.append((text, label))
    rng.shuffle(texts)
    return [row(task, text, label, idx) for idx, (text, label) in enumerate(texts)]


def row(task: Task, text: tuple[str, ...], label: int, idx: int) -> Row:
    """One row with the Hub's columns."""
    return {**dict(zip(task.columns, text, strict=True)), "label": float(label) if task.graded else label, "idx": idx}


def splits(name: str) -> dict[str, list[Row]]:
    """A task's splits by file name; the same on every machine and under every hash seed."""
    task, rng, seen = TASKS[name], Random(f"lora-bench sample {name}"), set[tuple[str, ...]]()
    train = draw(task, rng, TRAIN, seen)
    if name != "mnli":
        return {"train": train, "validation": draw(task, rng, VALIDATION, seen)}
    matched = draw(task, rng, VALIDATION, seen)
    mismatched = draw(task, rng, VALIDATION, seen, paired.mnli_people)
    return {"train": train, "validation_matched": matched, "validation_mismatched": mismatched}


def dump(rows: list[Row]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows).encode()


def write_all(folder: Path) -> None:
    """Write `<folder>/<task>/<split>.jsonl` for every task."""
    for name in TASKS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, rows in splits(name).items():
            (folder / name / f"{split}.jsonl").write_bytes(dump(rows))
