"""Keeps memory that tensors on a CPU have freed, for the next step.

glibc returns the end of its heap to the system as soon as a few megabytes of it are free. Each step frees all of its
activations, so it may return their memory and fetch it again page by page: for 8 cells of the bundled encoder this
costs up to 8,000 page faults, 16 ms beside the 24 ms of a step. Whether it happens depends on what lies at the end of
the heap, so the same training sometimes runs at half the speed.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30  # at the end of the heap (chosen): anything beyond it is returned to the system
# The largest value that glibc accepts, and the one that it would reach by itself in time. glibc stops adapting this
# limit once the other one is set. Larger blocks are always returned to the system when they are freed.
LARGEST_KEPT_BLOCK = 2**25


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what is freed, up to `KEPT_BYTES`, for the whole process; without glibc, do nothing."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK)
