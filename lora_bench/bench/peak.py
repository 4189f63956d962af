"""The device's own matmul rate, measured, and the number of operations that a token needs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor, nn

from lora_bench.bench.clock import synchronise

SIZES = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices
REPEATS, SECONDS = 7, 0.1  # of the measurement; seconds of one repeat


def linear_weights(linears: Iterable[nn.Linear]) -> int:
    """Return the number of values in the weights of linear layers, without biases."""
    return sum(linear.weight.numel() for linear in linears)


def operations_per_token(weights: int, trains_backbone: bool = False) -> int:
    """Return the FLOP of one token in one training step.

    These are 2 per weight for the forward pass, 2 for the gradient of the activations and, if the weights train, 2 for
    their gradient. Attention, adapters, heads and padding are not counted: the measure is the same for every variant,
    and a low one.

    Args:
        weights: The number of values in the encoder's linear weights.
        trains_backbone: Whether these weights train.
    """
    return (6 if trains_backbone else 4) * weights


def measure(device: torch.device, precision: str) -> dict[str, object]:
    """Measure the rate of a product of two square matrices of random values.

    The product is in bf16 if the precision is and the device has the units for it (CUDA), else in float32.

    Returns:
        `dtype`, `size` of the matrices, `products_a_repeat`, `repeats` in TFLOP/s, and their median `tflops`.
    """
    dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
    size = SIZES.get(device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    trial_seconds = _time_products(left, right, out, 3)
    count = max(1, round(SECONDS / (trial_seconds / 3)))
    rates = [2 * size**3 * count / _time_products(left, right, out, count) / 1e12 for _ in range(REPEATS)]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "size": size,
        "products_a_repeat": count,
        "tflops": median(rates),
        "repeats": rates,
    }


def _time_products(left: Tensor, right: Tensor, out: Tensor, count: int) -> float:
    """Return the seconds of `count` products, after one that is not timed."""
    torch.mm(left, right, out=out)
    synchronise(left.device)
    start = time.perf_counter()
    for _ in range(count):
        torch.mm(left, right, out=out)
    synchronise(left.device)
    return time.perf_counter() - start
