"""The device that trains."""

from __future__ import annotations

import re

from lora_bench.errors import MISSING, BenchError


def choose_device(wanted: str) -> str:
    """`auto` is the GPU if there is one.

    Raises:
        BenchError: exit code 3 if the device is not there.
    """
    import torch

    available = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if available else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", wanted):
        raise BenchError(f"'{wanted}' is no device.", "Use --device auto, cpu, cuda or cuda:N.")
    if wanted != "cpu" and int(wanted.partition(":")[2] or 0) >= torch.cuda.device_count():
        hint = "Use --device cpu; `lora-bench doctor` says more."
        raise BenchError(f"There is no CUDA device '{wanted}' here.", hint, MISSING)
    return wanted
