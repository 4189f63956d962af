"""What both sides train: the model's directory, the rows in the order of training, and the cells of a pack."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel

from lora_bench import data, methods, tasks
from lora_bench.bench.settings import FULL, BenchSettings
from lora_bench.cell import Cell
from lora_bench.data.model_source import ModelSource
from lora_bench.data.tokens import TokenTable, tokenize
from lora_bench.engine import randomness
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder.windows import Ints, slices
from lora_bench.errors import MISSING, BenchError
from lora_bench.model_files import TOKENIZER_FILES
from lora_bench.models import location
from lora_bench.records.files import is_folder
from lora_bench.run.plan import source_of
from lora_bench.run.tokenizer import load_tokenizer
from lora_bench.tasks import Task

MAX_STEPS = 20_000  # of a measurement, warm-up included
SEED = 0
RANK, ALPHA, LEARNING_RATE = 16, 16.0, 1e-4
MIXED_METHODS = ("lora", "mini", "xs", "cora")
MIXED_RANKS = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class BenchModel:
    """The model that both sides load.

    Attributes:
        location: A directory or an id of the Hub.
        random: Whether its weights are random and were made here, because the directory has none.
        offline: Whether to load it without the network.
    """

    location: str
    random: bool
    offline: bool


@dataclass(frozen=True, eq=False)
class Workload:
    """A task's rows and the order in which every variant trains on them.

    All batches are full: the remaining rows of an epoch are left out, for every variant.

    Attributes:
        task: The task.
        table: Its training rows as tokens.
        pad_id: The token that pads a batch.
        order: `[MAX_STEPS, batch]`, the rows of each batch.
        precision: `bf16` or `float32`.
    """

    task: Task
    table: TokenTable
    pad_id: int
    order: Ints
    precision: str

    @property
    def tokens(self) -> Ints:
        """`[MAX_STEPS]`, the tokens of each batch without padding."""
        tokens: Ints = self.table.lengths[self.order].sum(1)
        return tokens

    @property
    def mean_tokens(self) -> float:
        """The mean tokens of a sequence."""
        return float(self.tokens.mean()) / self.batch_size

    @property
    def epochs(self) -> int:
        """The number of epochs that contain all steps of the order."""
        return math.ceil(MAX_STEPS / (len(self.table) // self.batch_size))

    @property
    def batch_size(self) -> int:
        """The sequences per batch."""
        return int(self.order.shape[1])


def prepare_model(settings: BenchSettings, scratch: Path) -> BenchModel:
    """Return the model to load; for a directory without weights, one with random weights is made under `scratch`.

    Raises:
        BenchError: There is no such directory, or it has no config.json (exit code 3).
    """
    folder = Path(location(settings.model))
    if not is_folder(folder):
        return BenchModel(settings.model, False, ModelSource.find(settings.model).local_only(offline=False))
    if not (folder / "config.json").is_file():
        raise BenchError(f"'{folder}' has no config.json.", "Give a transformers model directory.", MISSING)
    if any(folder.glob("*.safetensors")):
        return BenchModel(str(folder), False, True)
    return BenchModel(str(make_random_model(folder, scratch / "model")), True, True)


def make_random_model(config: Path, folder: Path) -> Path:
    """Write an encoder with random weights and a copy of the tokenizer to `folder`."""
    with torch.random.fork_rng(), encoders.quiet_transformers():
        torch.manual_seed(SEED)
        model = AutoModel.from_config(AutoConfig.from_pretrained(config, local_files_only=True), dtype=torch.float32)
        model.save_pretrained(folder)
    for name in (*TOKENIZER_FILES, "special_tokens_map.json"):
        if (config / name).is_file():
            shutil.copy(config / name, folder / name)
    return folder


def load_workload(name: str, settings: BenchSettings, model: BenchModel, precision: str, longest: int) -> Workload:
    """Load a task's training rows and determine the order of training.

    Args:
        name: The task.
        settings: What is measured.
        model: The model, for its tokenizer.
        precision: `bf16` or `float32`.
        longest: The most tokens that the model can read.
    """
    task = tasks.get(name)
    tokenizer = load_tokenizer(model.location, model.offline)
    rows = data.load(task, source_of(settings.data)).train
    table = tokenize(rows, tokenizer, min(settings.max_length, longest))
    if len(table) < settings.batch_size:
        raise BenchError(f"{name} has {len(table)} rows, less than a batch.", f"Use --batch-size {len(table)} or less.")
    order = batch_order(len(table), settings.batch_size)
    return Workload(task, table, tokenizer.pad_token_id or 0, order, precision)


def batch_order(rows: int, batch: int) -> Ints:
    """Return the rows of each batch, `[MAX_STEPS, batch]`.

    These are the full batches of one epoch after another, in the order in which lora-bench's trainer takes them.
    """
    full_batches = rows // batch
    epochs = range(1, math.ceil(MAX_STEPS / full_batches) + 1)
    batches = [
        np.stack(slices(randomness.permutation(rows, SEED, "order", epoch), batch)[:full_batches]) for epoch in epochs
    ]
    return np.concatenate(batches)[:MAX_STEPS]


def make_cells(work: Workload, targets: str, mix: str, count: int, width: int) -> list[Cell]:
    """Return `count` different cells.

    Args:
        work: The task's rows and their order.
        targets: The target set.
        mix: `lora` for LoRA of rank 16, `mixed` for several methods and ranks in turn, `full` for a single cell that
            trains the whole model and has no targets.
        count: The number of cells.
        width: The encoder's width, which no rank exceeds.
    """
    if mix == FULL:
        return [_make_cell(work, FULL, {"lr": methods.get(FULL).default_lr})]
    ranks = [rank for rank in MIXED_RANKS if rank <= width]
    cells = []
    for index in range(count):
        method = MIXED_METHODS[index % len(MIXED_METHODS)] if mix == "mixed" else "lora"
        rank = ranks[index // len(MIXED_METHODS) % len(ranks)] if mix == "mixed" else min(RANK, width)
        # Different learning rates make the cells different.
        settings = {"targets": targets, "rank": rank, "alpha": ALPHA, "lr": LEARNING_RATE * (1 + index / count)}
        cells.append(_make_cell(work, method, settings))
    return cells


def _make_cell(work: Workload, method: str, settings: dict[str, Any]) -> Cell:
    settings = {**methods.get(method).defaults, **settings}
    settings |= {"method": method, "precision": work.precision, "batch_size": work.batch_size, "epochs": work.epochs}
    return Cell(model="bench", data="bench", task=work.task.name, seed=SEED, select="last", **settings)


def table_rows(table: TokenTable, with_types: bool) -> list[dict[str, Any]]:
    """Return the rows as Python lists, the form from which a data loader reads fastest.

    Args:
        table: The rows as tokens.
        with_types: Whether to add the token types, if the table has them.
    """
    sequences = np.split(table.ids, table.offsets[1:-1])
    rows = [
        {"input_ids": sequence.tolist(), "labels": label}
        for sequence, label in zip(sequences, table.labels.tolist(), strict=True)
    ]
    if with_types and table.types is not None:
        for row, types in zip(rows, np.split(table.types, table.offsets[1:-1]), strict=True):
            row["token_type_ids"] = types.tolist()
    return rows


class Collate:
    """Converts rows to tensors, padded to the longest of the batch."""

    def __init__(self, pad_id: int) -> None:
        self.pads = {"input_ids": pad_id, "token_type_ids": 0}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` (and `token_type_ids`) `[B, longest]` and `labels` `[B]`."""
        lengths = [len(row["input_ids"]) for row in rows]
        longest = max(lengths)
        inputs = {
            name: torch.tensor([row[name] + [pad] * (longest - len(row[name])) for row in rows])
            for name, pad in self.pads.items()
            if name in rows[0]
        }
        mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
        return {**inputs, "attention_mask": mask.long(), "labels": torch.tensor([row["labels"] for row in rows])}


def has_token_types(config: Any) -> bool:
    """Whether the encoder has more than one token type."""
    return int(getattr(config, "type_vocab_size", 0)) > 1
