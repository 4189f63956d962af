"""Factories: a bundled task ready to be measured, and rows with given rates."""

from __future__ import annotations

from functools import cache
from typing import Any

from lora_bench.bench import workload
from lora_bench.bench.clock import ROUNDS, Measurement, TimedRun, Turns
from lora_bench.bench.rows import BenchRow, fill_row
from lora_bench.bench.settings import BenchOptions, BenchSettings, resolve_options
from lora_bench.bench.suite import BenchReport
from lora_bench.bench.workload import BenchModel, Workload
from lora_bench.sample import ENCODER

OPERATIONS, PEAK = 1_000_000, 0.5  # FLOP of a token; TFLOP/s
SAMPLE = BenchModel(str(ENCODER), False, True)


def bench_settings(**options: Any) -> BenchSettings:
    """The settings of a quick benchmark on the processor, with these options."""
    return resolve_options(BenchOptions(quick=True, device="cpu", **options))


@cache
def work(task: str = "sst2", batch: int = 32) -> Workload:
    """A task of the bundled sample."""
    return workload.load_workload(task, bench_settings(batch_size=batch), SAMPLE, "float32", 128)


def measured(*rates: float, tokens: float = 10.0) -> Measurement:
    """Repeats of half a second with these rates; `tokens` for each step of a cell."""
    return Measurement(tuple(TimedRun(rate / 2, tokens * rate / 2, 0.5) for rate in rates), 0.1, 0.2, 2**30)


def in_turns(measurement: Measurement) -> Turns:
    """A measurement that takes its turns and does nothing in them."""
    for _ in range(ROUNDS):
        yield
    return measurement


def row(variant: str, *rates: float, **settings: Any) -> BenchRow:
    """A filled row; without rates, one that failed."""
    bare = BenchRow(**{"task": "sst2", "targets": "qv", "mix": "lora", "k": 1, **settings}, variant=variant)
    return fill_row(bare, measured(*rates), OPERATIONS, PEAK) if rates else bare


def report(*rows: BenchRow) -> BenchReport:
    """A report of these rows."""
    about = {
        "model": "sample",
        "device": "a device",
        "random_weights": True,
        "left_out": "",
        "batch_size": 32,
        "max_length": 128,
        "precision": "float32",
        "seconds": 1.0,
        "repeats": 3,
        "lora_bench": "1",
        "torch": "2",
        "transformers": "5",
        "peft": "0",
    }
    return BenchReport(about, {"tflops": PEAK, "dtype": "float32"}, rows)
