"""The commands that look after results folders: choosing searched rates, and putting records into one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from lora_bench.errors import NOTHING, SOME_FAILED, BenchError
from lora_bench.store import Loaded, Record

Folder = Annotated[Path, typer.Option(help="The results folder.")]


def choose(
    results: Folder,
    rank: Annotated[list[int] | None, typer.Option(help="Ranks to give rates to, by the nearest searched.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods.")] = None,
) -> Iterator[str]:
    """Print blocks of a config with the learning rates that a search found best on held-out rows."""
    from lora_bench.grid import choose as choosing

    records = [record for record in _sound(results) if not method or record.cell.method in method]
    chosen = choosing.choices(records)
    yield from choosing.as_yaml(choosing.blocks(chosen, rank or ())).splitlines()
    edges = [choice for choice in chosen if choice.edge]
    if edges:
        yield f"# {len(edges)} of {len(chosen)} rates are the lowest or the highest that was tried"


def archive(results: Folder) -> Iterator[str]:
    """Put all records into one compressed file, records.jsonl.gz; every command reads it as it reads cells/."""
    from lora_bench import archive as archives
    from lora_bench import store

    records = _sound(results)
    path = archives.write(results, (store.record_text(record) for record in records))
    kept = set(archives.lines(results))
    for record in records:
        if store.record_text(record) in kept:
            store.record_path(results, record.id).unlink(missing_ok=True)
    yield f"{len(records)} records, {path.stat().st_size:,} bytes"
    yield str(path)


def _sound(results: Path) -> tuple[Record, ...]:
    """The folder's records; BenchError if there are none, or damaged ones."""
    from lora_bench import store

    loaded: Loaded = store.read_records(results)
    for path, reason in loaded.broken:
        raise BenchError(f"'{path}' is no sound record: {reason}.", "Mend or remove it first.", SOME_FAILED)
    if not loaded.records:
        raise BenchError(f"There are no records under '{results}'.", "Give --results a folder of a run.", NOTHING)
    return loaded.records
