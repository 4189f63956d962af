"""What contracts are tested with: a tiny random encoder, random tokens, small cells of any method, trained packs."""

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
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.data.tokens import TokenTable
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Table
from lora_bench.engine.evaluation import Split
from lora_bench.engine.progress import Progress
from lora_bench.engine.trainer import Trainer
from lora_bench.methods.recipe import Factor, Recipe, Shape
from lora_bench.tasks import TASKS, Task
from lora_bench.testing import NO_DROPOUT, WORDS, make_cell, make_model

PAD, VOCABULARY, HIDDEN, ROWS = 1, 60, 32, 24
# One task for each number of outputs: regression, two classes, three classes.
KINDS = tuple({task.num_outputs: name for name, task in reversed(tuple(TASKS.items()))}.values())
TARGETS = "attention+dense"
SIZES: dict[str, int | float | str] = {"rank": 4, "a": 7, "b": 6, "alpha": 8.0, "targets": TARGETS}
CPU = torch.device("cpu")


class ContractError(AssertionError):
    """A contract is broken; the message says where."""


def require(condition: bool, message: str) -> None:
    """Raise `ContractError` unless the condition holds."""
    if not condition:
        raise ContractError(message)


def alike(one: Tensor, other: Tensor, tolerance: float, what: str) -> None:
    """Raise `ContractError` unless two tensors agree.

    Args:
        one: The first tensor.
        other: The second tensor.
        tolerance: The largest difference allowed, times the largest entry of `other` if that is above 1.
        what: What the tensors are, for the message.
    """
    difference = float((one - other).abs().max()) if one.shape == other.shape else float("inf")
    require(
        difference <= tolerance * max(1.0, float(other.abs().max())),
        f"{what} differs by {difference:.2g}, allowed {tolerance:g}",
    )


def save_encoder(folder: Path, dropout: float, family: str = "roberta") -> Path:
    """Write a random encoder of two layers whose weights and biases are large enough for adapters to matter."""
    sizes = {"vocab_size": VOCABULARY, "intermediate_size": 64, "max_position_embeddings": 80}
    rates = dict.fromkeys(NO_DROPOUT, dropout)
    return make_model(folder, family, seed=0, words=WORDS[:VOCABULARY], **sizes, **rates)


def cell_of(method: str, task: str = "cola", **changes: Any) -> Cell:
    """Return a small cell of any method; changes of parameters that the method lacks are ignored."""
    settings: dict[str, Any] = {"seed": 0, "head_lr": None, "precision": "float32"} | SIZES | changes
    return make_cell(method, task=task, **settings)


def tokens(task: Task, rows: int = ROWS) -> TokenTable:
    """Return random sequences of 3 to 20 tokens, whose labels depend on their second token."""
    random = np.random.default_rng(7)
    lengths = random.integers(3, 21, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = random.integers(4, VOCABULARY, offsets[-1]).astype(np.int32)
    ids[offsets[:-1]] = 0
    seconds = ids[offsets[:-1] + 1]
    labels = (seconds / 12).astype(np.float32) if task.is_regression else seconds.astype(np.int64) % task.num_outputs
    return TokenTable(ids, None, offsets, labels)


def table_of(backbone: Backbone, task: Task, rows: int = ROWS) -> Table:
    """Return the same sequences on the device, with the positions that the encoder gives them."""
    return backbone.table(tokens(task, rows))


def split_of(task: Task, table: Table) -> Split:
    """Return the table as evaluation data, divided into the task's official splits."""
    cuts = np.linspace(0, len(table), len(task.eval_splits) + 1).astype(int).tolist()
    ends = zip(task.eval_splits, cuts, cuts[1:], strict=False)
    return Split(table, {name: slice(start, end) for name, start, end in ends})


def trainer_of(pack: Pack, task: Task, rows: int = ROWS) -> Trainer:
    """Return a trainer that evaluates on its training data."""
    table = table_of(pack.backbone, task, rows)
    return Trainer(pack, task, table, split_of(task, table))


@torch.no_grad()
def logits_of(pack: Pack, task: Task) -> Tensor:
    """Return the logits `[cells, rows, outputs]` without dropout, in the table's order."""
    table = table_of(pack.backbone, task)
    with pack:
        pack.compose()
        return pack.logits(next(table.batches([np.arange(len(table))])))


@dataclass(frozen=True)
class Run:
    """A trained pack, with copies from before it was trained.

    Attributes:
        pack: The pack after training.
        task: Its task.
        start: The state of each cell before training.
        frozen: Copies of all frozen tensors, by name.
        progress: The losses and scores of each cell.
    """

    pack: Pack
    task: Task
    start: list[State]
    frozen: dict[str, Tensor]
    progress: list[Progress]

    @property
    def cell(self) -> Cell:
        """The first cell of the pack."""
        return self.pack.cells[0]

    @property
    def recipe(self) -> Recipe:
        """The first cell's recipe."""
        return methods.of(self.cell)


def train(cells: Sequence[Cell], backbone: Backbone, task: Task, rows: int = ROWS) -> Run:
    """Train a pack to the end."""
    pack = Pack(cells, backbone, task.num_outputs)
    trainer = trainer_of(pack, task, rows)
    start = [pack.state(index) for index in range(len(cells))]
    frozen = {name: value.clone() for name, value in frozen_of(pack).items()}
    return Run(pack, task, start, frozen, trainer.run())


def trained_names(cell: Cell) -> frozenset[str]:
    """Return the names of the factors that the cell trains."""
    return frozenset(factor.name for factor in _factors(cell) if factor.trainable)


def sparse_names(cell: Cell) -> frozenset[str]:
    """Return the names of the factors of which only some values get a gradient."""
    return frozenset(factor.name for factor in _factors(cell) if factor.is_sparse)


def varies_in_size(method: str) -> bool:
    """Return whether cells of the method can differ in size within a pack."""
    recipe = methods.get(method)
    return bool({"rank", "a", "b"} & recipe.parameters) and not recipe.trains_backbone


def _factors(cell: Cell) -> list[Factor]:
    recipe = methods.of(cell)
    return [factor for shape in (Shape(32, 32), Shape(32, 64)) for factor in recipe.factors(cell, shape)]


def frozen_of(pack: Pack) -> dict[str, Tensor]:
    """Return everything that must not change: the backbone's parameters and buffers, and the frozen factors."""
    tensors = dict(pack.backbone.model.state_dict())
    for number, group in enumerate(pack.bank.groups):
        tensors |= {f"{number}.{shape}.{name}": value for (shape, name), value in group.frozen.items()}
        tensors |= {f"{number}.{shape}.start": torch.cat([u.A, u.B.mT], -1) for shape, u in (group.start or {}).items()}
    return tensors


def plain_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the encoder as transformers loads it."""
    with backbones.quiet_transformers():
        model: nn.Module = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def plain_classifier(folder: Path, outputs: int, dtype: torch.dtype) -> PreTrainedModel:
    """Return transformers' classifier over the encoder; its head is random, and the same in every call."""
    with torch.random.fork_rng(), backbones.quiet_transformers():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=outputs, dtype=dtype, attn_implementation="eager"
        )
    model.eval()
    return model


def padded(table: TokenTable, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both `[rows, longest sequence]`."""
    sequences = [torch.from_numpy(table.ids[table.offsets[i] : table.offsets[i + 1]]).long() for i in rows]
    ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=PAD)
    return ids, (ids != PAD).long()


def head_by_hand(first: Tensor, head: dict[str, Tensor]) -> Tensor:
    """Return the logits of the benchmark's head, without dropout, for the states of first tokens `[rows, hidden]`."""
    hidden = torch.tanh(first @ head["dense.weight"].T + head["dense.bias"])
    return hidden @ head["out_proj.weight"].T + head["out_proj.bias"]


class Workbench:
    """A tiny encoder in a folder, and cells trained over it; each is loaded or trained once.

    Args:
        folder: The folder.
        family: The encoder's type, one of `lora_bench.testing.FAMILIES`.

    Attributes:
        folder: The encoder's folder.
        load: Loads the encoder in a precision.
        calm_folder: The folder of the same encoder without dropout, for comparisons with other code step by step.
        calm: Loads that encoder in a precision.
        trained: Trains a cell for two epochs, by method, task and precision.
    """

    def __init__(self, folder: Path, family: str = "roberta") -> None:
        self.folder = save_encoder(folder, dropout=0.1, family=family)
        self.load: Callable[[str], Backbone] = cache(lambda precision: backbones.load(str(folder), CPU, precision))
        self.calm_folder = save_encoder(self.new_folder(), dropout=0.0, family=family)
        self.calm: Callable[[str], Backbone] = cache(
            lambda precision: backbones.load(str(self.calm_folder), CPU, precision)
        )
        self.trained: Callable[[str, str, str], Run] = cache(self._train)

    def _train(self, method: str, task: str = "cola", precision: str = "float32") -> Run:
        """Train a cell of a method for two epochs of a task."""
        return train([cell_of(method, task, precision=precision)], self.load(precision), tasks.get(task))

    def new_folder(self) -> Path:
        """Create an empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))
