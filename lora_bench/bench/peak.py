"""The device's own matmul rate, measured, and the operations that a real token needs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor, nn

from lora_bench.bench.clock import synchronise

SIZES = {"cpu": 1024, "cuda": 8192}
REPEATS, SECONDS = 7, 0.1


def linear_weights(linears: Iterable[nn.Linear]) -> int:
    """Values in the weights of the encoder's linear layers, biases left out."""
    return sum(linear.weight.numel() for linear in linears)


def operations_a_token(weights: int, trains_backbone: bool = False) -> int:
    """FLOP of one real token in one step: 2 a weight forward, 2 for the activations' gradient, 2 for the weights'.

    Attention, adapters, heads and padding count for nothing: the same yardstick for every variant, and a low one.
    """
    return (6 if trains_backbone else 4) * weights


def measure(device: torch.device, precision: str) -> dict[str, object]:
    """The rate of a square matrix product on random values: `tflops` is the median of the repeats.

    bf16 if the precision is and the device has the units for it (CUDA); else float32.
    """
    dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
    size = SIZES.get(device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    once = _timed(left, right, out, 3)
    count = max(1, round(SECONDS / (once / 3)))
    rates = [2 * size**3 * count / _timed(left, right, out, count) / 1e12 for _ in range(REPEATS)]
    return {
        "dtype": str(dtype).removeprefix("torch."), "size": size, "products_a_repeat": count,
        "tflops": median(rates), "repeats": rates,
    }  # fmt: skip


def _timed(left: Tensor, right: Tensor, out: Tensor, count: int) -> float:
    """Seconds of `count` products, after one that is not timed."""
    torch.mm(left, right, out=out)
    synchronise(left.device)
    start = time.perf_counter()
    for _ in range(count):
        torch.mm(left, right, out=out)
    synchronise(left.device)
    return time.perf_counter() - start
