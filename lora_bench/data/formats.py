"""Parses the bytes of a file into columns, whose values are not checked yet. There is one reader for each format.

Where a file names its labels (a ClassLabel feature in parquet), readers return the names, not the file's numbers.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_bench.data.content import LARGEST, MOST_ROWS, REDO, data_error, first_line, too_large
from lora_bench.errors import BenchError, nearest
from lora_bench.tasks.task import Task
from lora_bench.text import counted

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

INDEX = ("idx", "index", "id")  # the column of row numbers: on the Hub, in GLUE's files, in GLUE's QQP
UNQUOTED = "Write parquet, jsonl, csv, or a tsv without quotes (quoting=csv.QUOTE_NONE), as GLUE's are."
_CSV_HINT = 'Put texts with commas, quotes or line breaks between quotes ("), and double the quotes in them.'
_MIN_BATCH, _MAX_BATCH = 64, 256  # rows that are unpacked at once (chosen)
# How many texts must be in quotes for a tsv to count as quoted (chosen; `_first_quoted` has the three rules).
_MANY_QUOTED = 8
_QUOTED_SHARE = 0.05  # of all texts; in GLUE at most 0.02, and ten times as many texts have quotes elsewhere
_QUOTED_WITH_COMMA = 3  # if they are exactly the texts with a comma


@dataclass(frozen=True, eq=False)
class Raw:
    """The columns of a file, not checked yet, and what messages need to name a row.

    Attributes:
        where: What messages call the file.
        texts: The text columns, each with N values.
        labels: The N labels; zeros if the file has none.
        index: The row numbers of a test split; None if no column has them.
        unit: What messages call a row: `row`, or `line` in text formats.
        numbers: The number of each row in that unit; empty if rows are simply counted from 1.
        notes: Messages for the user.
        doubt: Why the file may be quoted although its format has no quotes. It is added to the error about a label
            that is not valid, since quotes may be the cause.
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
        """Return `FILE, line 3` for a row, counted from 0."""
        return f"{self.where}, {self.unit} {self.numbers[row] if self.numbers else row + 1}"


@dataclass(frozen=True)
class Layout:
    """The names of the columns to read in a file; `label` is None for a test split."""

    texts: list[str]
    label: str | None
    index: str | None

    @property
    def names(self) -> list[str]:
        """The names of all columns to read."""
        return [*self.texts, *filter(None, (self.label, self.index))]

    def raw(self, where: str, columns: Mapping[str, list[Any]], **more: Any) -> Raw:
        """Return the columns as a Raw, with zeros for labels that are not read; `more` are other fields of Raw."""
        texts = [columns[name] for name in self.texts]
        labels = [0] * len(texts[0]) if self.label is None else columns[self.label]
        return Raw(where, texts, labels, None if self.index is None else columns[self.index], **more)


Reader = Callable[[bytes, str, Task, bool], Raw]  # content, what messages call the file, task, whether it has labels


def _layout(names: Sequence[str], task: Task, labelled: bool, where: str, glue_first: bool = False) -> Layout:
    """Select the task's columns in a file, by the names of the task's source or those of GLUE's own download.

    Args:
        names: The columns of the file.
        task: The task.
        labelled: Whether the label is read.
        where: What messages call the file.
        glue_first: Whether GLUE's own names are tried first.

    Raises:
        BenchError: Exit code 3 if a column is missing or occurs twice.
    """
    options = task.column_names[::-1] if glue_first else task.column_names

    def first_present(alternatives: Sequence[str]) -> str:
        name = next((name for name in alternatives if name in names), alternatives[0])
        _require(name, names, where)
        return name

    texts = [first_present(alternatives) for alternatives in zip(*(option.texts for option in options), strict=True)]
    if labelled:
        return Layout(texts, first_present([option.label for option in options]), None)
    return Layout(texts, None, next((name for name in INDEX if name in names), None))


def _require(column: str, names: Sequence[str], where: str) -> None:
    count = names.count(column)
    if not count:
        raise data_error(f"{where}: no column '{column}'.", nearest(column, map(str, names)))
    if count > 1:
        raise data_error(f"{where}: {count} columns are named '{column}'.", "Name each column once.")


def read_parquet(content: bytes, where: str, task: Task, labelled: bool) -> Raw:
    """Read a parquet file, batch by batch, so that one that unpacks to more than the limits is refused in time."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        layout = _layout(file.schema_arrow.names, task, labelled, where)
        # Sizes are taken from row groups: asking for that of a column aborts the process if the file is damaged.
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        packed = sum(group.total_byte_size for group in groups)
        _check_size(where, file.metadata.num_rows, packed)
        # In the worst case (a dictionary) each row has a value as long as everything that is packed.
        rows = min(max(LARGEST // max(packed, 1), _MIN_BATCH), _MAX_BATCH)
        batches = file.iter_batches(batch_size=rows, columns=layout.names)
        names = _class_names(file.schema_arrow.metadata, layout)
        return _from_batches(batches, layout, where, names)


def read_table(table: pa.Table, task: Task, where: str, labelled: bool, names: Sequence[str] = ()) -> Raw:
    """Read an Arrow table.

    Args:
        table: The table.
        task: The task.
        where: What messages call the table.
        labelled: Whether the label is read.
        names: The names of the labels 0, 1 and so on, if known.
    """
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
        columns[layout.label] = [_label_name(value, names) for value in columns[layout.label]]
    return layout.raw(where, columns)


def _unpacked_bytes(array: pa.Array) -> int:
    """The size of the values, in which a value of a dictionary counts as often as it is used."""
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
    """The names of the labels 0, 1 and so on, if `datasets` has written them into the schema's metadata."""
    content: Any = json.loads((metadata or {}).get(b"huggingface", b"null"))
    for key in ("info", "features", layout.label):
        content = content.get(key) if isinstance(content, dict) else None
    names = content.get("names") if isinstance(content, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else ()


def _label_name(value: Any, names: Sequence[str]) -> Any:
    return names[value] if type(value) is int and 0 <= value < len(names) else value


def read_jsonl(content: bytes, where: str, task: Task, labelled: bool) -> Raw:
    """Read a file with one JSON object per line. Every line must have the columns of the first one."""
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
        raise data_error(f"{where}: no rows.")
    return layout.raw(where, columns, unit="line", numbers=numbers)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise data_error(f"{where}: not JSON ({first_line(error)}).") from error
    if not isinstance(record, dict):
        raise data_error(f"{where}: not a JSON object but {type(record).__name__}.")
    return record


def read_tsv(content: bytes, where: str, task: Task, labelled: bool) -> Raw:
    """Read a tsv as GLUE writes it: fields are never quoted, and a quote is an ordinary character.

    Raises:
        BenchError: Exit code 3 if the fields are quoted after all, or if rows have too few or too many fields, unless
            `Tsv.from_quoted` explains that.
    """
    with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = list(task.tsv.names if task.tsv is not None and labelled else ()) or next(lines, [])
        if not names:
            raise data_error(f"{where}: no rows.")
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
        uneven.pop()  # empty lines at the end of a file with one column
    notes = _check_uneven(where, task, len(names), len(numbers), uneven)
    doubt = _doubt(uneven)
    raw = layout.raw(where, columns, unit="line", numbers=numbers, notes=notes, doubt=doubt)
    quoted = _first_quoted(raw.texts)
    if quoted is not None and not (_is_from_quoted(task) and len(numbers) in task.official_rows):
        row, how = quoted
        raise _quoted(raw.at(row), f"its fields are quoted, {how}")
    return raw


def _is_from_quoted(task: Task) -> bool:
    return task.tsv is not None and task.tsv.from_quoted


def _check_uneven(
    where: str, task: Task, width: int, rows: int, uneven: list[tuple[int, list[str]]]
) -> tuple[str, ...]:
    """Refuse rows with a wrong number of fields; return a note where they may be skipped.

    Args:
        where: What messages call the file.
        task: The task.
        width: The right number of fields.
        rows: How many rows have it.
        uneven: The other rows, each with the number of its line.
    """
    if not uneven:
        return ()
    total = rows + len(uneven)
    if _is_from_quoted(task) and len(uneven) <= max(2, total // 1000) and all(len(row) < width for _, row in uneven):
        return (f"{where}: {len(uneven):,} of {total:,} rows have too few fields and are left out, as on the Hub.",)
    line, fields = uneven[0]
    what = f"{where}, line {line}: {counted(len(fields), 'field')}, not {width}"
    if len(uneven) > 1:
        what += f"; so it is in {len(uneven):,} of {total:,} rows"
    if _doubt(uneven) is not None:
        raise _quoted(what, "its fields are quoted, with line breaks or tabs in them")
    raise data_error(f"{what}.", REDO)


def _doubt(uneven: list[tuple[int, list[str]]]) -> str | None:
    """Why a file may be quoted: a row with a wrong number of fields in which a quote opens and does not close."""
    for line, row in uneven:
        if any(field.startswith('"') and field.count('"') % 2 for field in row):
            return (
                f"line {line} opens a quote and ends in it, so that fields seem to be quoted, with line breaks in them"
            )
    return None


def _quoted(where: str, how: str) -> BenchError:
    return data_error(f"{where}: {how}.", UNQUOTED)


def _is_wrapped(field: str) -> bool:
    """Whether a writer that quotes could have written the field: it is in quotes, and quotes within are doubled."""
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")


def _first_quoted(texts: Sequence[Sequence[str]]) -> tuple[int, str] | None:
    """Find out whether a file was written with quoted fields; return the first such row and why, or None.

    A writer that quotes also quotes every text that contains a quote. So texts with quotes that it could not have
    written (`unquoted`) count against it. The file counts as quoted if

    - more texts have doubled quotes than count against it;
    - at least 3 texts are in quotes, exactly those with a comma (as spreadsheets write), and none counts against it;
    - many texts are in quotes: at least 8, at least 5%, and more than count against it. GLUE has a few such texts.
    """
    first: dict[str, int] = {}
    doubled = unquoted = wrapped = with_comma = wrapped_comma = 0
    for column in texts:
        for row, text in enumerate(column):
            with_comma += "," in text
            if '"' not in text:
                continue
            if not _is_wrapped(text):
                unquoted += 1
                continue
            wrapped += 1
            wrapped_comma += "," in text
            first["wrapped"] = min(first.get("wrapped", row), row)
            if '""' in text[1:-1]:
                doubled += 1
                first["doubled"] = min(first.get("doubled", row), row)
    if doubled > unquoted:
        return first["doubled"], "and quotes in them doubled"
    total = sum(map(len, texts))
    if wrapped >= _QUOTED_WITH_COMMA and wrapped == wrapped_comma == with_comma and not unquoted:
        return first["wrapped"], f"as a spreadsheet does: the {wrapped:,} of {total:,} texts that have a comma"
    if wrapped >= max(_MANY_QUOTED, _QUOTED_SHARE * total, unquoted + 1):
        return first["wrapped"], f"{wrapped:,} of {total:,} texts from end to end"
    return None


def read_csv(content: bytes, where: str, task: Task, labelled: bool) -> Raw:
    """Read a csv with a header, in which fields with commas, quotes or line breaks are quoted.

    Raises:
        BenchError: Exit code 3 if a quote does not close, or if rows have too few or too many fields.
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
                raise data_error(f"{what}.", _CSV_HINT)
            numbers.append(number)
            _check_size(where, len(numbers))
            for values, index in zip(columns.values(), indices, strict=True):
                values.append(fields[index])
    if layout is None:
        raise data_error(f"{where}: no rows.")
    return layout.raw(where, columns, unit="line", numbers=numbers)


def _csv_rows(file: Iterable[str], where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, each with the number of its first line (a text may contain line breaks)."""
    lines = csv.reader(file, strict=True)
    while True:
        number = lines.line_num + 1
        try:
            fields = next(lines, None)
        except csv.Error as error:
            raise data_error(f"{where}, line {number}: not csv ({first_line(error)}).", _CSV_HINT) from error
        if fields is None:
            return
        if fields:
            yield number, fields


READERS: Mapping[str, Reader] = {".parquet": read_parquet, ".jsonl": read_jsonl, ".tsv": read_tsv, ".csv": read_csv}
