"""How many cells of a pack fit into a GPU's memory: measured on small packs of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lora_bench.cell import Cell
from lora_bench.engine.device_memory import forget_peak, free_bytes
from lora_bench.engine.trainer import Trainer

SAMPLES = (2, 6)  # cells of the two packs that are measured (chosen)
SHARE = 0.85  # of the free memory (chosen): the allocator cannot use every byte


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
