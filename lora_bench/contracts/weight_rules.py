"""The contracts of a method with a rule for the encoder's weights: what trains when, and a pause changes nothing."""

from __future__ import annotations

import torch

from lora_bench import methods, tasks
from lora_bench.contracts.kit import ContractError, Workbench, cell_of, require, trainer_of
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.targets import layer_of
from lora_bench.engine.trainer import Trainer
from lora_bench.run import checkpointing

RANK_TOLERANCE = 1e-9  # singular values below this part of the largest are rounding (float64)


def it_trains_by_its_rule(method: str, bench: Workbench) -> None:
    """in each step no more layers, and no more directions of a weight, change than its rule says"""
    if methods.get(method).weights(cell_of(method)) is None:
        return
    trainer = _trainer(method, bench)
    whole = trainer.pack.whole
    if whole is None or whole.rule is None:
        raise ContractError("its rule needs `trains_backbone`")
    rule, moved = whole.rule, set[str]()
    (rows,) = trainer.batch_rows(1)[:1]
    for _ in range(6):
        before = trainer.pack.state(0).adapter
        trainer.train([rows])
        after = trainer.pack.state(0).adapter
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        layers = {layer for name in changed if (layer := layer_of(name)) is not None}
        moved |= changed
        if rule.layers is not None:
            require(len(layers) <= rule.layers.count, f"{len(layers)} layers changed in a step")
        if rule.projection is None:
            continue
        for name in changed & whole.linears:
            rank = int(torch.linalg.matrix_rank(after[name] - before[name], rtol=RANK_TOLERANCE))
            require(rank <= rule.projection.rank, f"{name} changed by a matrix of rank {rank}")
    frozen = sorted(name for name in moved if not whole.trains(name))
    require(not frozen, f"{', '.join(frozen)} moved, which should be frozen")


def it_goes_on_after_a_pause(method: str, bench: Workbench) -> None:
    """stopped and resumed within an epoch it ends the same to the bit"""
    if methods.get(method).weights(cell_of(method)) is None:
        return
    whole, paused, resumed = (_trainer(method, bench) for _ in range(3))
    batches = [*whole.batch_rows(1), *whole.batch_rows(2)]
    whole.train(batches)
    paused.train(batches[:4])
    (state,) = checkpointing.copy_states(paused)
    checkpointing.restore(resumed, {resumed.pack.cells[0].id: state})
    resumed.train(batches[4:])
    expected, actual = whole.pack.state(0), resumed.pack.state(0)
    require(torch.equal(expected.flat(), actual.flat()), "it ends with other values")


def _trainer(method: str, bench: Workbench) -> Trainer:
    """Return a trainer of a cell with one layer at a time and new directions every second step, where it has these."""
    task = tasks.get("cola")
    cell = cell_of(method, precision="float64", rank=3, a=1, b=2, warmup=0.0, batch_size=8)
    return trainer_of(Pack([cell], bench.load("float64"), task.num_outputs), task)
