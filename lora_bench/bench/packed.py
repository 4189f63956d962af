"""Ours: K cells at once, through the engine that `lora-bench run` uses."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from lora_bench.bench.clock import Measured, Memory, Stopwatch
from lora_bench.bench.workload import Work
from lora_bench.cell import Cell
from lora_bench.engine.backbone import Backbone
from lora_bench.engine.pack import Pack
from lora_bench.engine.trainer import Split, Trainer
from lora_bench.engine.windows import Table

WARM = {"cpu": 1, "cuda": 64}  # steps: a shape of batches may be recorded when it first comes
AUTOMATIC = {"cpu": 8, "cuda": 64}


def automatic(device: torch.device) -> int:
    """The number of cells that `--pack auto` means here."""
    return AUTOMATIC.get(device.type, 8)


def run(cells: Sequence[Cell], work: Work, backbone: Backbone, seconds: float) -> Measured:
    """Train the cells as one pack for some steps."""
    memory, start = Memory(backbone.device), time.perf_counter()
    memory.begin()
    table = Table(work.table, backbone.device, work.pad_id)
    trainer = Trainer(Pack(cells, backbone, work.task.num_outputs), work.task, table, Split(table))
    built = time.perf_counter() - start
    with trainer.pack:
        start = time.perf_counter()
        trainer.prepare()
        prepared = time.perf_counter() - start
        watch = Stopwatch(seconds, backbone.device, work.tokens, len(cells), WARM.get(backbone.device.type))
        watch.start()
        while not watch.done:
            trainer.train(list(work.order[watch.issued : watch.issued + watch.wanted]))
            watch.lap()
    return Measured(tuple(watch.windows), built, prepared + watch.once, memory.peak(whole=True))
