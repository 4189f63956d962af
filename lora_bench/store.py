"""Records on disk: `DIR/cells/<id>.json` is the truth, `DIR/metrics.csv` is derived from it and never read.

A record is written whole or not at all: to a temporary file in the same folder, flushed, then renamed. Its last field
is a checksum; a file that is no sound record is told of, and set aside where a record takes its place.
"""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_bench import archive
from lora_bench.cell import Cell
from lora_bench.errors import MISSING, BenchError
from lora_bench.files import read_file, write_atomically
from lora_bench.seal import seal, unseal
from lora_bench.text import clean, sheet

SCHEMA: Literal[1] = 1
NEWER = "written by a newer lora-bench"
Finite = Annotated[float, Field(allow_inf_nan=False)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Status = Literal["done", "failed", "diverged", "oom"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Epoch(_Part):
    """One evaluation. `metrics` are of the validation split, `held_out` of the slice kept from train (or None)."""

    epoch: Natural
    loss: Finite | None
    metrics: dict[str, Finite | None]
    held_out: dict[str, Finite | None] | None = None


class Counts(_Part):
    """Numbers of trained values, the adapter without the head and the head beside it, and their files' bytes.

    `_fp16`: the bytes of the same file with every value in 16 bits. None in records from before these were counted.
    """

    adapter_params: Natural
    head_params: Natural
    adapter_bytes: Natural
    modules: Natural
    adapter_bytes_fp16: Natural | None = None
    head_bytes: Natural | None = None
    head_bytes_fp16: Natural | None = None


class Timing(_Part):
    """`seconds` is the cell's share of its pack's wall time: pack_seconds / pack_size.

    `peak_bytes`: the pack's device memory at its peak (a GPU's). `halved`: how often the pack was cut in two because
    memory ran out.
    """

    seconds: Finite
    pack_seconds: Finite
    pack_size: Natural
    tokens: Natural
    tokens_per_second: Finite
    peak_bytes: Natural | None = None
    halved: Natural = 0


class Protocol(_Part):
    """How the number was made: which split, how the epoch is chosen, what training starts from, what deviates."""

    split: str
    select: str
    start: str = "pretrained"
    notes: tuple[str, ...] = ()


class DataInfo(_Part):
    """What was read: the source, the rows of each split and a hash of the tokens and labels."""

    source: str
    train_rows: Natural
    eval_rows: Natural
    fingerprint: str


class Record(_Part):
    """A finished cell. `metric` names the task's main metric; `best`, `last` and `score` are its values."""

    schema_version: Literal[1] = SCHEMA
    id: str
    cell: Cell
    status: Status
    reason: str | None = None
    metric: str
    epochs: tuple[Epoch, ...] = ()
    best: Finite | None = None
    best_epoch: Natural | None = None
    last: Finite | None = None
    score: Finite | None = None
    score_epoch: Natural | None = None
    predictions: tuple[Finite, ...] = ()
    counts: Counts | None = None
    timing: Timing | None = None
    protocol: Protocol
    data: DataInfo | None = None
    environment: dict[str, str] = {}


METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman", "accuracy_matched", "accuracy_mismatched")
COLUMNS = (
    "id", "model", "task", "method", "rank", "a", "b", "targets", "seed", "lr", "alpha", "epochs", "batch_size",
    "max_length", "status", "adapter_params", "head_params", "adapter_bytes", "metric", "best", "best_epoch", "last",
    "seconds", "tokens_per_second", "score", "score_epoch", "select", "init", "head_lr", "weight_decay", "warmup",
    "clip", "precision", "data", "modules", "pack_size", "pack_seconds", "peak_bytes", "halved", "train_rows",
    "eval_rows",
    *(f"{name}_{which}" for name in METRICS for which in ("best", "last")),
    "lora_bench", "python", "torch", "transformers", "device", "reason",
    "adapter_bytes_fp16", "head_bytes", "head_bytes_fp16", "origin",
)  # fmt: skip


_OWN = frozenset({"id", "status", "reason", "metric", "best", "best_epoch", "last", "score", "score_epoch"})


@dataclass(frozen=True)
class Loaded:
    """What a results folder holds: the sound records, sorted by id, and the files that are not, with the reason."""

    records: tuple[Record, ...]
    broken: tuple[tuple[Path, str], ...]

    def refuse_newer(self, ids: Container[str]) -> None:
        """BenchError (code 3) where the record of one of these cells is of a newer schema: it must not be replaced."""
        for path, reason in self.broken:
            if reason.startswith(NEWER) and path.stem in ids:
                raise BenchError(f"'{path}' was {reason}.", "Upgrade lora-bench, or give another --results.", MISSING)


def record_path(results: Path, cell_id: str) -> Path:
    """Where the record of that cell lies."""
    return results / "cells" / f"{cell_id}.json"


def prepare(results: Path) -> None:
    """Make the folders, and see that they can be written before anything trains. BenchError (code 3) if not."""
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
    """Rename what is in the place of a record and is none; a record stays."""
    if not os.path.lexists(path):
        return
    try:
        read_record(path)
    except ValueError:
        names = (f"{path.name}.broken{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        path.rename(next(place for name in names if not os.path.lexists(place := path.with_name(name))))


def read_record(path: Path) -> Record:
    """Read one record; ValueError says in one line what is wrong with it."""
    try:
        record = parse(read_file(path))
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from None
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
    where = ".".join(str(part) for part in errors[0]["loc"])
    return clean(f"{where + ': ' if where else ''}{errors[0]['msg']}")[:200]


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


def read_archive(results: Path) -> Loaded:
    """The records of the folder's archive, and what is wrong with it."""
    records: list[Record] = []
    try:
        for line in archive.lines(results):
            records.append(parse(line))
    except (ValueError, OSError) as error:
        return Loaded(tuple(records), ((archive.path_of(results), f"after {len(records)} records: {error}"),))
    return Loaded(tuple(records), ())


def read_records(results: Path) -> Loaded:
    """Every record under `results`, sorted by id, and the files that are none."""
    archived = read_archive(results)
    records = {record.id: record for record in archived.records}
    broken = list(archived.broken)
    for path in map((results / "cells").joinpath, _files(results)):
        try:
            records[path.stem] = read_record(path)
        except ValueError as error:
            records.pop(path.stem, None)
            broken.append((path, str(error)))
    return Loaded(tuple(records[cell] for cell in sorted(records)), tuple(broken))


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
