"""The encoder and a task's tables, loaded once and used by consecutive packs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lora_bench import data, methods, tasks
from lora_bench.cell import Cell
from lora_bench.data import DataSource, hub
from lora_bench.data.model_source import ModelSource
from lora_bench.data.tokens import TokenTable, held_out, join, tokenize
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Table
from lora_bench.engine.evaluation import Split
from lora_bench.engine.shortage import shortages
from lora_bench.errors import MISSING, BenchError
from lora_bench.forecast import geometry
from lora_bench.forecast.cost import HELD_OUT_FRACTION
from lora_bench.records.schema import DataInfo
from lora_bench.run.interfaces import Options, View
from lora_bench.run.status import TablesKey, tables_key
from lora_bench.run.tokenizer import load_tokenizer


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task's tables on the device.

    Attributes:
        train: The rows to train on.
        evaluation: The rows to evaluate on.
        held_out: The rows of the training split that select the epoch, if any.
        info: What records say of the data.
    """

    train: Table
    evaluation: Split
    held_out: Table | None
    info: DataInfo


@dataclass(frozen=True, eq=False)
class Tokens:
    """A task's tokens in the memory of the host.

    Attributes:
        train: The tokens of the rows to train on.
        held_out: The tokens of the rows of the training split that select the epoch, if any.
        evaluation: The tokens of the splits to evaluate on, one split after another.
        parts: The rows of `evaluation` that belong to each split.
        notes: What the user should know of the files.
    """

    train: TokenTable
    held_out: TokenTable | None
    evaluation: TokenTable
    parts: Mapping[str, slice]
    notes: tuple[str, ...]


class Loader:
    """Loads what the cells of a pack have in common, and keeps the backbone and the tables for the next pack.

    Args:
        models: The models by their identity.
        sources: The data sources by task and identity.
        options: Whether the Hub may be asked, and where tokenized data is kept.
        view: What shows progress.
        device: Where the backbone and the tables go.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSource],
        sources: Mapping[tuple[str, str], DataSource],
        options: Options,
        view: View,
        device: torch.device,
    ) -> None:
        self.models, self.sources, self.options, self.view, self.device = models, sources, options, view, device
        self._backbone: tuple[tuple[str, str, bool], Backbone] | None = None
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._tables: tuple[TablesKey, Prepared] | None = None
        self._warnings: set[str] = set()
        self._checks = ThreadPoolExecutor(1, "checking the model")
        self._unchanged: Future[None] | None = None  # the check that the files of the loaded model have not changed
        self._lock = threading.RLock()  # held while loading: tokenizers and the Hub's settings are not thread-safe
        self._next: tuple[TablesKey, Tokens] | None = None

    def backbone(self, cell: Cell) -> Backbone:
        """Return the cell's encoder on the device, and load its tokenizer.

        Raises:
            BenchError: Exit code 3 if it is missing, or cannot be trained here.
        """
        trains = methods.of(cell).trains_backbone
        key = (cell.model, cell.precision, trains and cell.precision == "bf16")
        if self._backbone is None or self._backbone[0] != key:
            source = self.models[cell.model]
            self.view.stage(f"loading {source.name}")
            self._backbone = self._tables = None
            with self._lock, shortages(f"the model '{source.name}' was loaded"):
                local_only = source.local_only(self.options.offline)
                with hub.hub_mode(local_only):
                    backbone = encoders.load(source.location, self.device, cell.precision, trains, local_only)
                self._tokenizer(cell)  # before the check, which covers its files too
            # It reads all weights, half a second for each GB: in a thread, while the tables are prepared.
            self._unchanged = self._checks.submit(source.require_unchanged)
            self._backbone = key, backbone
            geometry.load_geometry.cache_clear()  # the sizes of a model that has just been downloaded are known now
        return self._backbone[1]

    def tables(self, cell: Cell, backbone: Backbone) -> Prepared:
        """Return the tables of the cell's task.

        Raises:
            BenchError: The data are missing, broken, or not for this encoder. Exit code 3 if the encoder or its
                tokenizer has changed since the plan was made.
        """
        key = tables_key(cell)
        if self._tables is None or self._tables[0] != key:
            self.view.stage(f"preparing {cell.task}")
            self._tables = None
            with self._lock, shortages(f"the data of {cell.task} were prepared"):
                self._tables = key, self._prepare(cell, backbone)
        if self._unchanged is not None:
            self._unchanged.result()
        return self._tables[1]

    def _tokenizer(self, cell: Cell) -> PreTrainedTokenizerBase:
        if cell.model not in self._tokenizers:
            source = self.models[cell.model]
            self._tokenizers[cell.model] = load_tokenizer(source.location, source.local_only(self.options.offline))
        return self._tokenizers[cell.model]

    def warn_once(self, text: str) -> None:
        """Show a warning, unless it was shown before."""
        if text not in self._warnings:
            self._warnings.add(text)
            self.view.warn(text)

    def prefetch(self, cell: Cell) -> None:
        """Tokenize the rows of a pack that may come next, while another pack trains.

        Errors are ignored: they come up again when that pack is loaded.
        """
        key = tables_key(cell)
        with self._lock, suppress(Exception):
            if key not in (self._tables and self._tables[0], self._next and self._next[0]):
                self._next = None
                self._next = key, self._tokens(cell)

    def _tokens(self, cell: Cell) -> Tokens:
        """Read and tokenize the rows of a cell's task."""
        rows = data.load(tasks.of(cell), self.sources[cell.task, cell.data], self.options.offline, planned=cell.data)
        tokenizer = self._tokenizer(cell)
        tokens = {
            split: tokenize(part, tokenizer, cell.max_length, self.options.cache)
            for split, part in {"train": rows.train, **rows.evals}.items()
        }
        train, held = tokens.pop("train"), None
        if cell.select == "held-out":
            train, held = held_out(train, cell.seed, HELD_OUT_FRACTION)
        ends = np.cumsum([len(table) for table in tokens.values()]).tolist()
        parts = {name: slice(end - len(table), end) for (name, table), end in zip(tokens.items(), ends, strict=True)}
        return Tokens(train, held, join(list(tokens.values())), parts, rows.notes)

    def _prepare(self, cell: Cell, backbone: Backbone) -> Prepared:
        prefetched, self._next = self._next, None
        tokens = prefetched[1] if prefetched is not None and prefetched[0] == tables_key(cell) else self._tokens(cell)
        for note in tokens.notes:
            self.warn_once(note)
        train, held, evaluation = tokens.train, tokens.held_out, tokens.evaluation
        for table in (train, evaluation) if held is None else (train, held, evaluation):
            check_fits(table, backbone)
        info = DataInfo(
            source=cell.data,
            train_rows=len(train),
            eval_rows=len(evaluation),
            fingerprint=f"{train.fingerprint}+{evaluation.fingerprint}",
        )
        return Prepared(
            train=backbone.table(train),
            evaluation=Split(backbone.table(evaluation), dict(tokens.parts)),
            held_out=None if held is None else backbone.table(held),
            info=info,
        )


def check_fits(table: TokenTable, backbone: Backbone) -> None:
    """Refuse tokens that the encoder has no embedding or position for.

    Raises:
        BenchError: Exit code 3 for tokens of another vocabulary, 2 for sequences that are too long.
    """
    vocabulary = int(backbone.config.vocab_size)
    if table.max_id >= vocabulary:
        raise BenchError(
            f"The tokenizer makes token {table.max_id}, the model has {vocabulary} embeddings.",
            "Use the tokenizer that belongs to the model.",
            MISSING,
        )
    longest = int(table.lengths.max())
    if longest > backbone.longest:
        raise BenchError(
            f"A sequence has {longest} tokens, the model takes {backbone.longest}.",
            f"Use --max-length {backbone.longest} or less.",
        )
