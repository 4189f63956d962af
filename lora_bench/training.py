"""From cells to what becomes of them: load the encoder and the data, train a pack, go on from what was saved."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lora_bench import cost, data, environment, fingerprint, keeper, methods, record, tasks
from lora_bench.cell import Cell
from lora_bench.data import hub
from lora_bench.data.tokens import TokenTable, held_out, join, tokenize
from lora_bench.engine import backbone as encoders
from lora_bench.engine import checkpoint, snapshot
from lora_bench.engine.backbone import Backbone
from lora_bench.engine.memory import SAMPLES, cells_that_fit, forget_peak, free_bytes, peak_bytes
from lora_bench.engine.pack import Pack
from lora_bench.engine.trainer import Split, Trainer
from lora_bench.engine.windows import Table
from lora_bench.errors import MISSING, BenchError
from lora_bench.keeper import Found, Keeper
from lora_bench.models import location
from lora_bench.outcome import Outcome
from lora_bench.plan import Plan, source_of
from lora_bench.record import Ended
from lora_bench.states import Place
from lora_bench.store import DataInfo, Timing
from lora_bench.work import Options, View

HELD_OUT = 0.1
SURE = 0.4  # a pack that is foretold to take less than this share of the free memory fits


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
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", wanted):
        raise BenchError(f"'{wanted}' is no device.", "Use --device auto, cpu, cuda or cuda:N.")
    if wanted != "cpu" and int(wanted.partition(":")[2] or 0) >= torch.cuda.device_count():
        mend = "Use --device cpu; `lora-bench doctor` says more."
        raise BenchError(f"There is no CUDA device '{wanted}' here.", mend, MISSING)
    return wanted


class Training:
    """Trains packs of a plan. Keeps the backbone and the tables of the pack before for the next one."""

    def __init__(self, plan: Plan, options: Options, view: View) -> None:
        self.plan, self.options, self.view = plan, options, view
        self.device = torch.device(options.device)
        self._backbone: tuple[tuple[str, str, bool], Backbone] | None = None
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._tables: tuple[tuple[object, ...], Prepared] | None = None

    def prepare(self, cells: tuple[Cell, ...]) -> None:
        """Load the encoder and the tables."""
        self._tables_of(cells[0], self._backbone_of(cells[0]))

    def train(self, cells: tuple[Cell, ...], halved: int, place: Place) -> Iterator[list[Outcome]]:
        """What becomes of the cells, part by part: those saved after as many steps go on together, others begin."""
        backbone = self._backbone_of(cells[0])
        prepared = self._tables_of(cells[0], backbone)
        common = self._common(prepared.info)
        found = keeper.find(place, cells, common)
        parts: dict[int, list[Cell]] = {}
        for cell in cells:
            steps = found[cell.id].folder.cells[cell.id].steps if cell.id in found else 0
            parts.setdefault(steps, []).append(cell)
        for steps in sorted(parts, reverse=True):
            room = self._room(parts[steps], backbone, prepared) if not halved else len(cells)
            for part in _even(parts[steps], room):
                run = _PackRun(self, backbone, prepared, Keeper(place, part, common))
                yield run.train(part, found, halved)

    def is_memory(self, error: BaseException) -> bool:
        """Whether memory ran out."""
        said = str(error)
        return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
            isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
        )

    def forget(self) -> None:
        """Give back what a failed pack took."""
        gc.collect()
        torch.cuda.empty_cache()

    def environment(self, cell: Cell) -> dict[str, str]:
        """What a record says of where it comes from."""
        return {**self._versions, **fingerprint.current(cell.method)}

    @cached_property
    def _versions(self) -> dict[str, str]:
        return {**environment.versions(), "device": environment.device_name(self.options.device)}

    def _common(self, info: DataInfo) -> dict[str, str]:
        """What the numbers of all cells of a pack depend on. Kinds of device draw other dropout masks."""
        libraries = environment.versions_of(*fingerprint.LIBRARIES)
        return {**libraries, "data": info.fingerprint, "device": self.device.type}

    def _room(self, cells: Sequence[Cell], backbone: Backbone, prepared: Prepared) -> int:
        """How many of the cells a GPU's memory holds; measured where the forecast is unknown or near the limit."""
        if self.device.type != "cuda" or len(cells) <= SAMPLES[1]:
            return len(cells)
        foretold = self.plan.bytes(cells)
        if foretold is not None and foretold < SURE * free_bytes(self.device):
            return len(cells)
        self.view.stage("measuring memory")
        return cells_that_fit(cells, lambda some: trainer_of(some, backbone, prepared), self.device)

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
            except Exception as error:  # of many families: its files can make any line of transformers fail
                raise encoders.unreachable("tokenizer of", location(name), error) from error
            self._tokenizers[name] = loaded
        return self._tokenizers[name]

    def _prepare(self, cell: Cell, backbone: Backbone) -> Prepared:
        task = tasks.get(cell.task)
        place = self.plan.grid.data_location(cell)
        rows = data.load(task, source_of(place), self.options.offline)
        tokenizer = self._tokenizer(self.plan.grid.model_location(cell))
        name = f"{cell.data}/{cell.task}"
        made = {
            split: tokenize(part, tokenizer, cell.max_length, self.options.cache, f"{name}/{split}")
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
        pad = tokenizer.pad_token_id or 0
        on_device = [Table(table, self.device, pad) for table in (train, evaluation)]
        kept = None if held is None else Table(held, self.device, pad)
        return Prepared(on_device[0], Split(on_device[1], parts), kept, info)


class _PackRun:
    """One pack on its way: cells that diverge leave it when they are more than half."""

    def __init__(self, training: Training, backbone: Backbone, prepared: Prepared, keeper: Keeper) -> None:
        self.training, self.backbone, self.prepared, self.keeper = training, backbone, prepared, keeper
        self.ended: list[Ended] = []

    def train(self, cells: Sequence[Cell], found: dict[str, Found], halved: int) -> list[Outcome]:
        """From the start, or from what was saved, to the end."""
        training, prepared = self.training, self.prepared
        training.view.stage("building the adapters")
        forget_peak(training.device)
        trainer = trainer_of(cells, self.backbone, prepared)
        self.keeper.began -= keeper.start(trainer, found)
        training.view.pack(cells, trainer.steps_an_epoch, trainer.epochs)
        self.keeper.place.stopper.hold()
        while not self._ran(trainer):
            alive = self._thinned(trainer)
            del trainer  # its memory is wanted for the next one
            trainer = trainer_of([each.progress.cell for each in alive], self.backbone, prepared)
            snapshot.restore(trainer, {each.progress.cell.id: each for each in alive})
        timing = self._timing(cells, halved)
        return [self._outcome(each, timing) for each in self.ended]

    def _ran(self, trainer: Trainer) -> bool:
        """Train until all cells have ended, or more than half have diverged."""
        trainer.run(self.training.view, self.keeper)
        for place, progress in enumerate(trainer.progress):
            if trainer.finished or progress.diverged:
                self.ended.append(record.ended(trainer.pack, place, progress))
        return trainer.finished

    def _thinned(self, trainer: Trainer) -> list[snapshot.Snapshot]:
        """The cells that go on."""
        taken = snapshot.take(trainer)
        self.keeper.ended += [each for each in taken if each.progress.diverged]
        return [each for each in taken if not each.progress.diverged]

    def _timing(self, cells: Sequence[Cell], halved: int) -> Timing:
        elapsed, count = self.keeper.seconds, len(cells)
        tokens = int(self.prepared.train.lengths.sum()) * cells[0].epochs
        return Timing(
            seconds=elapsed / count, pack_seconds=elapsed, pack_size=count, tokens=tokens,
            tokens_per_second=tokens * count / elapsed, peak_bytes=peak_bytes(self.training.device), halved=halved,
        )  # fmt: skip

    def _outcome(self, ended: Ended, timing: Timing) -> Outcome:
        training, cell, state = self.training, ended.progress.cell, ended.progress.state
        task = tasks.get(cell.task)
        notes = training.plan.grid.notes_for(cell)
        made = record.finished(ended, task, self.prepared.info, timing, notes, training.environment(cell))
        if state is None or not training.options.save or methods.get(cell.method).trains_backbone:
            return Outcome(made)
        return Outcome(made, lambda folder: checkpoint.save(folder, cell, task.num_outputs, state))


def trainer_of(cells: Sequence[Cell], backbone: Backbone, prepared: Prepared) -> Trainer:
    """A trainer of the cells as one pack, before its first step."""
    task = tasks.get(cells[0].task)
    return Trainer(
        Pack(cells, backbone, task.num_outputs), task, prepared.train, prepared.evaluation, prepared.held_out
    )


def _even(cells: Sequence[Cell], room: int) -> list[Sequence[Cell]]:
    """The cells in as few parts of at most `room` as can be, of even sizes."""
    count = -(-len(cells) // room)
    return [cells[index * len(cells) // count : (index + 1) * len(cells) // count] for index in range(count)]


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
