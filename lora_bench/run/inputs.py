"""The encoder and a task's tables, kept from one pack to the next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lora_bench import data, methods, tasks
from lora_bench.cell import Cell
from lora_bench.data import hub
from lora_bench.data.tokens import TokenTable, held_out, join, tokenize
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.targets import resolve
from lora_bench.engine.encoder.windows import Table
from lora_bench.engine.shortage import shortages
from lora_bench.engine.trainer import Split
from lora_bench.errors import MISSING, BenchError
from lora_bench.forecast import geometry
from lora_bench.models import identity, location
from lora_bench.records.schema import DataInfo
from lora_bench.run.interfaces import Options, View
from lora_bench.run.plan import Plan, source_of
from lora_bench.run.tokenizer import load_tokenizer

HELD_OUT = 0.1


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task's tables on the device."""

    train: Table
    evaluation: Split
    held_out: Table | None
    info: DataInfo


class Loader:
    """Loads what the cells of a pack have in common. Keeps the backbone and the tables of the pack before."""

    def __init__(self, plan: Plan, options: Options, view: View, device: torch.device) -> None:
        self.plan, self.options, self.view, self.device = plan, options, view, device
        self._backbone: tuple[tuple[str, str, bool], Backbone] | None = None
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._tables: tuple[tuple[object, ...], Prepared] | None = None
        self._notes: set[str] = set()

    def backbone(self, cell: Cell) -> Backbone:
        """The cell's encoder on the device.

        Raises:
            BenchError: exit code 3 if it is missing, or none that is trained here; 2 if targets of the plan match none
                of its weights: before anything trains on it.
        """
        trains = methods.get(cell.method).trains_backbone
        key = (cell.model, cell.precision, trains and cell.precision == "bf16")
        if self._backbone is None or self._backbone[0] != key:
            where = self.plan.grid.model_location(cell)
            self.view.stage(f"loading {where}")
            self._backbone = self._tables = None
            with shortages(f"the model '{where}' was loaded"):
                local = self._local_only(where)
                with hub.hub_mode(local):
                    loaded = encoders.load(location(where), self.device, cell.precision, trains, local)
            unchanged(where, cell)
            for targets in sorted(
                {each.targets for each in self.plan.todo if each.model == cell.model and each.targets}
            ):
                resolve(loaded.linears(), targets)
            self._backbone = key, loaded
            geometry.load_geometry.cache_clear()  # a model that has just been downloaded has sizes now
        return self._backbone[1]

    def _local_only(self, name: str) -> bool:
        """Whether transformers must not ask the Hub; it would try for half a minute where there is no network."""
        return self.options.offline or Path(location(name)).is_dir() or not self._hub_answers

    @cached_property
    def _hub_answers(self) -> bool:
        return hub.reachable()

    def tables(self, cell: Cell, backbone: Backbone) -> Prepared:
        """The tables of the cell's task.

        Raises:
            BenchError: data or tokenizer are missing, broken, or not for this encoder.
        """
        key = (cell.model, cell.data, cell.task, cell.max_length, cell.seed if cell.select == "held-out" else None)
        if self._tables is None or self._tables[0] != key:
            self.view.stage(f"preparing {cell.task}")
            self._tables = None
            where = self.plan.grid.model_location(cell)
            fresh = where not in self._tokenizers
            with shortages(f"the data of {cell.task} were prepared"):
                self._tables = key, self._prepare(cell, backbone)
            if fresh:
                unchanged(where, cell)
        return self._tables[1]

    def _tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        if name not in self._tokenizers:
            self._tokenizers[name] = load_tokenizer(location(name), self._local_only(name))
        return self._tokenizers[name]

    def _note(self, text: str) -> None:
        """Tell the user, once a run."""
        if text not in self._notes:
            self._notes.add(text)
            self.view.warn(text)

    def _prepare(self, cell: Cell, backbone: Backbone) -> Prepared:
        task = tasks.get(cell.task)
        place = self.plan.grid.data_location(cell)
        rows = data.load(task, source_of(place), self.options.offline, cell.data)
        for note in rows.notes:
            self._note(note)
        tokenizer = self._tokenizer(self.plan.grid.model_location(cell))
        made = {
            split: tokenize(part, tokenizer, cell.max_length, self.options.cache)
            for split, part in {"train": rows.train, **rows.evals}.items()
        }
        for table in made.values():
            check_fits(table, backbone)
        train, held = made.pop("train"), None
        if cell.select == "held-out":
            train, held = held_out(train, cell.seed, HELD_OUT)
        evaluation = join(list(made.values()))
        ends = np.cumsum([len(table) for table in made.values()]).tolist()
        parts = {name: slice(end - len(table), end) for (name, table), end in zip(made.items(), ends, strict=True)}
        info = DataInfo(
            source=cell.data, train_rows=len(train), eval_rows=len(evaluation),
            fingerprint=f"{train.fingerprint}+{evaluation.fingerprint}",
        )  # fmt: skip
        on_device = [backbone.table(table) for table in (train, evaluation)]
        kept = None if held is None else backbone.table(held)
        return Prepared(on_device[0], Split(on_device[1], parts), kept, info)


def unchanged(name: str, cell: Cell) -> None:
    """Refuse a directory whose files are others than when the cells were planned: after they were read.

    Raises:
        BenchError: exit code 3.
    """
    present = identity(name)
    if present != cell.model:
        what = f"The model '{name}' has changed since the plan was made: it was {cell.model}, it is {present}."
        raise BenchError(what, "Give the same command again, to train over what is there now.", MISSING)


def check_fits(table: TokenTable, backbone: Backbone) -> None:
    """Refuse tokens that the encoder has no embedding or position for."""
    vocabulary = int(backbone.config.vocab_size)
    if table.max_id >= vocabulary:
        raise BenchError(
            f"The tokenizer makes token {table.max_id}, the model has {vocabulary} embeddings.",
            "Use the tokenizer that belongs to the model.", MISSING,
        )  # fmt: skip
    longest = int(table.lengths.max())
    if longest > backbone.longest:
        raise BenchError(
            f"A sequence has {longest} tokens, the model takes {backbone.longest}.",
            f"Use --max-length {backbone.longest} or less.",
        )
