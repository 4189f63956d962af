"""Chooses the device to train on."""

from __future__ import annotations

import re

from lora_bench.errors import MISSING, BenchError
from lora_bench.run.environment import quick_imports


def choose_device(name: str) -> str:
    """Return what torch calls the device.

    Args:
        name: `cpu`, `cuda`, `cuda:N`, or `auto` for the GPU if there is one.

    Raises:
        BenchError: Exit code 2 for another name, 3 if there is no such device.
    """
    with quick_imports():
        import torch

    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise BenchError(f"'{name}' is no device.", "Use --device auto, cpu, cuda or cuda:N.")
    if name != "cpu" and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        hint = "Use --device cpu; `lora-bench doctor` says more."
        raise BenchError(f"There is no CUDA device '{name}' here.", hint, MISSING)
    return name
