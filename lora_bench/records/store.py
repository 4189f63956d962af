"""Records on disk: `DIR/cells/<id>.json` is the truth, `DIR/metrics.csv` is derived from it and never read.

A record is written whole or not at all: to a temporary file in the same folder, flushed, then renamed. Its last field
is a checksum; a file that is no sound record is told of, and set aside where a record takes its place.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import tempfile
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lora_bench.errors import MISSING, NOTHING, SOME_FAILED, USAGE, BenchError, of_the_system
from lora_bench.records import archive
from lora_bench.records.files import read_file, write_atomically
from lora_bench.records.schema import NEWER, SCHEMA, Record
from lora_bench.records.seal import seal, unseal
from lora_bench.text import clean, counted, sheet

if TYPE_CHECKING:
    from pandas import DataFrame

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman", "accuracy_matched", "accuracy_mismatched")
COLUMNS = (
    "id", "model", "task", "method", "rank", "a", "b", "targets", "seed", "lr", "alpha", "epochs", "batch_size",
    "max_length", "status", "adapter_params", "head_params", "adapter_bytes", "metric", "best", "best_epoch", "last",
    "seconds", "tokens_per_second", "score", "score_epoch", "select", "init", "head_lr", "weight_decay", "warmup",
    "clip", "precision", "data", "modules", "pack_size", "pack_seconds", "peak_bytes", "halved", "train_rows",
    "eval_rows",
    *(f"{name}_{which}" for name in METRICS for which in ("best", "last")),
    "lora_bench", "python", "torch", "transformers", "device", "reason",
    "adapter_bytes_fp16", "head_bytes", "head_bytes_fp16", "origin", "cell",
    "task_origin", "macro_f1_best", "macro_f1_last",
)  # fmt: skip


OURS = ("cells", "adapters", "pending", "states", "leases")  # the folders in which files are moved and removed
LABEL = "cell-"  # before an id: some ids, such as 8815219826e9, are numbers to spreadsheets and to pandas
READABLE = "Make the file readable (its rights, the disk or its server), then give the same command again."
_OWN = frozenset({"id", "status", "reason", "metric", "best", "best_epoch", "last", "score", "score_epoch"})


@dataclass(frozen=True)
class Loaded:
    """What a results folder holds: the sound records, sorted by id, and the files that are not, with the reason.

    `unreadable`: those of these files that the system could not read. They may be sound, so nothing replaces them.
    """

    records: tuple[Record, ...]
    broken: tuple[tuple[Path, str], ...]
    unreadable: frozenset[Path] = frozenset()

    def refusal(self, path: Path, reason: str, hint: str) -> BenchError:
        """The error for one of the broken files. `hint`: what helps where it is certain that it is no record."""
        if path in self.unreadable:
            return BenchError(f"The record '{path}' may be sound, but {reason}.", READABLE, SOME_FAILED)
        return BenchError(f"'{path}' is no sound record: {reason}.", hint, SOME_FAILED)

    def refuse_newer(self, ids: Container[str]) -> None:
        """BenchError (code 3) where the record of one of these cells is of a newer schema: it must not be replaced."""
        for path, reason in self.broken:
            if reason.startswith(NEWER) and path.stem in ids:
                raise BenchError(f"'{path}' was {reason}.", "Upgrade lora-bench, or give another --results.", MISSING)


class UnreadableError(ValueError):
    """The system could not read a record, which may be sound. `cause`: what it said."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"it cannot be read: {cause.strerror or type(cause).__name__}")
        self.cause = cause


# there is something, and it is certain that it is no record
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG})


def record_path(results: Path, cell_id: str) -> Path:
    """Where the record of that cell lies."""
    return results / "cells" / f"{cell_id}.json"


def refuse_links(results: Path) -> None:
    """See that the folders in which files are moved and removed are ours. BenchError (code 3) if one is a link."""
    for name in OURS:
        if (results / name).is_symlink():
            raise BenchError(
                f"'{results / name}' is a link: files are moved and removed there, and it leads to somebody else's.",
                "Put a folder in its place, or give another --results (which may be a link itself).", MISSING,
            )  # fmt: skip


def prepare(results: Path) -> None:
    """Make the folders, and see that they can be written before anything trains. BenchError (code 3) if not."""
    refuse_links(results)
    try:
        for name in ("cells", "adapters"):
            (results / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=results / name):
                pass
        if (results / "metrics.csv").is_dir():
            raise IsADirectoryError(None, "'metrics.csv' is a folder")
    except OSError as error:
        raise unusable(results, error) from error


def unusable(results: Path, error: OSError) -> BenchError:
    """The error for a results folder that is none, or cannot be read or written."""
    return BenchError(
        f"The results folder '{results}' cannot be used: {error.strerror}.", "Give --results a folder of its own.",
        MISSING,
    )  # fmt: skip


def write_record(results: Path, record: Record) -> None:
    """Write one record. Whatever is in its place and is no record is kept beside it, as `<id>.json.broken`."""
    path = record_path(results, record.id)
    make_room(path)
    write_atomically(path, record_text(record))


def record_text(record: Record) -> bytes:
    """What is written of a record."""
    return seal(record.model_dump_json(exclude_defaults=False))


def make_room(path: Path) -> None:
    """Rename what is in the place of a record and is none; a record stays.

    Raises:
        OSError: what is there cannot be read, so it may be a record.
    """
    if not os.path.lexists(path):
        return
    try:
        read_record(path)
    except UnreadableError as error:
        raise error.cause from None
    except ValueError:
        names = (f"{path.name}.broken{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        path.rename(next(place for name in names if not os.path.lexists(place := path.with_name(name))))


def read_record(path: Path) -> Record:
    """Read one record; links are not followed.

    Raises:
        UnreadableError: the system cannot read the file.
        ValueError: there is no sound record; it says in one line what is wrong.
    """
    try:
        content = read_file(path, follow=False, largest=archive.LARGEST)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise UnreadableError(error) from None
        raise ValueError(error.strerror or "cannot be read") from None
    record = parse(content)
    if record.id != path.stem:
        raise ValueError("its id is not its file's name")
    return record


def parse(content: bytes) -> Record:
    """The record that was written so; ValueError says in one line what is wrong with it."""
    try:
        record = Record.model_validate_json(unseal(content))
    except ValidationError as error:
        raise ValueError(_first(error)) from None
    if record.id != record.cell.id:
        raise ValueError("its id is not the hash of its settings")
    return record


def _first(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    for each in errors:
        if each["loc"] == ("schema_version",) and type(each["input"]) is int and each["input"] > SCHEMA:
            return f"{NEWER} (schema {each['input']})"
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    words = {
        "json_invalid": f"it is not whole JSON ({first['msg'].removeprefix('Invalid JSON: ')})",
        "extra_forbidden": f"it has '{where}', which no record has",
        "missing": f"it has no '{where}'",
    }
    return clean(words.get(first["type"], f"its '{where}' is not valid: {first['msg']}"))[:200]


def _files(results: Path) -> list[str]:
    """The names of all record files, sorted; names alone, as 100,000 Paths are slow to sort."""
    try:
        return sorted(name for name in os.listdir(results / "cells") if name.endswith(".json"))  # noqa: PTH208
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable(results, error) from error


def count_records(results: Path) -> int:
    """About how many records there are, sound or not; the archive's by its size."""
    path = archive.path_of(results)
    return len(_files(results)) + (path.stat().st_size // 500 if path.is_file() else 0)


def archive_stamp(results: Path) -> tuple[int, int, int] | None:
    """What changes when the archive is written; None if there is none. BenchError (code 3) if nobody can tell."""
    try:
        return archive.stamp(results)
    except OSError as error:
        raise unusable(results, error) from error


def read_archive(results: Path) -> Loaded:
    """The records of the folder's archive, and what is wrong with it.

    Raises:
        BenchError: exit code 3 if the system cannot read it: nobody knows which records there are.
    """
    records: list[Record] = []
    try:
        for line in archive.lines(results):
            records.append(parse(line))
    except OSError as error:
        raise of_the_system(error) from error
    except ValueError as error:
        return Loaded(
            tuple(records), ((archive.path_of(results), f"after {counted(len(records), 'record')}: {error}"),)
        )
    return Loaded(tuple(records), ())


def move_to_archive(results: Path, records: Iterable[Record]) -> Path:
    """Under the folder's lock: write the archive anew, then remove the files of `cells/` whose content is in it.

    Each file is read again before it is removed, and compared with what the archive holds on the disk.
    """
    path = archive.write(results, map(record_text, records))
    archived = frozenset(archive.lines(results))
    for file in map((results / "cells").joinpath, _files(results)):
        with suppress(ValueError):  # what is no sound record stays
            if record_text(read_record(file)) in archived:
                file.unlink()
    return path


def read_records(results: Path) -> Loaded:
    """Every record under `results`, sorted by id, and the files that are none."""
    while True:
        before = archive_stamp(results)
        loaded = _read_once(results)
        if archive_stamp(results) == before:  # else records may have moved into it meanwhile
            return loaded


def _read_once(results: Path) -> Loaded:
    archived = read_archive(results)
    records = {record.id: record for record in archived.records}
    broken, unreadable = list(archived.broken), set[Path]()
    for path in map((results / "cells").joinpath, _files(results)):
        try:
            records[path.stem] = read_record(path)
        except ValueError as error:
            if not os.path.lexists(path):
                continue  # it has just been moved into the archive
            records.pop(path.stem, None)
            broken.append((path, str(error)))
            unreadable |= {path} if isinstance(error, UnreadableError) else set()
    return Loaded(tuple(records[cell] for cell in sorted(records)), tuple(broken), frozenset(unreadable))


def _metric_columns(record: Record) -> dict[str, object]:
    if not record.epochs:
        return {}
    best = next((epoch for epoch in record.epochs if epoch.epoch == record.best_epoch), None)
    row: dict[str, object] = {f"{name}_last": value for name, value in record.epochs[-1].metrics.items()}
    if best is not None:
        row |= {f"{name}_best": value for name, value in best.metrics.items()}
    return row


def row(record: Record) -> dict[str, object]:
    """The record as a row of metrics.csv. `<metric>_best` is its value at the main metric's best epoch."""
    values: dict[str, object] = dict(vars(record.cell))
    values |= {name: value for name, value in vars(record).items() if name in _OWN}
    for part in (record.counts, record.timing, record.data):
        values |= vars(part) if part is not None else {}
    values |= record.environment | _metric_columns(record)
    values["cell"] = f"{LABEL}{record.id}"
    return {column: values.get(column) for column in COLUMNS}


def write_csv(results: Path, records: Iterable[Record]) -> Path:
    """Write `metrics.csv`, one row a record in the order of ids; an empty field is a value there is none of."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in sorted(records, key=lambda record: record.id):
        writer.writerow(map(sheet, row(record).values()))
    path = results / "metrics.csv"
    write_atomically(path, text.getvalue().encode())
    return path


def read_metrics(results: Path | str) -> DataFrame:
    """`metrics.csv` as a pandas frame in which every id is text, also where all of them look like numbers."""
    import pandas as pd

    return pd.read_csv(Path(results) / "metrics.csv", dtype={"id": str, "cell": str})


def find_record(results: Path, beginning: str) -> Record:
    """The one record of a results folder whose id begins so; `cell-` before it, as metrics.csv has it, is left out.

    Raises:
        BenchError: exit code 4 if there is none, 2 if there are several, 1 if its file is damaged or cannot be read.
    """
    beginning = beginning.removeprefix(LABEL)
    loaded = read_records(results)
    found = [record for record in loaded.records if record.id.startswith(beginning)]
    damaged = [(path, why) for path, why in loaded.broken if path.stem.startswith(beginning)]
    if damaged and not found:
        raise loaded.refusal(*damaged[0], "Train the cell again: the file is kept beside the new one.")
    if len(found) != 1:
        trouble = "No record" if not found else f"{len(found)} records"
        raise BenchError(
            f"{trouble} under '{results}' with an id that begins '{beginning}'.",
            "See `lora-bench list runs --results DIR`.", USAGE if found else NOTHING,
        )  # fmt: skip
    return found[0]
