"""What a GPU's memory holds: what is free, and the most that was taken."""

from __future__ import annotations

import torch


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


def has_room_for_graphs(device: torch.device) -> bool:
    """Whether the free memory of a GPU holds what a step takes twice; to be asked between steps.

    A recorded step keeps its memory, and steps of other shapes, which are issued one by one, need as much again.
    """
    return free_bytes(device) >= 2 * (torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device))
