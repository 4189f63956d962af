"""lora-bench's own measurement: K cells at the same time, through the engine that `lora-bench run` uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from lora_bench.bench.clock import ROUNDS, Measurement, MemoryMeter, Stopwatch, Turns
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
    cells: Sequence[Cell],
    work: Workload,
    load_encoder: Callable[[], Backbone],
    device: torch.device,
    seconds: float,
    encoder_bytes: int = 0,
) -> Turns:
    """Train the cells as one pack for some steps.

    Args:
        cells: The pack.
        work: The task's rows and their order.
        load_encoder: Returns the encoder.
        device: The device.
        seconds: The duration of all repeats together.
        encoder_bytes: The GPU memory of the encoder if it is loaded already: the measured memory includes it.
    """
    memory, start = MemoryMeter(device, encoder_bytes), time.perf_counter()
    with memory.turn():
        backbone = load_encoder()
        table = backbone.table(work.table)
        trainer = Trainer(Pack(cells, backbone, work.task.num_outputs), work.task, table, Split(table))
        build_seconds = time.perf_counter() - start

        def train(steps: int) -> None:
            trainer.train(list(work.order[watch.steps_issued : watch.steps_issued + steps]))

        watch = Stopwatch(train, seconds, device, work.tokens, len(cells), WARM_UP_STEPS.get(device.type))
        with trainer.pack:
            start = time.perf_counter()
            trainer.prepare()
            prepare_seconds = time.perf_counter() - start
            watch.warm_up()
    for _ in range(ROUNDS):
        yield
        with memory.turn(), trainer.pack:
            watch.repeat()
    return Measurement(tuple(watch.repeats), build_seconds, prepare_seconds + watch.setup_seconds, memory.peak)
