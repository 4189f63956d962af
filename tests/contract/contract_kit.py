"""What the contracts share: a tiny encoder, made-up tokens, cells of every method, and merging by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, RobertaConfig, RobertaModel

from lora_bench.cell import Cell
from lora_bench.data import TokenTable
from lora_bench.engine.backbone import Backbone
from lora_bench.engine.pack import Pack, State
from lora_bench.engine.trainer import Progress, Split, Trainer
from lora_bench.engine.windows import Table
from lora_bench.methods import RECIPES
from lora_bench.methods.recipe import Recipe, Shape
from lora_bench.tasks import TASKS, Task

PAD, VOCABULARY, HIDDEN, ROWS = 1, 60, 32, 24
METHODS = tuple(RECIPES)
ADAPTING = tuple(name for name, recipe in RECIPES.items() if recipe.adapts)
PACKED = tuple(name for name, recipe in RECIPES.items() if not recipe.trains_backbone)
SIZED = tuple(name for name in ADAPTING if {"rank", "a", "b"} & RECIPES[name].parameters)
KINDS = tuple({task.num_outputs: name for name, task in reversed(tuple(TASKS.items()))}.values())
PARAMETERS = frozenset[str]().union(*(recipe.parameters for recipe in RECIPES.values()))
TARGETS = "attention+dense"
SIZES: dict[str, int | float | str] = {"rank": 4, "a": 7, "b": 6, "alpha": 8.0, "targets": TARGETS}


def save_encoder(folder: Path, dropout: float) -> Path:
    """A random RoBERTa of two layers with weights and biases large enough for adapters to matter."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=80, type_vocab_size=1, pad_token_id=PAD, initializer_range=0.2,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    model = RobertaModel(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.bias, std=0.2)  # transformers starts them at zero
    model.save_pretrained(folder)
    return folder


def cell_of(method: str, task: str = "cola", **changes: Any) -> Cell:
    """A small cell of any method, with test sizes; changes of parameters that the method lacks are left out."""
    recipe = RECIPES[method]
    settings: dict[str, Any] = {name: SIZES.get(name, recipe.defaults[name]) for name in recipe.parameters}
    settings |= {"lr": 1e-2, "epochs": 2, "batch_size": 8, "max_length": 32, "select": "last"}
    known = {name: value for name, value in changes.items() if name in settings or name not in PARAMETERS}
    return Cell(model="tiny", data="made-up", task=task, method=method, **settings | known)


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
    return Table(tokens(task, rows), torch.device("cpu"), PAD)


def split_of(task: Task, table: Table) -> Split:
    """The table as what is evaluated, cut into the task's official splits."""
    cuts = np.linspace(0, len(table), len(task.eval_splits) + 1).astype(int).tolist()
    names = [name for name, _ in task.eval_splits]
    return Split(table, {name: slice(*ends) for name, *ends in zip(names, cuts, cuts[1:], strict=False)})


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
        return RECIPES[self.cell.method]


Load = Callable[[str], Backbone]
Trained = Callable[[str, str, str], Run]


def train(cells: Sequence[Cell], backbone: Backbone, task: Task, rows: int = ROWS) -> Run:
    """Train a pack to the end, with copies of what was there before."""
    pack = Pack(cells, backbone, task.num_outputs)
    start = [pack.state(place) for place in range(len(cells))]
    frozen = {name: value.clone() for name, value in frozen_of(pack).items()}
    return Run(pack, task, start, frozen, trainer_of(pack, task, rows).run())


def frozen_of(pack: Pack) -> dict[str, Tensor]:
    """All that must not move: the backbone's parameters and buffers, and the groups' frozen factors."""
    found = dict(pack.backbone.model.state_dict())
    for number, group in enumerate(pack.bank.groups):
        found |= {f"{number}.{shape}.{name}": value for (shape, name), value in group.frozen.items()}
        found |= {f"{number}.{shape}.start": torch.cat([u.A, u.B.mT], -1) for shape, u in (group.start or {}).items()}
    return found


def shapes_in(plain: nn.Module, endings: Sequence[str]) -> dict[str, Shape]:
    """The weights of a model's layers whose names end so, by name."""
    return {
        name: Shape(*module.weight.shape)
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("encoder.") and name.endswith(tuple(endings))
    }


def plain_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The encoder as transformers loads it, untouched by the package."""
    model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
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
