"""Locates the files of a split, and turns their columns into checked rows.

Files are parquet, jsonl or csv with the Hub's column names, GLUE's own tsv, or those that a task lists. A split may be
in several files. An error in a file is a BenchError (exit code 3) that names the file, the row and the problem. Lone
surrogates in texts are replaced by U+FFFD, since tokenizers refuse them; texts are not changed otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_bench.data.content import LARGEST, MOST_ROWS, data_error, read_content, reader_errors, too_large
from lora_bench.data.formats import READERS, UNQUOTED, Raw
from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.records.files import listing
from lora_bench.tasks.glue import tsv_file
from lora_bench.tasks.task import Files, Task

Labels = NDArray[np.int64] | NDArray[np.float32]

_SURROGATE = re.compile("[\ud800-\udfff]")
_PART = r"-(\d{5})-of-(\d{5})\.(parquet|jsonl|csv)"  # as the Hub names the parts of a split


@dataclass(frozen=True, eq=False)
class Rows:
    """The N rows of a split.

    Attributes:
        texts: A list of N strings for each text column.
        labels: `[N]`, int64, or float32 for a regression.
        notes: Messages about the files for the user.
    """

    texts: tuple[list[str], ...]
    labels: Labels
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def candidates(root: Path, task: Task, split: str) -> list[Path]:
    """Return the files that may contain a split, in the order in which they are tried. The third name is the Hub's."""
    names = [f"{split}.parquet", f"{split}.jsonl", f"{split}-00000-of-00001.parquet"]
    names += [f"{split}.tsv"] if task.tsv is None else [tsv_file(split), f"{split}.tsv"]
    return [folder / name for folder in _folders(root, task) for name in [*names, f"{split}.csv"]]


def _folders(root: Path, task: Task) -> list[Path]:
    names = (task.name,) if task.tsv is None else (task.name, task.tsv.folder)
    return [root / name for name in dict.fromkeys(names)]


def find(root: Path, task: Task, split: str) -> tuple[Path, ...]:
    """Return the files of a split under `root`: one, or its parts in order.

    Raises:
        BenchError: Exit code 3 if there is none, if a part is missing, or if a candidate exists but is not a regular
            file. The next candidate could contain other rows, hence it is not tried then.
    """
    for path in candidates(root, task, split):
        if path.is_file():
            return (path,)
        if path.exists() or path.is_symlink():
            what = f"'{path}' is not a regular file{_kind(path)}."
            raise data_error(
                what, "Put the data there as a file, or remove it so that another file of the split is read."
            )
    parts = next(filter(None, (_parts(folder, split) for folder in _folders(root, task))), ())
    if parts:
        return parts
    expected = root / task.name / f"{split}.parquet"
    hint = f"Expected '{expected}' (or .jsonl, .csv)"
    if task.tsv is not None:
        hint += f", or GLUE's own '{root / task.tsv.folder / tsv_file(split)}'"
    if not root.is_dir():
        raise BenchError(f"The data folder '{root}' does not exist.", f"{hint}.", MISSING)
    if any((root / name).is_file() for name in (expected.name, f"{split}.csv", tsv_file(split))):
        hint = f"--data-dir takes the folder above, which holds one folder a task: '{expected}'"
    raise BenchError(f"No file of {task.name}'s split '{split}' in the data folder '{root}'.", f"{hint}.", MISSING)


def refuse_shared_files(files: Mapping[str, Sequence[Path]]) -> None:
    """Refuse a file that is in two splits: a cell would be scored on rows that it was trained on.

    Raises:
        BenchError: Exit code 3.
    """
    split_of: dict[Path, str] = {}
    for split, paths in files.items():
        for path in paths:
            other = split_of.setdefault(path.resolve(), split)
            if other != split:
                raise data_error(f"'{path}' is a file of '{other}' and of '{split}'.", "Give each split its own files.")


def _parts(folder: Path, split: str) -> tuple[Path, ...]:
    """The parts `<split>-00000-of-00003.parquet` and so on; empty if the split is not in parts."""
    pattern = re.compile(re.escape(split) + _PART)
    parts = {path: match for path in listing(folder) if (match := pattern.fullmatch(path.name))}
    if not parts:
        return ()
    kinds = {(match[2], match[3]) for match in parts.values()}
    if len(kinds) > 1:
        what = f"The parts of '{split}' in '{folder}' are of different numbers of parts or formats."
        raise data_error(what, "Leave the parts of one of them there.")
    ((total, suffix),) = kinds
    paths = [folder / f"{split}-{number:05}-of-{total}.{suffix}" for number in range(int(total))]
    missing = next((path for path in paths if path not in parts), None)
    if missing is not None or len(paths) != len(parts):
        raise data_error(f"The split '{split}' has {len(parts)} of {len(paths)} parts, without '{missing}'.")
    return tuple(paths)


def listed_files(files: Files, task: Task, split: str) -> tuple[Path, ...]:
    """Return the files that a task lists for a split, in order.

    Raises:
        BenchError: Exit code 3 if a path or a pattern matches no file, 2 for an unknown format or a repeated file.
    """
    assert files.root is not None  # set when the task was added
    patterns = files.splits[split]
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matching = _matching(files.root, pattern)
        if not matching:
            what = f"No file of {task.name}'s split '{split}': '{files.root / pattern}' does not exist."
            raise BenchError(what, "Put it there, or correct the paths in the task's file.", MISSING)
        paths += matching
    for path in paths:
        if path.suffix not in READERS:
            known = ", ".join(sorted(READERS))
            raise BenchError(f"'{path}' has an unknown format.", f"Give files that end with {known}.", USAGE)
        if paths.count(path) > 1:
            raise BenchError(f"'{path}' is listed twice for the split '{split}'.", "List each file once.", USAGE)
    return tuple(paths)


def _matching(root: Path, pattern: str) -> list[Path]:
    """The files that match a path or a pattern, relative to `root` unless it is absolute."""
    path = root / pattern
    try:
        if "*" not in pattern:
            return [path] if path.is_file() else []
        base = Path(path.anchor) if Path(pattern).is_absolute() else root
        return sorted(match for match in base.glob(str(path.relative_to(base))) if match.is_file())
    except (OSError, ValueError, NotImplementedError):  # not a valid path on this system
        return []


def _kind(path: Path) -> str:
    """What the path is instead of a file, as the end of a sentence."""
    kinds = (
        (path.is_dir, "a folder"),
        (path.is_fifo, "a pipe"),
        (path.is_socket, "a socket"),
        (path.is_block_device, "a device"),
        (path.is_char_device, "a device"),
    )
    kind = next((name for is_kind, name in kinds if is_kind()), "" if path.exists() else "a link to nothing")
    return f" but {kind}" if kind else ""


def read(path: Path, task: Task) -> Rows:
    """Return the rows of one file, whose suffix determines the format.

    Raises:
        BenchError: Exit code 3 if anything in it is wrong.
    """
    return to_rows(parse(read_content(path), path, task), task)


def read_parts(paths: Iterable[Path], split: str) -> list[tuple[Path, bytes]]:
    """Return the files of a split with their bytes.

    Raises:
        BenchError: Exit code 3 if a file cannot be used, or if they are too large together.
    """
    contents: list[tuple[Path, bytes]] = []
    size = 0
    for path in paths:
        contents.append((path, read_content(path)))
        size += len(contents[-1][1])
        if size > LARGEST:
            raise too_large(f"'{split}' up to '{path}'", f"{size / 2**30:.1f} GiB")
    return contents


def join(parts: Sequence[Rows], split: str) -> Rows:
    """Return the rows of all parts of a split, one part after another."""
    if len(parts) == 1:
        return parts[0]
    count = sum(map(len, parts))
    if count > MOST_ROWS:
        raise too_large(f"'{split}'", f"{count:,} rows")
    labels: Any = np.concatenate([part.labels for part in parts])
    texts = tuple(list(chain.from_iterable(column)) for column in zip(*(part.texts for part in parts), strict=True))
    return Rows(texts, labels, tuple(note for part in parts for note in part.notes))


def parse(content: bytes, path: Path, task: Task, labelled: bool = True) -> Raw:
    """Parse the content of a file into columns that are not checked yet, without labels unless `labelled`."""
    with reader_errors(path):
        return READERS[path.suffix](content, str(path), task, labelled)


def to_rows(raw: Raw, task: Task) -> Rows:
    """Check columns and return them as Rows.

    Raises:
        BenchError: Exit code 3 if there are no rows, a text is not a string, or a label is not valid.
    """
    if not raw.labels:
        raise data_error(f"{raw.where}: no rows.")
    texts = tuple(_texts(raw, column, values) for column, values in zip(task.columns, raw.texts, strict=True))
    return Rows(texts, _scores(raw, task) if task.is_regression else _classes(raw, task), raw.notes)


def _texts(raw: Raw, column: str, values: list[Any]) -> list[str]:
    for index, value in enumerate(values):
        if type(value) is not str:
            kind = "null" if value is None else f"{type(value).__name__} and not text"
            raise data_error(f"{raw.at(index)}: '{column}' is {kind}.")
    return [_SURROGATE.sub("\ufffd", value) for value in values]


def _classes(raw: Raw, task: Task) -> Labels:
    """Convert labels, given as numbers or names, to class numbers. `True` and `1.0` are refused, although they equal 1.

    If a name of a label is an integer itself, numbers are read as names: "1" to "5" stars are classes 0 to 4.
    """
    classes: dict[int | str, int] = {name: label for label, name in enumerate(task.labels)}
    if any(map(_is_integer, task.labels)):
        classes |= {int(name): label for label, name in enumerate(task.labels) if _is_integer(name)}
        allowed = ", ".join(task.labels)
    else:
        for label in range(len(task.labels)):
            classes |= {label: label, str(label): label}
        allowed = ", ".join(f"{label} {name}" for label, name in enumerate(task.labels))
    for index, value in enumerate(raw.labels):
        if type(value) not in (int, str) or value not in classes:
            valid_labels = f"0 to {len(task.labels) - 1}, or by name: {', '.join(task.labels)}"
            raise _label_error(raw, index, f"one of {allowed}", f"Labels of {task.name} are {valid_labels}.", task)
    return np.array([classes[value] for value in raw.labels], dtype=np.int64)


def _is_integer(name: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", name) is not None


def _scores(raw: Raw, task: Task) -> Labels:
    """Convert the labels of a regression to float32."""
    lowest, highest = task.bounds
    values = [_number(value) for value in raw.labels]
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite and is refused below
        labels = np.array(values, dtype=np.float32)
    is_finite = np.isfinite(labels)
    for index, value in enumerate(values):
        if not (is_finite[index] and lowest <= value <= highest):
            bounded = math.isfinite(lowest) or math.isfinite(highest)
            allowed = f"a number from {lowest:g} to {highest:g}" if bounded else "a finite number"
            raise _label_error(raw, index, allowed, f"Labels of {task.title} are numbers: give {allowed}.", task)
    return labels


def _number(value: Any) -> float:
    try:
        return float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _label_error(raw: Raw, index: int, allowed: str, hint: str, task: Task) -> BenchError:
    value = raw.labels[index]
    if str(value) in ("-1", "-1.0") and task.submissions:
        return data_error(f"{raw.at(index)}: label -1 is GLUE's hidden test label.", "Use the validation split.")
    what = f"{raw.at(index)}: label {repr(value)[:60]} is not {allowed}"
    if raw.doubt is not None:
        return data_error(f"{what}; {raw.doubt}.", UNQUOTED)
    return data_error(f"{what}.", hint)
