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
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from lora_bench import data, methods, tasks
from lora_bench.bench.choice import FULL, Choice
from lora_bench.cell import Cell
from lora_bench.data import hub
from lora_bench.data.tokens import TokenTable, tokenize
from lora_bench.engine import randomness
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder.windows import Ints, slices
from lora_bench.errors import MISSING, BenchError
from lora_bench.files import is_folder
from lora_bench.grid.plan import source_of
from lora_bench.model_files import TOKENIZER_FILES
from lora_bench.models import location
from lora_bench.tasks import Task
from lora_bench.training.tokenizer import load_tokenizer

STEPS = 20_000  # the longest training that a measurement can be of
SEED = 0
RANK, ALPHA, RATE = 16, 16.0, 1e-4
MIXED = ("lora", "mini", "xs", "cora")
RANKS = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Model:
    """A directory or Hub id that both sides load. `random`: made here, as the directory has no weights."""

    location: str
    random: bool
    offline: bool


@dataclass(frozen=True, eq=False)
class Work:
    """A task's rows and the order in which every variant trains on them: `order[step]` are the rows of a batch.

    All batches are full: the rest of an epoch is left out, for every variant.
    """

    task: Task
    table: TokenTable
    pad_id: int
    order: Ints  # [STEPS, batch]
    precision: str

    @property
    def tokens(self) -> Ints:
        """`[STEPS]`, real tokens of each batch."""
        found: Ints = self.table.lengths[self.order].sum(1)
        return found

    @property
    def mean_tokens(self) -> float:
        """Real tokens of a sequence."""
        return float(self.tokens.mean()) / self.batch_size

    @property
    def epochs(self) -> int:
        """Epochs that hold all steps of the order."""
        return math.ceil(STEPS / (len(self.table) // self.batch_size))

    @property
    def batch_size(self) -> int:
        """Sequences a batch."""
        return int(self.order.shape[1])


def place(choice: Choice, scratch: Path) -> Model:
    """The model to load; a directory without weights is filled with random ones, under `scratch`."""
    where = Path(location(choice.model))
    if not is_folder(where):
        if choice.model.startswith((".", "/", "~")):
            raise BenchError(f"There is no model directory '{choice.model}'.", "Give --model DIR or `sample`.", MISSING)
        return Model(choice.model, False, not hub.reachable())
    if not (where / "config.json").is_file():
        raise BenchError(f"'{where}' has no config.json.", "Give a transformers model directory.", MISSING)
    if any(where.glob("*.safetensors")):
        return Model(str(where), False, True)
    return Model(str(_random(where, scratch / "model")), True, True)


def _random(config: Path, folder: Path) -> Path:
    """An encoder of the config with random weights, and the tokenizer beside it."""
    with torch.random.fork_rng(), encoders.quiet_transformers():
        torch.manual_seed(SEED)
        model = AutoModel.from_config(AutoConfig.from_pretrained(config, local_files_only=True), dtype=torch.float32)
        model.save_pretrained(folder)
    for name in (*TOKENIZER_FILES, "special_tokens_map.json"):
        if (config / name).is_file():
            shutil.copy(config / name, folder / name)
    return folder


def tokenizer_of(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        BenchError: exit code 3 if there is none.
    """
    return load_tokenizer(model.location, model.offline)


def load(name: str, choice: Choice, model: Model, precision: str, longest: int) -> Work:
    """A task's train rows as sequences of at most `longest` tokens, and the order of training."""
    task = tasks.get(name)
    tokenizer = tokenizer_of(model)
    rows = data.load(task, source_of(choice.data)).train
    table = tokenize(rows, tokenizer, min(choice.max_length, longest))
    if len(table) < choice.batch_size:
        raise BenchError(f"{name} has {len(table)} rows, less than a batch.", f"Use --batch-size {len(table)} or less.")
    return Work(task, table, tokenizer.pad_token_id or 0, order(len(table), choice.batch_size), precision)


def order(rows: int, batch: int) -> Ints:
    """`[STEPS, batch]`: the full batches of epoch after epoch, each in the order that our trainer gives it."""
    full = rows // batch
    epochs = range(1, math.ceil(STEPS / full) + 1)
    kept = [np.stack(slices(randomness.permutation(rows, SEED, "order", epoch), batch)[:full]) for epoch in epochs]
    return np.concatenate(kept)[:STEPS]


def cells(work: Work, targets: str, mix: str, count: int, width: int) -> list[Cell]:
    """`count` different cells: LoRA of rank 16, or methods and ranks in turn (ranks up to the encoder's `width`).

    One for `full`, which has no targets: the whole model trains.
    """
    if mix == FULL:
        return [_cell(work, FULL, {"lr": methods.get(FULL).default_lr})]
    ranks = [rank for rank in RANKS if rank <= width]
    made = []
    for index in range(count):
        method = MIXED[index % len(MIXED)] if mix == "mixed" else "lora"
        rank = ranks[index // len(MIXED) % len(ranks)] if mix == "mixed" else min(RANK, width)
        own = {"targets": targets, "rank": rank, "alpha": ALPHA, "lr": RATE * (1 + index / count)}
        made.append(_cell(work, method, own))
    return made


def _cell(work: Work, method: str, own: dict[str, Any]) -> Cell:
    settings: dict[str, Any] = {**methods.get(method).defaults, **own}
    settings |= {"method": method, "precision": work.precision, "batch_size": work.batch_size, "epochs": work.epochs}
    return Cell(model="bench", data="bench", task=work.task.name, seed=SEED, select="last", **settings)


def rows_of(table: TokenTable, types: bool) -> list[dict[str, Any]]:
    """The table as a list of rows of python lists: what is fastest for a data loader to pick from."""
    ids = np.split(table.ids, table.offsets[1:-1])
    rows = [{"input_ids": own.tolist(), "labels": label} for own, label in zip(ids, table.labels.tolist(), strict=True)]
    if types and table.types is not None:
        for row, own in zip(rows, np.split(table.types, table.offsets[1:-1]), strict=True):
            row["token_type_ids"] = own.tolist()
    return rows


class Collate:
    """Rows to tensors, padded to the longest of the batch."""

    def __init__(self, pad_id: int) -> None:
        self.pads = {"input_ids": pad_id, "token_type_ids": 0}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` (and `token_type_ids`) `[B, longest]`, `labels` `[B]`."""
        lengths = [len(row["input_ids"]) for row in rows]
        longest = max(lengths)
        made = {
            name: torch.tensor([row[name] + [pad] * (longest - len(row[name])) for row in rows])
            for name, pad in self.pads.items()
            if name in rows[0]
        }
        mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
        return {**made, "attention_mask": mask.long(), "labels": torch.tensor([row["labels"] for row in rows])}


def has_types(config: Any) -> bool:
    """Whether the encoder knows more than one kind of token type."""
    return int(getattr(config, "type_vocab_size", 0)) > 1
