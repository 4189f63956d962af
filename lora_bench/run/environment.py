"""The device that trains, and the versions that records and `doctor` name."""

from __future__ import annotations

import gc
import itertools
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_bench import __version__
from lora_bench.errors import MISSING, BenchError
from lora_bench.provenance import versions_of

# The threads of a process that trains on a GPU, and of a worker on Ray, unless OMP_NUM_THREADS is set (chosen). A GPU
# leaves operations on small tensors to the processor. With more threads than free cores, building a pack took 5 to
# 10 times as long (on two busy cores), and a process cannot know how many are free.
THREADS = 4
PACKAGES = ("torch", "transformers", "datasets", "evaluate", "numpy", "safetensors")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Switch off garbage collection while large libraries are imported, which would take a fifth of the time.

    Afterwards their million objects, which live as long as the process, are exempt from it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def wanted_threads() -> int | None:
    """Return the threads that `OMP_NUM_THREADS` asks for; None where it does not say."""
    # A list has a number for each level of nesting.
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and len(given) < 6 and int(given) else None


def default_threads(device: str) -> int | None:
    """Return how many threads a process that trains on a device should have; None to leave it to torch.

    Args:
        device: What torch calls the device.
    """
    return None if device == "cpu" or wanted_threads() is not None else THREADS


def versions() -> dict[str, str]:
    """Return the versions that every record holds and `doctor` shows."""
    return {"lora_bench": __version__, "python": platform.python_version(), **versions_of(*PACKAGES)}


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
        raise BenchError(f"'{name}' is not a device.", "Use --device auto, cpu, cuda or cuda:N.")
    if name != "cpu" and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        hint = "Use --device cpu; `lora-bench doctor` says more."
        raise BenchError(f"There is no CUDA device '{name}' here.", hint, MISSING)
    return name


def local_device() -> str:
    """Return the name of this machine's first NVIDIA GPU, or `cpu` if there is none. Does not import torch."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return "cpu"


def count_gpus() -> int:
    """Return how many NVIDIA GPUs of this machine the process may use. Does not import torch."""
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*/information")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    # CUDA ignores all after the first entry that names no GPU, by its number or its id.
    names = [name.strip() for name in visible.split(",")]
    usable = itertools.takewhile(
        lambda name: int(name) < present if name.isdecimal() else name.startswith(("GPU-", "MIG-")), names
    )
    return min(present, len(set(usable)))


def named_device(device: str) -> str:
    """Return what records call a device: `auto` and `cuda` are this machine's first GPU. Does not import torch."""
    first = local_device()
    return first if device == "auto" or (device.startswith("cuda") and first != "cpu") else device


def device_name(device: str) -> str:
    """Return the name of a device: the GPU's, or the processor's architecture and its threads."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"cpu, {platform.machine()}, {torch.get_num_threads()} threads"
