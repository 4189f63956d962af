"""Ours: K cells at once, through the engine that `lora-bench run` uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from lora_bench import methods
from lora_bench.bench.clock import Measured, Memory, Stopwatch
from lora_bench.bench.workload import Work
from lora_bench.cell import Cell
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Table
from lora_bench.engine.trainer import Split, Trainer
from lora_bench.forecast.cost import Estimate

WARM = {"cpu": 1, "cuda": 64}  # steps: a shape of batches may be recorded when it first comes


def automatic(device: torch.device, cell: Cell, model: str) -> int:
    """The number of cells that `--pack auto` means for cells like this one on this model."""
    return Estimate().cells_per_pack(cell, "cuda" if device.type == "cuda" else "cpu", model)


def run(
    cells: Sequence[Cell], work: Work, encoder: Callable[[], Backbone], device: torch.device, seconds: float
) -> Measured:
    """Train the cells as one pack for some steps.

    The memory has the encoder in it: a frozen one is all that was there before, one that trains is loaded beside it.
    """
    memory, start = Memory(device), time.perf_counter()
    memory.begin()
    backbone = encoder()
    table = Table(work.table, device, work.pad_id)
    trainer = Trainer(Pack(cells, backbone, work.task.num_outputs), work.task, table, Split(table))
    built = time.perf_counter() - start
    with trainer.pack:
        start = time.perf_counter()
        trainer.prepare()
        prepared = time.perf_counter() - start
        watch = Stopwatch(seconds, device, work.tokens, len(cells), WARM.get(device.type))
        watch.start()
        while not watch.done:
            trainer.train(list(work.order[watch.issued : watch.issued + watch.wanted]))
            watch.lap()
    frozen = not methods.get(cells[0].method).trains_backbone
    return Measured(tuple(watch.windows), built, prepared + watch.once, memory.peak(whole=frozen))
