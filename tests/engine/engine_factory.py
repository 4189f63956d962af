"""The shortest way from tiny encoders, tables and cells to trained packs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.data.tokens import TokenTable
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.backbone import Backbone, load
from lora_bench.engine.encoder.windows import Table
from lora_bench.engine.evaluation import Split
from lora_bench.engine.progress import Progress
from lora_bench.engine.trainer import Trainer
from lora_bench.testing import PADDING, make_encoder, make_tokens

CPU = torch.device("cpu")
LENGTHS = (3, 40, 17, 200, 64, 9, 130, 31, 2)


def loaded(folder: Path, precision: str = "float32") -> Backbone:
    """The backbone in a directory, from this machine alone."""
    return load(str(folder), CPU, precision, offline=True)


def backbone(kind: str = "roberta", precision: str = "float64") -> Backbone:
    """A random backbone, never saved."""
    return Backbone(make_encoder(kind), CPU, precision)


def table(tokens: TokenTable) -> Table:
    """The tokens on the CPU."""
    return Table(tokens, CPU, padding_idx=PADDING)


def trainer(cells: Sequence[Cell], on: Backbone, count: int = 48, held_out: Table | None = None) -> Trainer:
    """A trainer of the cells as one pack, over `count` rows, evaluated on 60 others."""
    task = tasks.of(cells[0])
    pack = Pack(cells, on, task.num_outputs)
    train, evaluation = table(make_tokens(count, 1, task.name)), Split(table(make_tokens(60, 2, task.name)))
    return Trainer(pack, task, train, evaluation, held_out)


def trained(cells: Sequence[Cell], on: Backbone) -> dict[Cell, Progress]:
    """The cells after their training as one pack."""
    return {progress.cell: progress for progress in trainer(cells, on).run()}


def values(progress: Progress) -> dict[str, Tensor]:
    """Everything that the cell trained, by name."""
    assert progress.state is not None
    return {**progress.state.adapter, **{f"head.{name}": part for name, part in progress.state.head.items()}}


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest absolute difference between two sets of values."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def start(cell: Cell, on: Backbone) -> dict[str, Tensor]:
    """The values that the cell trains, as they are before the first step."""
    state = trainer([cell], on).pack.state(0)
    return {**state.adapter, **{f"head.{name}": part for name, part in state.head.items()}}


def losses(found: Mapping[Cell, Progress]) -> dict[Cell, np.ndarray[Any, np.dtype[np.float64]]]:
    """The loss of every step, by cell."""
    return {cell: np.array(progress.losses) for cell, progress in found.items()}
