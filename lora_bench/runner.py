"""From a plan to records: load, train pack by pack, write each finished cell, go on when one fails.

An error in a pack of several cells (out of memory above all) halves the pack; results do not depend on the pack, so no
number changes, and a cell that is at fault ends up alone and is recorded as failed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lora_bench import cost, data, environment, hub, methods, tasks
from lora_bench.cell import Cell
from lora_bench.engine import backbone as encoders
from lora_bench.engine import checkpoint
from lora_bench.engine.backbone import Backbone
from lora_bench.engine.memory import SAMPLES, cells_that_fit, forget_peak, free_bytes, peak_bytes
from lora_bench.engine.pack import Pack
from lora_bench.engine.trainer import Progress, Split, Trainer, Watch
from lora_bench.engine.windows import Table
from lora_bench.errors import MISSING, BenchError
from lora_bench.models import location
from lora_bench.plan import Plan, source_of
from lora_bench.record import failure, finished
from lora_bench.store import DataInfo, Record, Timing, write_csv, write_record

HELD_OUT = 0.1
SURE = 0.4  # a pack that is foretold to take less than this share of the free memory fits


class View(Watch, Protocol):
    """Who is told of a run's progress."""

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""

    def pack(self, cells: Sequence[Cell], steps: int, epochs: int) -> None:
        """A pack begins."""

    def done(self, records: Sequence[Record]) -> None:
        """Cells have ended."""

    def warn(self, text: str) -> None:
        """Something the user should know."""


@dataclass(frozen=True)
class Options:
    """Where and how to run; nothing here changes a number."""

    results: Path
    device: str = "cpu"
    offline: bool = False
    save: bool = True
    cache: Path | None = None
    debug: bool = False


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task's tables on the device."""

    train: Table
    evaluation: Split
    held_out: Table | None
    info: DataInfo


def choose_device(wanted: str) -> str:
    """`auto` is the GPU if there is one.

    Raises:
        BenchError: exit code 3 if the device is not there.
    """
    available = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if available else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise BenchError(f"'{wanted}' is no device.", "Use --device auto, cpu, cuda or cuda:N.") from None
    if kind == "cuda" and not available:
        raise BenchError("There is no CUDA device here.", "Use --device cpu; `lora-bench doctor` says more.", MISSING)
    return wanted


class Runner:
    """Runs a plan. Keeps the backbone and the tables of the pack before for the next one."""

    def __init__(self, plan: Plan, options: Options, view: View) -> None:
        self.plan, self.options, self.view = plan, options, view
        self.device = torch.device(options.device)
        self.records = dict(plan.known)
        self._kept: set[str] = set()
        self._backbone: tuple[tuple[str, str, bool], Backbone] | None = None
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._tables: tuple[tuple[object, ...], Prepared] | None = None

    def run(self) -> list[Record]:
        """Train everything that is to do; the records of the whole selection, done before or now."""
        try:
            for cells in self.plan.packs:
                self._run_pack(cells)
        finally:
            write_csv(self.options.results, self.records.values())
        return [self.records[cell.id] for cell in self.plan.grid.cells if cell.id in self.records]

    def _run_pack(self, cells: tuple[Cell, ...], halved: int = 0) -> None:
        """Train a pack; halve it and go on if it fails."""
        backbone = self._backbone_of(cells[0])
        prepared = self._tables_of(cells[0], backbone)
        reason, memory = "", False
        try:
            room = self._room(cells, backbone, prepared) if not halved else len(cells)
            for part in _even(cells, room):
                self._keep(self._train(part, backbone, prepared, halved))
        except Exception as error:
            memory = isinstance(error, torch.OutOfMemoryError)
            if self.options.debug or isinstance(error, OSError):
                raise
            if isinstance(error, BenchError) and error.code == MISSING:
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        if reason:  # outside of the except block, whose traceback keeps the failed pack alive
            torch.cuda.empty_cache()
            left = tuple(cell for cell in cells if cell.id not in self._kept)
            self._after_failure(left, reason, halved + memory)

    def _room(self, cells: tuple[Cell, ...], backbone: Backbone, prepared: Prepared) -> int:
        """How many of the cells a GPU's memory holds; measured where the forecast is unknown or near the limit."""
        if self.device.type != "cuda" or len(cells) <= SAMPLES[1]:
            return len(cells)
        foretold = self.plan.bytes(cells)
        if foretold is not None and foretold < SURE * free_bytes(self.device):
            return len(cells)
        self.view.stage("measuring memory")
        return cells_that_fit(cells, lambda some: self._trainer(some, backbone, prepared), self.device)

    def _trainer(self, cells: Sequence[Cell], backbone: Backbone, prepared: Prepared) -> Trainer:
        task = tasks.get(cells[0].task)
        pack = Pack(cells, backbone, task.num_outputs)
        return Trainer(pack, task, prepared.train, prepared.evaluation, prepared.held_out)

    def _after_failure(self, cells: tuple[Cell, ...], reason: str, halved: int) -> None:
        """Record the failure of a single cell; split several."""
        if len(cells) == 1:
            self._keep([failure(cells[0], reason, self._notes(cells[0]), self._environment)])
            return
        self.view.warn(f"A pack of {len(cells)} cells failed ({reason[:120]}); going on with two halves.")
        middle = len(cells) // 2
        for half in (cells[:middle], cells[middle:]):
            self._run_pack(half, halved)

    def _train(self, cells: tuple[Cell, ...], backbone: Backbone, prepared: Prepared, halved: int) -> list[Record]:
        self.view.stage("building the adapters")
        forget_peak(self.device)
        trainer = self._trainer(cells, backbone, prepared)
        self.view.pack(cells, trainer.steps_an_epoch, trainer.epochs)
        start = time.perf_counter()
        ended = trainer.run(self.view)
        elapsed = time.perf_counter() - start
        tokens = int(prepared.train.lengths.sum()) * cells[0].epochs
        timing = Timing(
            seconds=elapsed / len(cells), pack_seconds=elapsed, pack_size=len(cells), tokens=tokens,
            tokens_per_second=tokens * len(cells) / elapsed, peak_bytes=peak_bytes(self.device), halved=halved,
        )  # fmt: skip
        pack = trainer.pack
        return [self._finish(pack, place, progress, prepared.info, timing) for place, progress in enumerate(ended)]

    def _finish(self, pack: Pack, place: int, progress: Progress, info: DataInfo, timing: Timing) -> Record:
        task = tasks.get(progress.cell.task)
        if progress.state is not None and self.options.save and pack.whole is None:
            folder = self.options.results / "adapters" / progress.cell.id
            checkpoint.save(folder, progress.cell, task.num_outputs, progress.state)
        return finished(pack, place, progress, task, info, timing, self._notes(progress.cell), self._environment)

    def _keep(self, records: Sequence[Record]) -> None:
        for record in records:
            write_record(self.options.results, record)
            self.records[record.id] = record
            self._kept.add(record.id)
        write_csv(self.options.results, self.records.values())
        self.view.done(records)

    def _notes(self, cell: Cell) -> tuple[str, ...]:
        return self.plan.grid.notes_for(cell)

    @cached_property
    def _environment(self) -> dict[str, str]:
        return {**environment.versions(), "device": environment.device_name(self.options.device)}

    def _backbone_of(self, cell: Cell) -> Backbone:
        trains = methods.get(cell.method).trains_backbone
        key = (cell.model, cell.precision, trains and cell.precision == "bf16")
        if self._backbone is None or self._backbone[0] != key:
            where = self.plan.grid.model_location(cell)
            self.view.stage(f"loading {where}")
            self._backbone = self._tables = None
            local = self._local_only(where)
            with hub.hub_mode(local):
                loaded = encoders.load(location(where), self.device, cell.precision, trains, local)
            self._backbone = key, loaded
            cost.geometry.cache_clear()  # a model that has just been downloaded has sizes now
        return self._backbone[1]

    def _local_only(self, name: str) -> bool:
        """Whether transformers must not ask the Hub; it would try for half a minute where there is no network."""
        return self.options.offline or Path(location(name)).is_dir() or not self._hub_answers

    @cached_property
    def _hub_answers(self) -> bool:
        return hub.reachable()

    def _tables_of(self, cell: Cell, backbone: Backbone) -> Prepared:
        key = (cell.model, cell.data, cell.task, cell.max_length, cell.seed if cell.select == "held-out" else None)
        if self._tables is None or self._tables[0] != key:
            self.view.stage(f"preparing {cell.task}")
            self._tables = None
            self._tables = key, self._prepare(cell, backbone)
        return self._tables[1]

    def _tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        if name not in self._tokenizers:
            try:
                with encoders.quiet_transformers(), hub.hub_mode(self._local_only(name)):
                    loaded = AutoTokenizer.from_pretrained(location(name), local_files_only=self._local_only(name))
            except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
                raise encoders.unreachable("tokenizer of", name, error) from error
            self._tokenizers[name] = loaded
        return self._tokenizers[name]

    def _prepare(self, cell: Cell, backbone: Backbone) -> Prepared:
        task = tasks.get(cell.task)
        place = self.plan.grid.data_location(cell)
        rows = data.load(task, source_of(place), self.options.offline)
        tokenizer = self._tokenizer(self.plan.grid.model_location(cell))
        name = f"{cell.data}/{cell.task}"
        made = {
            split: data.tokenize(part, tokenizer, cell.max_length, self.options.cache, f"{name}/{split}")
            for split, part in {"train": rows.train, **rows.evals}.items()
        }
        for table in made.values():
            check_fits(table, backbone)
        train, held = made.pop("train"), None
        if cell.select == "held-out":
            train, held = data.held_out(train, cell.seed, HELD_OUT)
        evaluation = data.join(list(made.values()))
        ends = np.cumsum([len(table) for table in made.values()]).tolist()
        parts = {name: slice(end - len(table), end) for (name, table), end in zip(made.items(), ends, strict=True)}
        info = DataInfo(
            source=cell.data, train_rows=len(train), eval_rows=len(evaluation),
            fingerprint=f"{train.fingerprint}+{evaluation.fingerprint}",
        )  # fmt: skip
        pad = tokenizer.pad_token_id or 0
        on_device = [Table(table, self.device, pad) for table in (train, evaluation)]
        kept = None if held is None else Table(held, self.device, pad)
        return Prepared(on_device[0], Split(on_device[1], parts), kept, info)


def _even(cells: tuple[Cell, ...], room: int) -> list[tuple[Cell, ...]]:
    """The cells in as few parts of at most `room` as can be, of even sizes."""
    count = -(-len(cells) // room)
    return [cells[index * len(cells) // count : (index + 1) * len(cells) // count] for index in range(count)]


def check_fits(table: data.TokenTable, backbone: Backbone) -> None:
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
