"""Loads a trained cell by its id: the record, the encoder and the saved adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.data import hub
from lora_bench.data.model_source import ModelSource
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.errors import MISSING, BenchError
from lora_bench.grid.command import is_bundled, require_same_definitions
from lora_bench.models import SAMPLE
from lora_bench.records.schema import Record
from lora_bench.records.store import find_record, read_records
from lora_bench.run.tokenizer import load_tokenizer
from lora_bench.tasks.task import Task


@dataclass(frozen=True)
class Trained:
    """A finished cell.

    Attributes:
        record: Its record.
        seeds: The finished records with the same settings and any seed, this one among them.
        pack: The cell as a pack of one.
        model: The base model.
        offline: Whether transformers must not ask the Hub.
    """

    record: Record
    seeds: tuple[Record, ...]
    pack: Pack
    model: ModelSource
    offline: bool

    @property
    def cell(self) -> Cell:
        """The cell's settings."""
        return self.record.cell

    @property
    def task(self) -> Task:
        """The cell's task."""
        return tasks.of(self.cell)

    @property
    def base(self) -> str:
        """The base model's public name: its id on the Hub, or the name of its directory (never the path)."""
        return self.cell.model.partition("@")[0]

    @property
    def has_bundled_data(self) -> bool:
        """Whether it was trained on the bundled data; a dataset of the Hub may have an owner of such a name."""
        return self.cell.data.startswith(f"{SAMPLE}:")

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the model's tokenizer.

        Raises:
            BenchError: Exit code 3 if it cannot be loaded.
        """
        return load_tokenizer(self.model.location, self.offline)


def load(
    beginning: str, results: Path, model: Path | None = None, device: str = "cpu", offline: bool = False
) -> Trained:
    """Load a cell with the weights of its chosen epoch.

    Args:
        beginning: The cell's id, or the beginning of it.
        results: The results folder.
        model: The directory of the base model, if it is not from the Hub.
        device: Where the encoder is loaded to.
        offline: Whether to use local files only.

    Raises:
        BenchError: Exit code 4 without a record, 3 without its adapter, its model or the model's files.
    """
    record = find_record(results, beginning)
    folder = results / "adapters" / record.id
    if not (folder / "adapter.json").is_file():
        raise _no_adapter(record)
    source = find_model(record.cell, model)
    local_only = source.local_only(offline)
    require_same_definitions(record.cell)
    trains = methods.of(record.cell).trains_backbone
    with hub.hub_mode(local_only):
        backbone = encoders.load(source.location, torch.device(device), record.cell.precision, trains, local_only)
    pack = saved.load(folder, backbone)
    if pack.cells != (record.cell,):
        raise BenchError(f"'{folder}' is the adapter of another cell.", "Train the cell again.", MISSING)
    return Trained(record, _over_seeds(results, record), pack, source, local_only)


def _no_adapter(record: Record) -> BenchError:
    """Return the error for a cell without a saved adapter: why there is none, and what can be exported."""
    named = f"{record.id} ({record.cell.method})"
    if record.status != "done":
        what = f"{named} has nothing to export, since its training ended as {record.status}: {record.reason}."
        hint = "Export a cell that is done, as `lora-bench list runs` shows them."
        return BenchError(what, f"{hint} `run --retry {record.status}` trains this one again.", MISSING)
    if methods.of(record.cell).trains_backbone:
        what = f"{named} has nothing to export: it trained the whole model, which is not saved."
        return BenchError(what, "Export a cell of a method that trains an adapter.", MISSING)
    hint = "Adapters are saved unless --no-save is given: train it without that, into another --results."
    return BenchError(f"There is no saved adapter of {named}.", hint, MISSING)


def find_model(cell: Cell, given: Path | None) -> ModelSource:
    """Return the model of the cell: `given`, else the bundled encoder or the Hub's.

    Raises:
        BenchError: Exit code 3 if the model was a directory and none is given, or another one.
    """
    name, at, _ = cell.model.partition("@")
    if given is None and at and not is_bundled(cell):
        raise BenchError(f"The cell was trained over a directory, '{name}'.", "Say where it is: --model DIR.", MISSING)
    source = ModelSource.find(str(given) if given is not None else (SAMPLE if at else cell.model))
    if source.identity != cell.model:
        what = f"'{source.name}' is {source.identity}, the cell was trained over {cell.model}."
        hint = f"Leave --model out, and call this from a folder without a directory '{cell.model}'."
        raise BenchError(what, "Give --model the directory that it was trained over." if at else hint, MISSING)
    return source


def _over_seeds(results: Path, record: Record) -> tuple[Record, ...]:
    """Return the finished records that differ from this one in the seed alone, this one among them."""
    return tuple(
        other for other in read_records(results).records if other.status == "done" and other.settings == record.settings
    )
