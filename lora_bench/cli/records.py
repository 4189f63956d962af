"""The commands that look after results folders: choosing searched rates, and putting records into one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from lora_bench.errors import MISSING, NOTHING, BenchError
from lora_bench.records.schema import Record
from lora_bench.records.store import Loaded
from lora_bench.text import counted

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
        verb = "is" if len(chosen) == 1 else "are"
        yield f"# {len(edges)} of {counted(len(chosen), 'rate')} {verb} the lowest or the highest that was tried"


def archive(results: Folder) -> Iterator[str]:
    """Put all records into one compressed file, records.jsonl.gz; every command reads it as it reads cells/."""
    from lora_bench.records import store
    from lora_bench.run.leases import Lease
    from lora_bench.run.publish import RecordStore

    _sound(results)
    with Lease(results) as lease, lease.locked():
        others = lease.others()
        if not lease.alone():
            who = ", ".join(sorted({str(holder) for holder in others.values()})) or "another process"
            raise BenchError(f"The results folder '{results}' is in use by {who}.", "Wait until that ends.", MISSING)
        record_store = RecordStore(results)
        record_store.recover()
        records = _sound(results)
        path = store.move_to_archive(results, records)
        record_store.write_csv()
    yield f"{counted(len(records), 'record')}, {path.stat().st_size:,} bytes"
    yield str(path)


def _sound(results: Path) -> tuple[Record, ...]:
    """The folder's records; BenchError if there are none, or damaged ones."""
    from lora_bench.records import store

    loaded: Loaded = store.read_records(results)
    for path, reason in loaded.broken:
        raise loaded.refusal(path, reason, "Train its cell again (the same `run`), or move the file away first.")
    if not loaded.records:
        raise BenchError(f"There are no records under '{results}'.", "Give --results a folder of a run.", NOTHING)
    return loaded.records
