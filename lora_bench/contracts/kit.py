"""What the contracts stand on: a tiny random encoder, made-up tokens, small cells of any method, trained packs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.data.tokens import TokenTable
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Table
from lora_bench.engine.progress import Progress
from lora_bench.engine.trainer import Split, Trainer
from lora_bench.methods.recipe import Recipe, Shape
from lora_bench.tasks import TASKS, Task
from lora_bench.testing import WORDS, make_cell, make_model

PAD, VOCABULARY, HIDDEN, ROWS = 1, 60, 32, 24
KINDS = tuple({task.num_outputs: name for name, task in reversed(tuple(TASKS.items()))}.values())
PARAMETERS = frozenset({"rank", "a", "b", "alpha", "init", "targets"})
TARGETS = "attention+dense"
SIZES: dict[str, int | float | str] = {"rank": 4, "a": 7, "b": 6, "alpha": 8.0, "targets": TARGETS}
CPU = torch.device("cpu")


class ContractError(AssertionError):
    """A contract is not kept; the message says where."""


def require(kept: bool, message: str) -> None:
    """Raise `ContractError` unless kept."""
    if not kept:
        raise ContractError(message)


def alike(one: Tensor, other: Tensor, tolerance: float, what: str) -> None:
    """Raise `ContractError` unless the two differ by at most `tolerance`, also relative to the larger."""
    difference = float((one - other).abs().max()) if one.shape == other.shape else float("inf")
    require(
        difference <= tolerance * max(1.0, float(other.abs().max())),
        f"{what} differs by {difference:.2g}, allowed {tolerance:g}",
    )


def save_encoder(folder: Path, dropout: float) -> Path:
    """A random RoBERTa of two layers with weights and biases large enough for adapters to matter."""
    return make_model(
        folder,
        seed=0,
        words=WORDS[:VOCABULARY],
        vocab_size=VOCABULARY,
        intermediate_size=64,
        max_position_embeddings=80,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


def cell_of(method: str, task: str = "cola", **changes: Any) -> Cell:
    """A small cell of any method, with test sizes; changes of parameters that the method lacks are left out."""
    settings: dict[str, Any] = {"seed": 0, "head_lr": None, "precision": "float32"} | SIZES | changes
    return make_cell(method, task=task, **settings)


def tokens(task: Task, rows: int = ROWS) -> TokenTable:
    """Sequences of 3 to 20 tokens whose label hangs on the second one."""
    random = np.random.default_rng(7)
    lengths = random.integers(3, 21, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = random.integers(4, VOCABULARY, offsets[-1]).astype(np.int32)
    ids[offsets[:-1]] = 0
    seconds = ids[offsets[:-1] + 1]
    labels = (seconds / 12).astype(np.float32) if task.is_regression else seconds.astype(np.int64) % task.num_outputs
    return TokenTable(ids, None, offsets, labels)


def table_of(task: Task, rows: int = ROWS) -> Table:
    """The same on the device."""
    return Table(tokens(task, rows), CPU, padding_idx=PAD)


def split_of(task: Task, table: Table) -> Split:
    """The table as what is evaluated, cut into the task's official splits."""
    cuts = np.linspace(0, len(table), len(task.eval_splits) + 1).astype(int).tolist()
    ends = zip(task.eval_splits, cuts, cuts[1:], strict=False)
    return Split(table, {name: slice(start, end) for name, start, end in ends})


def trainer_of(pack: Pack, task: Task, rows: int = ROWS) -> Trainer:
    """A trainer that evaluates on what it trains on."""
    table = table_of(task, rows)
    return Trainer(pack, task, table, split_of(task, table))


@torch.no_grad()
def logits_of(pack: Pack, task: Task) -> Tensor:
    """`[K, rows, outputs]` without dropout, in the table's order."""
    table = table_of(task)
    with pack:
        pack.compose()
        return pack.logits(next(table.batches([np.arange(len(table))])))


@dataclass(frozen=True)
class Run:
    """A pack before and after training."""

    pack: Pack
    task: Task
    start: list[State]
    frozen: dict[str, Tensor]
    progress: list[Progress]

    @property
    def cell(self) -> Cell:
        """The first cell."""
        return self.pack.cells[0]

    @property
    def recipe(self) -> Recipe:
        """Its recipe."""
        return methods.get(self.cell.method)


def train(cells: Sequence[Cell], backbone: Backbone, task: Task, rows: int = ROWS) -> Run:
    """Train a pack to the end, with copies of what was there before."""
    pack = Pack(cells, backbone, task.num_outputs)
    trainer = trainer_of(pack, task, rows)
    start = [pack.state(place) for place in range(len(cells))]
    frozen = {name: value.clone() for name, value in frozen_of(pack).items()}
    return Run(pack, task, start, frozen, trainer.run())


def trained_names(cell: Cell) -> frozenset[str]:
    """The names of the factors that the cell trains."""
    shapes = Shape(32, 32), Shape(32, 64)
    recipe = methods.get(cell.method)
    return frozenset(factor.name for shape in shapes for factor in recipe.factors(cell, shape) if factor.trainable)


def frozen_of(pack: Pack) -> dict[str, Tensor]:
    """All that must not move: the backbone's parameters and buffers, and the groups' frozen factors."""
    found = dict(pack.backbone.model.state_dict())
    for number, group in enumerate(pack.bank.groups):
        found |= {f"{number}.{shape}.{name}": value for (shape, name), value in group.frozen.items()}
        found |= {f"{number}.{shape}.start": torch.cat([u.A, u.B.mT], -1) for shape, u in (group.start or {}).items()}
    return found


def plain_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The encoder as transformers loads it, untouched by the package."""
    with backbones.quiet_transformers():
        model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()  # type: ignore[no-any-return]


def plain_classifier(folder: Path, outputs: int, dtype: torch.dtype) -> nn.Module:
    """The encoder with a head of transformers' own, random the same every time."""
    with torch.random.fork_rng(), backbones.quiet_transformers():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=outputs, dtype=dtype, attn_implementation="eager"
        )
    return model.eval()  # type: ignore[no-any-return]


def padded(table: TokenTable, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[rows, longest]`."""
    sequences = [torch.from_numpy(table.ids[table.offsets[i] : table.offsets[i + 1]]).long() for i in rows]
    ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=PAD)
    return ids, (ids != PAD).long()


def head_by_hand(first: Tensor, head: dict[str, Tensor]) -> Tensor:
    """RoBERTa's classification head without dropout."""
    hidden = torch.tanh(first @ head["dense.weight"].T + head["dense.bias"])
    return hidden @ head["out_proj.weight"].T + head["out_proj.bias"]


class Workbench:
    """A tiny encoder in a folder, and cells trained on it; each is loaded or trained once.

    `calm` is the same encoder without dropout, so that others' code can be followed step by step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = save_encoder(folder, dropout=0.1)
        self.load: Callable[[str], Backbone] = cache(lambda precision: backbones.load(str(folder), CPU, precision))
        self.calm_folder = save_encoder(self.new_folder(), dropout=0.0)
        self.calm: Callable[[str], Backbone] = cache(
            lambda precision: backbones.load(str(self.calm_folder), CPU, precision)
        )
        self.trained: Callable[[str, str, str], Run] = cache(self._train)

    def _train(self, method: str, task: str = "cola", precision: str = "float32") -> Run:
        """A cell of a method after two epochs of a task."""
        return train([cell_of(method, task, precision=precision)], self.load(precision), tasks.get(task))

    def new_folder(self) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))
