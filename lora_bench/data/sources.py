"""From a file to the rows of one split: texts and checked labels.

A folder may hold parquet or jsonl with the Hub's column names, or GLUE's own tsv; `content` reads a file, `formats` its
columns, and here they are found and checked. Whatever is wrong with a file is said in one line that names the file, the
row and the trouble (BenchError, code 3). Lone surrogates become U+FFFD, as no tokenizer takes them; nothing else in a
text is touched.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_bench.data.content import broken, read_content, unreadable
from lora_bench.data.formats import READERS, UNQUOTED, Raw
from lora_bench.errors import MISSING, BenchError
from lora_bench.tasks import Task, tsv_file

Labels = NDArray[np.int64] | NDArray[np.float32]

LOWEST, HIGHEST = 0.0, 5.0  # of STS-B's similarity
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Rows:
    """One split: `texts` holds a list of N strings a text column, `labels` is int64 [N], float32 for regression.

    `notes`: what the user should know of its file.
    """

    texts: tuple[list[str], ...]
    labels: Labels
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def candidates(root: Path, task: Task, split: str) -> list[Path]:
    """The files that may hold a split, in the order they are looked for (the third is the Hub's own layout)."""
    names = [f"{split}.parquet", f"{split}.jsonl", f"{split}-00000-of-00001.parquet", tsv_file(split), f"{split}.tsv"]
    folders = dict.fromkeys((task.name, task.tsv.folder))
    return [root / folder / name for folder in folders for name in names]


def find(root: Path, task: Task, split: str) -> Path:
    """The file of a split under `root`.

    Raises BenchError (code 3), saying what was expected, when there is none, and for what has the name of one but is
    something else: the next one in the order could hold other rows.
    """
    for path in candidates(root, task, split):
        if path.is_file():
            return path
        if path.exists() or path.is_symlink():
            what = f"'{path}' is no regular file{_kind(path)}."
            raise broken(
                what, "Put the data there as a file, or take it away for another file of the split to be read."
            )
    expected = root / task.name / f"{split}.parquet"
    hint = f"Expected '{expected}' (or .jsonl), or GLUE's own '{root / task.tsv.folder / tsv_file(split)}'."
    if not root.is_dir():
        raise BenchError(f"The data folder '{root}' does not exist.", hint, MISSING)
    if (root / expected.name).is_file() or (root / tsv_file(split)).is_file():
        hint = f"--data-dir takes the folder above, which holds one folder a task: '{expected}'."
    raise BenchError(f"No file of {task.name}'s split '{split}' in the data folder '{root}'.", hint, MISSING)


def _kind(path: Path) -> str:
    """What is there instead of a file, as the end of a sentence."""
    kinds = (
        (path.is_dir, "a folder"), (path.is_fifo, "a pipe"), (path.is_socket, "a socket"),
        (path.is_block_device, "a device"), (path.is_char_device, "a device"),
    )  # fmt: skip
    kind = next((name for holds, name in kinds if holds()), "" if path.exists() else "a link to nothing")
    return f" but {kind}" if kind else ""


def read(path: Path, task: Task) -> Rows:
    """The rows of one split file; its suffix says the format. Raises BenchError (code 3) for anything wrong in it."""
    return checked(parse(read_content(path), path, task), task)


def parse(content: bytes, path: Path, task: Task, labelled: bool = True) -> Raw:
    """The columns in the content of a split file, unchecked; those of a test split unless `labelled`."""
    with unreadable(path):
        return READERS[path.suffix](content, str(path), task, labelled)


def checked(raw: Raw, task: Task) -> Rows:
    """The columns as Rows. Raises BenchError (code 3) for no rows, a text that is null or a label out of range."""
    if not raw.labels:
        raise broken(f"{raw.where}: no rows.")
    texts = tuple(_texts(raw, column, values) for column, values in zip(task.columns, raw.texts, strict=True))
    return Rows(texts, _scores(raw) if task.is_regression else _classes(raw, task), raw.notes)


def _texts(raw: Raw, column: str, values: list[Any]) -> list[str]:
    for index, value in enumerate(values):
        if type(value) is not str:
            kind = "null" if value is None else f"{type(value).__name__} and not text"
            raise broken(f"{raw.at(index)}: '{column}' is {kind}.")
    return [_SURROGATE.sub("\ufffd", value) for value in values]


def _classes(raw: Raw, task: Task) -> Labels:
    """Class ids from ids or from label names; `True` and `1.0` are neither, though they equal 1."""
    known: dict[int | str, int] = {}
    for label, name in enumerate(task.labels):
        known |= {label: label, str(label): label, name: label}
    for index, value in enumerate(raw.labels):
        if type(value) not in (int, str) or value not in known:
            allowed = ", ".join(f"{label} {name}" for label, name in enumerate(task.labels))
            known_names = f"0 to {len(task.labels) - 1}, or by name: {', '.join(task.labels)}"
            raise _label_error(raw, index, f"one of {allowed}", f"Labels of {task.name} are {known_names}.")
    return np.array([known[value] for value in raw.labels], dtype=np.int64)


def _scores(raw: Raw) -> Labels:
    values = [_number(value) for value in raw.labels]
    for index, value in enumerate(values):
        if not LOWEST <= value <= HIGHEST:
            wanted = f"a number from {LOWEST:g} to {HIGHEST:g}"
            raise _label_error(raw, index, wanted, f"Labels of STS-B are similarities: give {wanted}.")
    return np.array(values, dtype=np.float32)


def _number(value: Any) -> float:
    try:
        return float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _label_error(raw: Raw, index: int, wanted: str, hint: str) -> BenchError:
    value = raw.labels[index]
    if str(value) in ("-1", "-1.0"):
        return broken(f"{raw.at(index)}: label -1 is GLUE's hidden test label.", "Use the validation split.")
    what = f"{raw.at(index)}: label {repr(value)[:60]} is not {wanted}"
    if raw.doubt is not None:
        return broken(f"{what}; {raw.doubt}.", UNQUOTED)
    return broken(f"{what}.", hint)
