"""Shortages of a device or a host (memory, threads, free devices), and the errors that report them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lora_bench.errors import MISSING, BenchError

# Words in the messages of torch, CUDA, the C++ runtime and Python, in lower case.
OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "_status_alloc_failed")
NO_THREAD = ("start new thread", "pthread_create", "threadpoolbuilderror", "resource temporarily unavailable")
BUSY = ("busy or unavailable",)
BROKEN = ("cuda error", "cuda driver", "cublas_status", "cudnn_status")


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _says(error, OUT_OF_MEMORY)


def is_shortage(error: BaseException) -> bool:
    """Whether an error was caused by a shortage, and so has nothing to do with the model that was run."""
    return any(_shortage(link, "") is not None for link in _chain(error))


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(word in text for word in words)


@contextmanager
def shortages(doing: str) -> Iterator[None]:
    """Turn an error in the block that is a shortage, or was caused by one, into a BenchError that names it.

    Args:
        doing: What the block does, as the end of "Memory ran out while …".

    Raises:
        BenchError: Exit code 3.
    """
    try:
        yield
    except Exception as error:
        shortage = next(filter(None, (_shortage(link, doing) for link in _chain(error))), None)
        if shortage is None:
            raise
        raise shortage from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _shortage(error: BaseException, doing: str) -> BenchError | None:
    """The shortage that an error reports, in the user's terms; None if it reports none."""
    if is_memory(error):
        return BenchError(f"Memory ran out while {doing}.", "Free some, or choose another device (--device).", MISSING)
    if _says(error, NO_THREAD):
        hint = "Raise the limit of processes and threads (`ulimit -u`, a container's pids), or close other programs."
        return BenchError(f"The system started no further thread while {doing}.", hint, MISSING)
    if _says(error, BUSY):
        hint = "Wait until one is free, or choose another device (--device cuda:N, --device cpu)."
        return BenchError(f"All devices were busy or unavailable while {doing}.", hint, MISSING)
    if _says(error, BROKEN):
        what = f"The device failed while {doing}: {str(error).splitlines()[0]}."
        return BenchError(what, "See `lora-bench doctor`, or choose another device (--device).", MISSING)
    return None
