"""The commands that work on the records of a results folder: `choose`, `archive` and `show --command`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_bench.cli import completion
from lora_bench.cli.export import PublicOption, PushOption
from lora_bench.errors import NOTHING, BenchError
from lora_bench.text import clean, counted

if TYPE_CHECKING:
    from lora_bench.records.schema import Record

ResultsOption = Annotated[Path, typer.Option(help="The results folder.")]


def choose(
    results: ResultsOption,
    rank: Annotated[
        list[int] | None, typer.Option(help="Ranks that take the rates of the nearest rank searched; repeatable.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Only this method; repeatable.", autocompletion=completion.method_names),
    ] = None,
) -> Iterator[str]:
    """Print config blocks with the learning rates that a search found best on held-out training rows."""
    from lora_bench.grid import choose as search

    records = [record for record in _sound_records(results) if not method or record.cell.method in method]
    searched = search.choose_rates(records)
    rates = [choice for choice in searched if choice.metric > -math.inf]
    failed = [choice for choice in searched if choice not in rates]
    if failed and not rates:
        what = "At every rate that was tried a cell failed or diverged, so none can be chosen."
        raise BenchError(what, "Search lower rates, with `select: held-out`.", NOTHING)
    yield from search.as_yaml(search.config_blocks(rates, rank or ())).splitlines()
    for choice in failed:
        settings = choice.settings
        named = f"{settings.method}, {choice.task}" + (f", rank {settings.rank}" if settings.rank else "")
        yield clean(f"# no rate for {named}: at every rate that was tried a cell failed or diverged")
    at_edge = sum(rate.at_edge for rate in rates)
    if at_edge:
        verb = "is" if len(rates) == 1 else "are"
        yield f"# {at_edge} of {counted(len(rates), 'rate')} {verb} the lowest or the highest that was tried"


def archive(results: ResultsOption, push: PushOption = None, public: PublicOption = False) -> Iterator[str]:
    """Move all records into one compressed file, records.jsonl.gz; every command reads it as it reads cells/.

    --push sends it to a dataset repository of the Hub, with metrics.csv, compare.yaml and a card.
    """
    from lora_bench.push import check_options
    from lora_bench.records import store
    from lora_bench.run.owner import Owner
    from lora_bench.run.publish import RecordStore

    check_options(push, public)
    _sound_records(results)
    with Owner(results):
        record_store = RecordStore(results)
        record_store.begin()
        try:
            record_store.recover()
            records = _sound_records(results)
            path = store.move_to_archive(results, records)
            record_store.write_csv()
        finally:
            record_store.end()
    yield f"{counted(len(records), 'record')}, {path.stat().st_size:,} bytes"
    if push is not None:
        yield _push_archive(push, results, path, records, public)
    yield str(path)


def _push_archive(repo: str, results: Path, archived: Path, records: Sequence[Record], public: bool) -> str:
    """Push the archive with what is read beside it; return the repository's address."""
    from lora_bench import compare
    from lora_bench import push as hub
    from lora_bench.records.card import results_card
    from lora_bench.records.store import CSV

    files: dict[str, Path | bytes] = {hub.CARD: hub.sealed_card(results_card(records, repo)).encode()}
    files |= {path.name: path for path in (archived, results / CSV, results / compare.NAME) if path.is_file()}
    return hub.push(
        repo, files, "dataset", f"{counted(len(records), 'record')} of lora-bench", public, allow_other_files=True
    )


def print_command(record: Record, include: Sequence[Path] | None) -> None:
    """Print the command that trains a cell again, in a results folder of its own; on standard error what to fill in.

    Args:
        record: The cell's record.
        include: The files that define its method or its task, as the user has named them.

    Raises:
        BenchError: Exit code 4 if no single command trains it; see `grid.command`.
    """
    from lora_bench.cli.options import including
    from lora_bench.grid import command

    cell, start = record.cell, record.protocol.start
    if cell.start is not None:
        raise BenchError(
            f"No single command trains {record.id} again: it continues from cell {cell.start} of {start}.",
            f"Run its config again, with `start: {{{cell.task}: {start}}}`, into another --results.",
            NOTHING,
        )
    including(include)
    line = command.training_command(cell, [str(path) for path in include or ()])
    meanings = {
        command.MODEL_DIR: f"the directory of the model, {cell.model.partition('@')[0]}",
        command.DATA_DIR: f"the folder that holds the data of {cell.task}",
    }
    for word, meaning in meanings.items():
        if f" {word} " in line:
            print(clean(f"{word} stands for {meaning}."), file=sys.stderr)
    print(clean(f"{line} --results results/again-{record.id}"))


def _sound_records(results: Path) -> tuple[Record, ...]:
    """Return the folder's records.

    Raises:
        BenchError: If there are none, or a damaged one.
    """
    from lora_bench.records import store

    loaded = store.read_records(results)
    loaded.require_sound()
    if not loaded.records:
        raise BenchError(f"There are no records under '{results}'.", "Give --results the folder of a run.", NOTHING)
    return loaded.records
