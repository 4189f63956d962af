"""lora-bench's own measurement: K cells at the same time, through the engine that `lora-bench run` uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from lora_bench import methods
from lora_bench.bench.clock import Measurement, MemoryMeter, Stopwatch
from lora_bench.bench.workload import Workload
from lora_bench.cell import Cell
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.evaluation import Split
from lora_bench.engine.trainer import Trainer
from lora_bench.forecast.cost import Estimate

# A CUDA graph may be recorded whenever a shape of batches first occurs, so the warm-up is long.
WARM_UP_STEPS = {"cpu": 1, "cuda": 64}


def automatic_size(device: torch.device, cell: Cell, model: str) -> int:
    """Return the number of cells that `--pack auto` stands for with cells like this one."""
    return Estimate().cells_per_pack(cell, "cuda" if device.type == "cuda" else "cpu", model)


def run(
    cells: Sequence[Cell], work: Workload, load_encoder: Callable[[], Backbone], device: torch.device, seconds: float
) -> Measurement:
    """Train the cells as one pack for some steps.

    The measured memory includes the encoder: a frozen one is all that was there before, and one that trains is loaded
    during the measurement.

    Args:
        cells: The pack.
        work: The task's rows and their order.
        load_encoder: Returns the encoder.
        device: The device.
        seconds: The duration of all repeats together.
    """
    memory, start = MemoryMeter(device), time.perf_counter()
    memory.begin()
    backbone = load_encoder()
    table = backbone.table(work.table)
    trainer = Trainer(Pack(cells, backbone, work.task.num_outputs), work.task, table, Split(table))
    build_seconds = time.perf_counter() - start
    with trainer.pack:
        start = time.perf_counter()
        trainer.prepare()
        prepare_seconds = time.perf_counter() - start
        watch = Stopwatch(seconds, device, work.tokens, len(cells), WARM_UP_STEPS.get(device.type))
        watch.start()
        while not watch.done:
            trainer.train(list(work.order[watch.steps_issued : watch.steps_issued + watch.next_steps]))
            watch.lap()
    is_frozen = not methods.of(cells[0]).trains_backbone
    setup_seconds = prepare_seconds + watch.setup_seconds
    return Measurement(tuple(watch.repeats), build_seconds, setup_seconds, memory.peak(whole=is_frozen))
