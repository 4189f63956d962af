"""Records on disk: `DIR/cells/<id>.json`, those of the archive, and the table `DIR/metrics.csv` derived from them.

A record is written whole or not at all: to a temporary file in the same folder, flushed, then renamed. It is sealed
(`records.seal`); a file that is not a sound record is reported, and set aside when a record takes its name.
"""

from __future__ import annotations

import errno
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
from lora_bench.records.metric_columns import metric_columns
from lora_bench.records.schema import NEWER, SCHEMA, Record
from lora_bench.records.seal import seal, unseal
from lora_bench.text import clean, counted, sheet

if TYPE_CHECKING:
    from pandas import DataFrame

CSV = "metrics.csv"
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
)  # fmt: skip
# They follow where a record has them, then two columns for each metric of other tasks and for `nll`, `ece` and `brier`.
FURTHER = ("task_origin", "head", "start", "search")
LABEL = "cell-"  # before an id: some ids, such as 8815219826e9, are numbers to spreadsheets and to pandas
_ARCHIVED_BYTES = 500  # of a record in an archive, about; chosen
_RECORD_FIELDS = frozenset({"id", "status", "reason", "metric", "best", "best_epoch", "last", "score", "score_epoch"})
FOLDERS = ("cells", "adapters", "pending", "states")  # those in which files are moved and removed
READABLE = "Make the file readable (its rights, the disk or its server), then give the same command again."


@dataclass(frozen=True)
class Loaded:
    """The content of a results folder.

    Attributes:
        records: The sound records, sorted by id.
        broken: The files that are not sound records, with the reason.
        unreadable: Those of them that the system could not read. They may be sound, so nothing replaces them.
    """

    records: tuple[Record, ...]
    broken: tuple[tuple[Path, str], ...]
    unreadable: frozenset[Path] = frozenset()

    def refusal(self, path: Path, reason: str, hint: str) -> BenchError:
        """Return the error for one of the broken files.

        Args:
            path: The file.
            reason: What is wrong with it.
            hint: What helps where it is certain that the file is not a sound record.
        """
        if path in self.unreadable:
            return BenchError(f"The record '{path}' may be sound, but {reason}.", READABLE, SOME_FAILED)
        return BenchError(f"'{path}' is not a sound record: {reason}.", hint, SOME_FAILED)

    def require_sound(self) -> None:
        """Refuse a folder in which a record is broken.

        Raises:
            BenchError: Exit code 1.
        """
        for path, reason in self.broken:
            raise self.refusal(path, reason, "Train its cell again (the same `run`), or move the file away first.")

    def refuse_newer(self, ids: Container[str]) -> None:
        """Refuse to replace the record of one of these cells where it was written by a newer version.

        Raises:
            BenchError: Exit code 3.
        """
        for path, reason in self.broken:
            if reason.startswith(NEWER) and path.stem in ids:
                raise BenchError(f"'{path}' was {reason}.", "Upgrade lora-bench, or give another --results.", MISSING)


class UnreadableError(ValueError):
    """The system could not read a record, which may be sound. `cause` is the system's error."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"it cannot be read: {cause.strerror or type(cause).__name__}")
        self.cause = cause


# Errors after which it is certain that the name leads to no record.
_NO_RECORD = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG})


def record_path(results: Path, cell_id: str) -> Path:
    """Return the file of a cell's record."""
    return results / "cells" / f"{cell_id}.json"


def refuse_links(results: Path) -> None:
    """Refuse a results folder in which one of `FOLDERS` is a link.

    Raises:
        BenchError: Exit code 3.
    """
    for name in FOLDERS:
        if (results / name).is_symlink():
            raise BenchError(
                f"'{results / name}' is a link: files are moved and removed there, and it leads to somebody else's.",
                "Put a folder in its place, or give another --results (which may be a link itself).",
                MISSING,
            )


def prepare(results: Path) -> None:
    """Make the folders, and check before anything trains that they can be written.

    Raises:
        BenchError: Exit code 3 if they cannot.
    """
    refuse_links(results)
    try:
        for name in ("cells", "adapters"):
            (results / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=results / name):
                pass
        if (results / CSV).is_dir():
            raise IsADirectoryError(None, f"'{CSV}' is a folder")
    except OSError as error:
        raise unusable(results, error) from error


def unusable(results: Path, error: OSError) -> BenchError:
    """Return the error for a results folder that is not a folder, or cannot be read or written."""
    what = f"The results folder '{results}' cannot be used: {error.strerror}."
    return BenchError(what, "Give --results a folder of its own.", MISSING)


def write_record(results: Path, record: Record) -> None:
    """Write one record. A file of its name that is not a sound record is kept beside it, as `<id>.json.broken`."""
    path = record_path(results, record.id)
    set_aside(path)
    write_atomically(path, record_text(record))


def record_text(record: Record) -> bytes:
    """Return the content of a record's file."""
    return seal(record.model_dump_json(exclude_defaults=False))


def set_aside(path: Path) -> None:
    """Rename a file that has the name of a record but is not one; a sound record stays.

    Raises:
        OSError: The file cannot be read, so it may be a record.
    """
    if not os.path.lexists(path):
        return
    try:
        read_record(path)
    except UnreadableError as error:
        raise error.cause from None
    except ValueError:
        names = (f"{path.name}.broken{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        path.rename(next(free for name in names if not os.path.lexists(free := path.with_name(name))))


def read_record(path: Path) -> Record:
    """Read one record; links are not followed.

    Raises:
        UnreadableError: The system cannot read the file.
        ValueError: It is not a sound record; the message says in one line what is wrong.
    """
    try:
        content = read_file(path, follow=False, largest=archive.MAX_RECORD_BYTES)
    except OSError as error:
        if error.errno not in _NO_RECORD:
            raise UnreadableError(error) from None
        raise ValueError(error.strerror or "cannot be read") from None
    record = parse(content)
    if record.id != path.stem:
        raise ValueError("its id is not its file's name")
    return record


def parse(content: bytes) -> Record:
    """Return the record in the content of its file.

    Raises:
        ValueError: It is not sound; the message says in one line what is wrong.
    """
    try:
        record = Record.model_validate_json(unseal(content))
    except ValidationError as error:
        raise ValueError(_first_error(error)) from None
    if record.id != record.cell.id:
        raise ValueError("its id is not the hash of its settings")
    return record


def _first_error(error: ValidationError) -> str:
    """What is wrong, in one line; that a record is of a newer version goes before anything else."""
    errors = error.errors(include_url=False)
    for detail in errors:
        if detail["loc"] == ("schema_version",) and type(detail["input"]) is int and detail["input"] > SCHEMA:
            return f"{NEWER} (schema {detail['input']})"
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"])
    messages = {
        "json_invalid": f"it is not whole JSON ({first['msg'].removeprefix('Invalid JSON: ')})",
        "extra_forbidden": f"it has '{field}', which no record has",
        "missing": f"it has no '{field}'",
    }
    return clean(messages.get(first["type"], f"its '{field}' is not valid: {first['msg']}"))[:200]


def _record_files(results: Path) -> list[str]:
    """The names of all record files, sorted; names alone, as 100,000 Paths are slow to sort."""
    try:
        return sorted(name for name in os.listdir(results / "cells") if name.endswith(".json"))  # noqa: PTH208
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable(results, error) from error


def count_records(results: Path) -> int:
    """Return about how many records there are, sound or not; those of the archive are estimated from its size."""
    count = len(_record_files(results))  # first: it refuses what is not a folder
    path = archive.path_of(results)
    return count + (path.stat().st_size // _ARCHIVED_BYTES if path.is_file() else 0)


def archive_stamp(results: Path) -> tuple[int, int, int] | None:
    """Return what changes when the archive is written; None if there is none.

    Raises:
        BenchError: Exit code 3 if the system cannot say.
    """
    try:
        return archive.stamp(results)
    except OSError as error:
        raise unusable(results, error) from error


def read_archive(results: Path) -> Loaded:
    """Return the records of the folder's archive, and what is wrong with it.

    Raises:
        BenchError: Exit code 3 if the system cannot read it, so that it is unknown which records there are.
    """
    records: list[Record] = []
    try:
        for line in archive.lines(results):
            records.append(parse(line))
    except OSError as error:
        raise of_the_system(error) from error
    except ValueError as error:
        damage = f"after {counted(len(records), 'record')}: {error}"
        return Loaded(tuple(records), ((archive.path_of(results), damage),))
    return Loaded(tuple(records), ())


def move_to_archive(results: Path, records: Iterable[Record]) -> Path:
    """Write the archive anew, then remove the files of `cells/` whose content is in it. Needs the folder's lock.

    Each file is read again before it is removed, and compared with what the archive holds on the disk.

    Returns:
        The archive.
    """
    path = archive.write(results, map(record_text, records))
    archived = frozenset(archive.lines(results))
    for file in map((results / "cells").joinpath, _record_files(results)):
        with suppress(ValueError):  # a file that is not a sound record stays
            if record_text(read_record(file)) in archived:
                file.unlink()
    return path


def read_records(results: Path) -> Loaded:
    """Read every record of a results folder.

    Raises:
        BenchError: Exit code 3 if the folder or its archive cannot be read.
    """
    while True:
        before = archive_stamp(results)
        loaded = _read_once(results)
        if archive_stamp(results) == before:  # else records may have moved into it meanwhile
            return loaded


def _read_once(results: Path) -> Loaded:
    archived = read_archive(results)
    records = {record.id: record for record in archived.records}
    broken, unreadable = list(archived.broken), set[Path]()
    for path in map((results / "cells").joinpath, _record_files(results)):
        try:
            records[path.stem] = read_record(path)
        except ValueError as error:
            if not os.path.lexists(path):
                continue  # it has just been moved into the archive
            records.pop(path.stem, None)
            broken.append((path, str(error)))
            unreadable |= {path} if isinstance(error, UnreadableError) else set()
    return Loaded(tuple(records[cell_id] for cell_id in sorted(records)), tuple(broken), frozenset(unreadable))


def row(record: Record) -> dict[str, object]:
    """Return the values of a record by column; None where there is no value.

    `<metric>_best` is the metric, or `nll`, `ece` or `brier`, at the best epoch of the main metric. For a method with a
    posterior, `<name>_posterior` is each of them with averaged probabilities at the epoch of the score, and
    `nll_score`, `ece_score` and `brier_score` are those before. Columns beyond `COLUMNS` are there if the record has a
    value for them.
    """
    values: dict[str, object] = dict(vars(record.cell))
    values |= {name: value for name, value in vars(record).items() if name in _RECORD_FIELDS}
    for part in (record.counts, record.timing, record.data):
        values |= vars(part) if part is not None else {}
    metrics = metric_columns(record)
    values |= record.environment | metrics
    values["cell"] = f"{LABEL}{record.id}"
    values["search"] = None if record.search is None else record.search.role
    further = [name for name in (*FURTHER, *metrics) if name not in COLUMNS and values.get(name) is not None]
    return {column: values.get(column) for column in (*COLUMNS, *further)}


def metrics_frame(records: Iterable[Record]) -> DataFrame:
    """Return the table of records in the order of ids, with text made safe for spreadsheets (`text.sheet`).

    Every column holds Python objects, so that integers stay integers where values are missing.
    """
    import pandas as pd

    rows = [row(record) for record in sorted(records, key=lambda record: record.id)]
    further = {name for values in rows for name in values}.difference(COLUMNS)
    columns = [*COLUMNS, *(name for name in FURTHER if name in further), *sorted(further.difference(FURTHER))]
    cells = [[sheet(values.get(column)) for column in columns] for values in rows]
    return pd.DataFrame(cells, columns=columns, dtype=object)


def write_csv(results: Path, records: Iterable[Record], partial: Path | None = None) -> Path:
    """Write `metrics.csv`, and return its path; a missing value is an empty field.

    Until it is complete, the file is called `partial` (by default, a name beside it).
    """
    path = results / CSV
    write_atomically(path, metrics_frame(records).to_csv(index=False, lineterminator="\n").encode(), partial)
    return path


def read_metrics(results: Path | str) -> DataFrame:
    """Return `metrics.csv` as a pandas frame in which every id is text, even one that looks like a number."""
    import pandas as pd

    return pd.read_csv(Path(results) / CSV, dtype={"id": str, "cell": str})


def find_record(results: Path, beginning: str) -> Record:
    """Return the one record of a results folder whose id begins with some text.

    Args:
        results: The results folder.
        beginning: The text; `cell-` before it, as metrics.csv has it, is left out.

    Raises:
        BenchError: Exit code 4 if there is none, 2 if there are several, 1 if its file is damaged or cannot be read.
    """
    beginning = beginning.removeprefix(LABEL)
    loaded = read_records(results)
    records = [record for record in loaded.records if record.id.startswith(beginning)]
    damaged = [(path, reason) for path, reason in loaded.broken if path.stem.startswith(beginning)]
    if damaged and not records:
        raise loaded.refusal(*damaged[0], "Train the cell again: the file is kept beside the new one.")
    if len(records) != 1:
        number = "No record" if not records else f"{len(records)} records"
        raise BenchError(
            f"{number} under '{results}' with an id that begins '{beginning}'.",
            "See `lora-bench list runs --results DIR`.",
            USAGE if records else NOTHING,
        )
    return records[0]
