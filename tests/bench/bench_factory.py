"""A bundled task ready to be measured, and rows with chosen rates."""

from __future__ import annotations

from functools import cache
from typing import Any

from lora_bench.bench import workload
from lora_bench.bench.choice import Choice, Wish, choose
from lora_bench.bench.clock import Measured, Window
from lora_bench.bench.rows import Row, filled
from lora_bench.bench.suite import Report
from lora_bench.bench.workload import Model, Work
from lora_bench.sample import ENCODER

OPERATIONS, PEAK = 1_000_000, 0.5  # FLOP of a token; TFLOP/s
SAMPLE = Model(str(ENCODER), False, True)


def choice(**wishes: Any) -> Choice:
    """A quick choice on the processor, with these wishes."""
    return choose(Wish(quick=True, device="cpu", **wishes))


@cache
def work(task: str = "sst2", batch: int = 32) -> Work:
    """A task of the bundled sample."""
    return workload.load(task, choice(batch_size=batch), SAMPLE, "float32", 128)


def measured(*rates: float, tokens: float = 10.0) -> Measured:
    """Windows of half a second with these rates; `tokens` for each step of a cell."""
    return Measured(tuple(Window(rate / 2, tokens * rate / 2, 0.5) for rate in rates), 0.1, 0.2, 2**30)


def row(variant: str, *rates: float, **settings: Any) -> Row:
    """A filled row; without rates, one that failed."""
    bare = Row(**{"task": "sst2", "targets": "qv", "mix": "lora", "k": 1, **settings}, variant=variant)
    return filled(bare, measured(*rates), OPERATIONS, PEAK) if rates else bare


def report(*rows: Row) -> Report:
    """A report of these rows."""
    about = {
        "model": "sample", "device": "a device", "random_weights": True, "left_out": "", "batch_size": 32,
        "max_length": 128, "precision": "float32", "seconds": 1.0, "repeats": 3, "lora_bench": "1", "torch": "2",
        "transformers": "5", "peft": "0",
    }  # fmt: skip
    return Report(about, {"tflops": PEAK, "dtype": "float32"}, rows)
