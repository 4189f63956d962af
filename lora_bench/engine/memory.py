"""How many cells of a pack a GPU's memory holds: measured on small packs of the same kind, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lora_bench.cell import Cell
from lora_bench.engine.trainer import Trainer

SAMPLES = (2, 6)
SHARE = 0.85  # of what is free; the allocator cannot use every byte


def free_bytes(device: torch.device) -> int:
    """What a new pack may use: free memory, and what the allocator holds without need."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that tensors took since the last `forget_peak`; None on a processor."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Count the peak anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def cells_that_fit(cells: Sequence[Cell], make: Callable[[Sequence[Cell]], Trainer], device: torch.device) -> int:
    """How many cells like these train together in the memory that is free: a step of two small packs tells."""
    free = free_bytes(device)
    peaks = []
    for count in SAMPLES:
        forget_peak(device)
        before = torch.cuda.memory_allocated(device)
        make(cells[-count:]).probe()  # the largest ranks stand last
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
        torch.cuda.empty_cache()
    each = max(1.0, (peaks[1] - peaks[0]) / (SAMPLES[1] - SAMPLES[0]))
    base = max(0.0, peaks[0] - SAMPLES[0] * each)
    return max(1, int((SHARE * free - base) / each))
