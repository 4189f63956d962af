"""Reads the bytes of data files, each once, so that the bytes that are hashed are those that are parsed.

A split may have 1 GiB, in files and unpacked, and 10 million rows; MNLI, the largest GLUE task, has 0.4 GiB as tsv and
0.4 million rows. Larger files are refused before they are read, as are pipes, devices and git-lfs pointers.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_bench.errors import MISSING, BenchError
from lora_bench.records.files import read_file

LARGEST = 2**30  # bytes of a split
MOST_ROWS = 10_000_000
REDO = "Export or download the file again."
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def data_error(what: str, hint: str = REDO) -> BenchError:
    """Return the error for data that cannot be used."""
    return BenchError(what, hint, MISSING)


def too_large(where: str, what: str) -> BenchError:
    """Return the error for a split beyond the limits; `what` is its size, as in `3.2 GiB`."""
    hint = "Give a part of it: several times as many rows as MNLI, the largest task of GLUE, would fit."
    return data_error(f"{where}: {what}; a split may have {LARGEST // 2**30} GiB and {MOST_ROWS:,} rows.", hint)


def first_line(error: BaseException) -> str:
    """Return `Type: message` of an exception with the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextmanager
def reader_errors(path: Path) -> Iterator[None]:
    """Turn exceptions of the readers for truncated or foreign files into BenchErrors (exit code 3).

    Arrow's exceptions are subclasses of ValueError and MemoryError.
    """
    try:
        yield
    except MemoryError as error:
        raise data_error(f"'{path}' does not fit into this machine's memory.", "Give a part of it.") from error
    except (OSError, ValueError, KeyError, csv.Error, NotImplementedError) as error:
        raise data_error(f"'{path}' cannot be read as {path.suffix[1:]} ({first_line(error)}).") from error


def read_content(path: Path) -> bytes:
    """Return the bytes of a data file.

    Raises:
        BenchError: Exit code 3 if it cannot be read, is too large, or is a git-lfs pointer.
    """
    with reader_errors(path):
        size = path.stat().st_size
        if size > LARGEST:
            raise too_large(str(path), f"{size / 2**30:.1f} GiB")
        content = read_file(path)
    if content.startswith(_LFS_POINTER):
        hint = "Run `git lfs pull` where it was cloned, or download the file itself."
        raise data_error(f"'{path}' is a git-lfs pointer, not the data.", hint)
    return content
