"""How many cells of a pack fit into a GPU's memory: measured on small packs of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lora_bench.cell import Cell
from lora_bench.engine.trainer import Trainer

SAMPLES = (2, 6)  # cells of the two packs that are measured (chosen)
SHARE = 0.85  # of the free memory (chosen): the allocator cannot use every byte


def free_bytes(device: torch.device) -> int:
    """What a new pack may use: the device's free memory, and what the allocator has reserved but does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that tensors have taken since the last `forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Start to measure the peak anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def cells_that_fit(cells: Sequence[Cell], make: Callable[[Sequence[Cell]], Trainer], device: torch.device) -> int:
    """How many cells like these train together in the free memory.

    A step of a pack of 2 and one of 6 cells are measured. A straight line through the two peaks gives the memory per
    cell and that of the pack itself.

    Args:
        cells: The cells in the order of their ranks, largest last.
        make: Makes the trainer of a pack.
        device: A GPU.

    Returns:
        The number of cells, at least 1.
    """
    free = free_bytes(device)
    peaks = []
    for count in SAMPLES:
        forget_peak(device)
        before = torch.cuda.memory_allocated(device)
        make(cells[-count:]).probe_memory()
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
        torch.cuda.empty_cache()
    per_cell = max(1.0, (peaks[1] - peaks[0]) / (SAMPLES[1] - SAMPLES[0]))
    base = max(0.0, peaks[0] - SAMPLES[0] * per_cell)
    return max(1, int((SHARE * free - base) / per_cell))
