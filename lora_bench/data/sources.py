"""From a file to the rows of one split: texts and checked labels.

A folder may hold parquet or jsonl with the Hub's column names, or GLUE's own tsv. Whatever is wrong with a file is told
in one line that names the file, the row and the trouble (BenchError, code 3). Lone surrogates become U+FFFD, as no
tokenizer takes them; nothing else in a text is touched.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lora_bench.errors import MISSING, BenchError, nearest
from lora_bench.tasks import Task, tsv_file

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

Labels = NDArray[np.int64] | NDArray[np.float32]

LOWEST, HIGHEST = 0.0, 5.0  # of STS-B's similarity
_SURROGATE = re.compile("[\ud800-\udfff]")
_REDO = "Export or download the file again."


@dataclass(frozen=True, eq=False)
class Rows:
    """One split: `texts` holds a list of N strings a text column, `labels` is int64 [N], float32 for regression."""

    texts: tuple[list[str], ...]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Raw:
    """Unchecked columns of N values, and what a message calls the file and its rows (`line 3` of a tsv)."""

    where: str
    texts: list[list[Any]]
    labels: list[Any]
    unit: str = "row"
    numbers: Sequence[int] = ()

    def at(self, index: int) -> str:
        """`FILE, line 3` for the row at `index`, counting from 1."""
        return f"{self.where}, {self.unit} {self.numbers[index] if self.numbers else index + 1}"


def candidates(root: Path, task: Task, split: str) -> list[Path]:
    """The files that may hold a split, in the order they are looked for (the third is the Hub's own layout)."""
    names = [f"{split}.parquet", f"{split}.jsonl", f"{split}-00000-of-00001.parquet", tsv_file(split), f"{split}.tsv"]
    folders = dict.fromkeys((task.name, task.tsv.folder))
    return [root / folder / name for folder in folders for name in names]


def find(root: Path, task: Task, split: str) -> Path:
    """The file of a split under `root`. Raises BenchError (code 3), saying what was expected, when there is none."""
    for path in candidates(root, task, split):
        if path.is_file():
            return path
    expected = root / task.name / f"{split}.parquet"
    hint = f"Expected '{expected}' (or .jsonl), or GLUE's own '{root / task.tsv.folder / tsv_file(split)}'."
    if not root.is_dir():
        raise BenchError(f"The data folder '{root}' does not exist.", hint, MISSING)
    if (root / expected.name).is_file() or (root / tsv_file(split)).is_file():
        hint = f"--data-dir takes the folder above, which holds one folder a task: '{expected}'."
    raise BenchError(f"No file of {task.name}'s split '{split}' in the data folder '{root}'.", hint, MISSING)


def read(path: Path, task: Task) -> Rows:
    """The rows of one split file; its suffix says the format. Raises BenchError (code 3) for anything wrong in it."""
    reader = {".parquet": _parquet, ".jsonl": _jsonl, ".tsv": _tsv}[path.suffix]
    with unreadable(path):
        raw = reader(path, task)
    return checked(raw, task)


def _broken(what: str, hint: str = _REDO) -> BenchError:
    return BenchError(what, hint, MISSING)


def first_line(error: BaseException) -> str:
    """`Kind: message` of an error, cut to one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Turns what readers raise for a truncated or foreign file (Arrow's errors are ValueErrors too) into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, csv.Error, NotImplementedError) as error:
        raise _broken(f"'{path}' cannot be read as {path.suffix[1:]} ({first_line(error)}).") from error


def _parquet(path: Path, task: Task) -> Raw:
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

    with pq.ParquetFile(path) as file:
        for column in (*task.columns, "label"):
            _require(column, file.schema_arrow.names, str(path))
        return from_table(file.read(columns=[*task.columns, "label"]), task, str(path))


def from_table(table: pa.Table, task: Task, where: str) -> Raw:
    """The task's columns of an Arrow table, unchecked; messages will call the table `where`."""
    texts = [table.column(column).to_pylist() for column in task.columns]
    return Raw(where, texts, table.column("label").to_pylist())


def _require(column: str, names: Sequence[str], where: str) -> None:
    if column not in names:
        raise _broken(f"{where}: no column '{column}'.", nearest(column, map(str, names)))


def _jsonl(path: Path, task: Task) -> Raw:
    columns: dict[str, list[Any]] = {column: [] for column in (*task.columns, "label")}
    numbers: list[int] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                numbers.append(number)
                record = _object(line, f"{path}, line {number}")
                for column, values in columns.items():
                    _require(column, list(record), f"{path}, line {number}")
                    values.append(record[column])
    labels = columns.pop("label")
    return Raw(str(path), list(columns.values()), labels, "line", numbers)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _broken(f"{where}: not JSON ({first_line(error)}).") from error
    if not isinstance(record, dict):
        raise _broken(f"{where}: not a JSON object but {type(record).__name__}.")
    return record


def _tsv(path: Path, task: Task) -> Raw:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = list(task.tsv.names) or next(lines, [])
        if not names:
            raise _broken(f"{path}: no rows.")
        places = _places(names, task, path)
        raw = Raw(str(path), [[] for _ in task.columns], [], "line", numbers := [])
        for fields in lines:
            if len(fields) > max(places):
                numbers.append(lines.line_num)
                for column, place in zip((*raw.texts, raw.labels), places, strict=True):
                    column.append(fields[place])
            elif fields and not task.tsv.skip_short:
                raise _broken(f"{path}, line {lines.line_num}: {len(fields)} fields, not {len(names)}.")
    return raw


def _places(names: Sequence[str], task: Task, path: Path) -> list[int]:
    """Where the text columns and the label stand, by GLUE's names of them or else the Hub's."""
    places = []
    pairs = zip((*task.tsv.columns, task.tsv.label), (*task.columns, "label"), strict=True)
    for own, hub in pairs:
        name = own if own in names or hub not in names else hub
        _require(name, names, str(path))
        places.append(names.index(name))
    return places


def checked(raw: Raw, task: Task) -> Rows:
    """The columns as Rows. Raises BenchError (code 3) for no rows, a text that is null or a label out of range."""
    if not raw.labels:
        raise _broken(f"{raw.where}: no rows.")
    texts = tuple(_texts(raw, column, values) for column, values in zip(task.columns, raw.texts, strict=True))
    return Rows(texts, _scores(raw) if task.is_regression else _classes(raw, task))


def _texts(raw: Raw, column: str, values: list[Any]) -> list[str]:
    for index, value in enumerate(values):
        if type(value) is not str:
            kind = "null" if value is None else f"{type(value).__name__} and not text"
            raise _broken(f"{raw.at(index)}: '{column}' is {kind}.")
    return [_SURROGATE.sub("\ufffd", value) for value in values]


def _classes(raw: Raw, task: Task) -> Labels:
    """Class ids from ids or from label names; `True` and `1.0` are neither, though they equal 1."""
    known: dict[int | str, int] = {}
    for label, name in enumerate(task.labels):
        known |= {label: label, str(label): label, name: label}
    for index, value in enumerate(raw.labels):
        if type(value) not in (int, str) or value not in known:
            allowed = ", ".join(f"{label} {name}" for label, name in enumerate(task.labels))
            raise _label_error(raw, index, f"one of {allowed}")
    return np.array([known[value] for value in raw.labels], dtype=np.int64)


def _scores(raw: Raw) -> Labels:
    values = [_number(value) for value in raw.labels]
    for index, value in enumerate(values):
        if not LOWEST <= value <= HIGHEST:
            raise _label_error(raw, index, f"a number from {LOWEST:g} to {HIGHEST:g}")
    return np.array(values, dtype=np.float32)


def _number(value: Any) -> float:
    try:
        return float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _label_error(raw: Raw, index: int, wanted: str) -> BenchError:
    value = raw.labels[index]
    if str(value) in ("-1", "-1.0"):
        return _broken(f"{raw.at(index)}: label -1 is GLUE's hidden test label.", "Use the validation split.")
    return _broken(f"{raw.at(index)}: label {repr(value)[:60]} is not {wanted}.")
