"""From the bytes of a file to unchecked columns: one reader a format, for splits with labels and for test splits.

Labels that a file names (parquet's ClassLabel) come as their names, whatever numbers the file gives them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.data.content import LARGEST, MOST_ROWS, REDO, broken, first_line, too_large
from lora_bench.errors import BenchError, nearest
from lora_bench.tasks.task import Task
from lora_bench.text import counted

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

INDEX = ("idx", "index", "id")  # the Hub's name of a row's number, GLUE's, and GLUE's for QQP
UNQUOTED = "Write parquet, jsonl, csv, or a tsv without quotes (quoting=csv.QUOTE_NONE), as GLUE's are."
_CSV_HINT = 'Put texts with commas, quotes or line breaks between quotes ("), and double the quotes in them.'
_LEAST_IN_BATCH, _MOST_IN_BATCH = 64, 256
_MANY_WRAPPED = 8  # so many texts between quotes, and hardly a quote elsewhere, are no accident
_WRAPPED_SHARE = 0.05  # of all texts; 0.02 at most in GLUE, where ten times as many have their quotes elsewhere
_COMMAS_WRAPPED = 3  # so many texts between quotes, the very ones that have a comma, are none either


@dataclass(frozen=True, eq=False)
class Raw:
    """Unchecked columns of N values, and what a message calls the file and its rows (`line 3` of a tsv).

    `index`: the numbers of a test split's rows, None where no column has them; `notes`: what the user should know;
    `doubt`: what makes the file look quoted, and so may be the cause where a value cannot be right.
    """

    where: str
    texts: list[list[Any]]
    labels: list[Any]
    index: list[Any] | None = None
    unit: str = "row"
    numbers: Sequence[int] = ()
    notes: tuple[str, ...] = ()
    doubt: str | None = None

    def at(self, row: int) -> str:
        """`FILE, line 3` for the row at `row`, counting from 0."""
        return f"{self.where}, {self.unit} {self.numbers[row] if self.numbers else row + 1}"


@dataclass(frozen=True)
class Layout:
    """The names that a file has for the columns that are read; a test split's labels are not."""

    texts: list[str]
    label: str | None
    index: str | None

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.texts, *filter(None, (self.label, self.index))]

    def raw(self, where: str, columns: Mapping[str, list[Any]], **more: Any) -> Raw:
        """The columns by what they are; labels that are not read are zeros."""
        texts = [columns[name] for name in self.texts]
        labels = [0] * len(texts[0]) if self.label is None else columns[self.label]
        return Raw(where, texts, labels, None if self.index is None else columns[self.index], **more)


Reader = Callable[[bytes, str, Task, bool], Raw]


def _layout(names: Sequence[str], task: Task, labelled: bool, where: str, glue_first: bool = False) -> Layout:
    """Which of a file's columns are the task's: by the names of the task's source or by those of GLUE's own download.

    Args:
        names: the columns of the file.
        task: the task.
        labelled: whether the label is read.
        where: what a message calls the file.
        glue_first: whether GLUE's own names are looked for first.
    """
    options = task.column_names[::-1] if glue_first else task.column_names

    def one(alternatives: Sequence[str]) -> str:
        name = next((name for name in alternatives if name in names), alternatives[0])
        _require(name, names, where)
        return name

    texts = [one(alternatives) for alternatives in zip(*(option.texts for option in options), strict=True)]
    if labelled:
        return Layout(texts, one([option.label for option in options]), None)
    return Layout(texts, None, next((name for name in INDEX if name in names), None))


def _require(column: str, names: Sequence[str], where: str) -> None:
    count = names.count(column)
    if not count:
        raise broken(f"{where}: no column '{column}'.", nearest(column, map(str, names)))
    if count > 1:
        raise broken(f"{where}: {count} columns are named '{column}'.", "Name each column once.")


def parquet(content: bytes, where: str, task: Task, labelled: bool) -> Raw:
    """The columns of a parquet file, unpacked in parts so that one that grows beyond the limits is noticed."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        layout = _layout(file.schema_arrow.names, task, labelled, where)
        # Of the groups alone: to ask for a column's size in a damaged file ends the process.
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        packed = sum(group.total_byte_size for group in groups)
        _check_size(where, file.metadata.num_rows, packed)
        # A value may be as long as all that is packed, and stand in every row.
        rows = min(max(LARGEST // max(packed, 1), _LEAST_IN_BATCH), _MOST_IN_BATCH)
        batches = file.iter_batches(batch_size=rows, columns=layout.names)
        names = _class_names(file.schema_arrow.metadata, layout)
        return _from_batches(batches, layout, where, names)


def from_table(table: pa.Table, task: Task, where: str, labelled: bool, names: Sequence[str] = ()) -> Raw:
    """The columns of an Arrow table; messages will call it `where`. `names`: those of the labels 0, 1 and so on."""
    return _from_batches(table.to_batches(), _layout(table.column_names, task, labelled, where), where, names)


def _from_batches(batches: Iterable[pa.RecordBatch], layout: Layout, where: str, names: Sequence[str]) -> Raw:
    columns: dict[str, list[Any]] = {name: [] for name in layout.names}
    size = 0
    for batch in batches:
        arrays = [batch.column(name) for name in columns]
        size += sum(map(_unpacked_bytes, arrays))
        _check_size(where, len(columns[layout.texts[0]]) + batch.num_rows, size)
        for values, array in zip(columns.values(), arrays, strict=True):
            values.extend((array.dictionary_decode() if hasattr(array, "dictionary") else array).to_pylist())
    if layout.label is not None and names:
        columns[layout.label] = [_named(value, names) for value in columns[layout.label]]
    return layout.raw(where, columns)


def _unpacked_bytes(array: pa.Array) -> int:
    """The size of the values, those of a dictionary as often as they are used."""
    import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]
    from pyarrow import types

    is_text = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    if not hasattr(array, "dictionary") or not any(check(array.type.value_type) for check in is_text):
        return int(array.nbytes)
    return int(pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0)


def _check_size(where: str, rows: int, size: int = 0) -> None:
    if rows > MOST_ROWS:
        raise too_large(where, f"{rows:,} rows")
    if size > LARGEST:
        raise too_large(where, f"{size / 2**30:.1f} GiB unpacked")


def _class_names(metadata: Mapping[bytes, bytes] | None, layout: Layout) -> Sequence[str]:
    """The names of the labels 0, 1 and so on, where `datasets` has written them into the schema."""
    content: Any = json.loads((metadata or {}).get(b"huggingface", b"null"))
    for key in ("info", "features", layout.label):
        content = content.get(key) if isinstance(content, dict) else None
    names = content.get("names") if isinstance(content, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else ()


def _named(value: Any, names: Sequence[str]) -> Any:
    return names[value] if type(value) is int and 0 <= value < len(names) else value


def jsonl(content: bytes, where: str, task: Task, labelled: bool) -> Raw:
    """The columns of a file with a JSON object a line; all lines have the names that the first one has."""
    layout, columns, numbers = None, dict[str, list[Any]](), list[int]()
    with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            record = _object(line, f"{where}, line {number}")
            if layout is None:
                layout = _layout(list(record), task, labelled, f"{where}, line {number}")
                columns = {name: [] for name in layout.names}
            numbers.append(number)
            _check_size(where, len(numbers))
            for name, values in columns.items():
                _require(name, list(record), f"{where}, line {number}")
                values.append(record[name])
    if layout is None:
        raise broken(f"{where}: no rows.")
    return layout.raw(where, columns, unit="line", numbers=numbers)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise broken(f"{where}: not JSON ({first_line(error)}).") from error
    if not isinstance(record, dict):
        raise broken(f"{where}: not a JSON object but {type(record).__name__}.")
    return record


def tsv(content: bytes, where: str, task: Task, labelled: bool) -> Raw:
    """The columns of a tsv as GLUE writes them: never quoted, so that a quote is a character like any other.

    Raises BenchError (code 3) for a file whose fields are quoted all the same, and for one with rows that have too
    few fields or too many; but see `Tsv.from_quoted`.
    """
    with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = list(task.tsv.names if task.tsv is not None and labelled else ()) or next(lines, [])
        if not names:
            raise broken(f"{where}: no rows.")
        if any(map(_is_wrapped, names)):
            raise _quoted(where, "the names of its columns are quoted")
        layout = _layout(names, task, labelled, where, glue_first=True)
        columns: dict[str, list[Any]] = {name: [] for name in layout.names}
        indices = [names.index(name) for name in columns]
        numbers: list[int] = []
        uneven: list[tuple[int, list[str]]] = []
        for fields in lines:
            _check_size(where, len(numbers) + len(uneven))
            if len(fields) > max(indices) and not any(fields[len(names) :]):
                numbers.append(lines.line_num)
                for values, index in zip(columns.values(), indices, strict=True):
                    values.append(fields[index])
            elif len(names) == 1 or "".join(fields).strip() or len(fields) > 1:
                uneven.append((lines.line_num, fields))
    while uneven and not uneven[-1][1] and uneven[-1][0] > (numbers or [0])[-1]:
        uneven.pop()  # the end of a file of one column
    notes = _left_out(where, task, len(names), len(numbers), uneven)
    doubt = _doubt(uneven)
    raw = layout.raw(where, columns, unit="line", numbers=numbers, notes=notes, doubt=doubt)
    found = _first_quoted(raw.texts)
    if found is not None and not (_is_from_quoted(task) and len(numbers) in task.official_rows):
        row, how = found
        raise _quoted(raw.at(row), f"its fields are quoted, {how}")
    return raw


def _is_from_quoted(task: Task) -> bool:
    return task.tsv is not None and task.tsv.from_quoted


def _left_out(where: str, task: Task, wanted: int, rows: int, uneven: list[tuple[int, list[str]]]) -> tuple[str, ...]:
    """What is said of rows without the right number of fields: nothing if there are none; mostly they end the run."""
    if not uneven:
        return ()
    total = rows + len(uneven)
    if _is_from_quoted(task) and len(uneven) <= max(2, total // 1000) and all(len(row) < wanted for _, row in uneven):
        return (f"{where}: {len(uneven):,} of {total:,} rows have too few fields and are left out, as on the Hub.",)
    line, fields = uneven[0]
    what = f"{where}, line {line}: {len(fields)} field{'' if len(fields) == 1 else 's'}, not {wanted}"
    if len(uneven) > 1:
        what += f"; so it is in {len(uneven):,} of {total:,} rows"
    if _doubt(uneven) is not None:
        raise _quoted(what, "its fields are quoted, with line breaks or tabs in them")
    raise broken(f"{what}.", REDO)


def _doubt(uneven: list[tuple[int, list[str]]]) -> str | None:
    """What makes a file look quoted: a row of too few fields or too many in which a quote opens and does not close."""
    for line, row in uneven:
        if any(field.startswith('"') and field.count('"') % 2 for field in row):
            return (
                f"line {line} opens a quote and ends in it, so that fields seem to be quoted, with line breaks in them"
            )
    return None


def _quoted(where: str, how: str) -> BenchError:
    return broken(f"{where}: {how}.", UNQUOTED)


def _is_wrapped(field: str) -> bool:
    """Whether a field is as a writer that quotes would have written it: in quotes, and those inside doubled."""
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")


def _first_quoted(texts: Sequence[Sequence[str]]) -> tuple[int, str] | None:
    """The first row that shows that the file was written with quotes, and what shows it; None if it was not.

    A writer that quotes does so with every text that has a quote in it: those that it could not have written speak
    against it. A few texts between quotes say nothing, as GLUE has such, unless they are the very texts with a comma
    (as spreadsheets write them); many do, where few texts have their quotes elsewhere.
    """
    first: dict[str, int] = {}
    doubled = against = wrapped = with_comma = wrapped_comma = 0
    for column in texts:
        for row, text in enumerate(column):
            with_comma += "," in text
            if '"' not in text:
                continue
            if not _is_wrapped(text):
                against += 1
                continue
            wrapped += 1
            wrapped_comma += "," in text
            first["wrapped"] = min(first.get("wrapped", row), row)
            if '""' in text[1:-1]:
                doubled += 1
                first["doubled"] = min(first.get("doubled", row), row)
    if doubled > against:
        return first["doubled"], "and quotes in them doubled"
    total = sum(map(len, texts))
    if wrapped >= _COMMAS_WRAPPED and wrapped == wrapped_comma == with_comma and not against:
        return first["wrapped"], f"as a spreadsheet does: the {wrapped:,} of {total:,} texts that have a comma"
    if wrapped >= max(_MANY_WRAPPED, _WRAPPED_SHARE * total, against + 1):
        return first["wrapped"], f"{wrapped:,} of {total:,} texts from end to end"
    return None


def comma_separated(content: bytes, where: str, task: Task, labelled: bool) -> Raw:
    """The columns of a csv with a header: fields that hold commas, quotes or line breaks are quoted.

    Raises BenchError (code 3) for quotes that do not close, and for rows with too few fields or too many.
    """
    columns, numbers, layout = dict[str, list[Any]](), list[int](), None
    with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="") as file:
        for number, fields in _csv_rows(file, where):
            if layout is None:
                names = fields
                layout = _layout(names, task, labelled, where)
                columns = {name: [] for name in layout.names}
                indices = [names.index(name) for name in columns]
                continue
            if len(fields) != len(names):
                what = f"{where}, line {number}: {counted(len(fields), 'field')}, not {len(names)}"
                raise broken(f"{what}.", _CSV_HINT)
            numbers.append(number)
            _check_size(where, len(numbers))
            for values, index in zip(columns.values(), indices, strict=True):
                values.append(fields[index])
    if layout is None:
        raise broken(f"{where}: no rows.")
    return layout.raw(where, columns, unit="line", numbers=numbers)


def _csv_rows(file: Iterable[str], where: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its first line: a text may go over several."""
    lines = csv.reader(file, strict=True)
    while True:
        number = lines.line_num + 1
        try:
            fields = next(lines, None)
        except csv.Error as error:
            raise broken(f"{where}, line {number}: not csv ({first_line(error)}).", _CSV_HINT) from error
        if fields is None:
            return
        if fields:
            yield number, fields


READERS: Mapping[str, Reader] = {".parquet": parquet, ".jsonl": jsonl, ".tsv": tsv, ".csv": comma_separated}
