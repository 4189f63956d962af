"""The contract of exact resumption, for whatever a method and its optimiser remember between steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_bench import methods, tasks
from lora_bench.contracts.kit import Workbench, cell_of, require, trainer_of
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.windows import Ints
from lora_bench.engine.trainer import Trainer
from lora_bench.run import checkpointing

EPOCHS, PAUSE = 4, 5  # the pause is in the middle of the second epoch of three steps, and of all rank schedules


def it_goes_on_after_a_pause(method: str, bench: Workbench) -> None:
    """stopped and resumed within an epoch it ends the same to the bit"""
    whole, paused, resumed = (trainer_of_method(method, bench) for _ in range(3))
    batches = [rows for epoch in range(1, EPOCHS + 1) for rows in whole.batch_rows(epoch)]
    _train(whole, batches)
    _train(paused, batches[:PAUSE])
    (state,) = checkpointing.copy_states(paused)
    checkpointing.restore(resumed, {resumed.pack.cells[0].id: state})
    _train(resumed, batches[PAUSE:])
    expected, actual = whole.pack.state(0), resumed.pack.state(0)
    require(torch.equal(expected.flat(), actual.flat()), "it ends with other values")


def _train(trainer: Trainer, batches: Sequence[Ints]) -> None:
    with trainer.pack:
        trainer.train(batches)


def trainer_of_method(method: str, bench: Workbench) -> Trainer:
    """Return the trainer of a small cell.

    If the method has a weight rule, one layer trains at a time, and layers and directions change every second step.
    """
    task = tasks.get("cola")
    cell = cell_of(method, precision="float64", warmup=0.0, batch_size=8, epochs=EPOCHS)
    if methods.of(cell).weights(cell) is not None:
        cell = cell.model_copy(update={"a": cell.a and 1, "b": cell.b and 2, "rank": cell.rank and 3})
    return trainer_of(Pack([cell], bench.load("float64"), task.num_outputs), task)
