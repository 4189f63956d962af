"""The bytes of a data file, read once: what is hashed is what is parsed.

A split may have 1 GiB and 10 million rows, in its file and unpacked; MNLI, the largest of GLUE, has 0.4 GiB as tsv and
0.4 million rows. What is larger is refused before it is read, as is what is no data: pipes, devices, git-lfs pointers.
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


def broken(what: str, hint: str = REDO) -> BenchError:
    """The error for data that cannot be used."""
    return BenchError(what, hint, MISSING)


def too_large(where: str, what: str) -> BenchError:
    """The error for a split beyond the limits; `what` it has of them."""
    hint = "Give a part of it: several times as many rows as MNLI, the largest task of GLUE, would fit."
    return broken(f"{where}: {what}; a split may have {LARGEST // 2**30} GiB and {MOST_ROWS:,} rows.", hint)


def first_line(error: BaseException) -> str:
    """`Kind: message` of an error, cut to one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Turns what readers raise for a truncated or foreign file (Arrow's errors are ValueErrors too) into one line."""
    try:
        yield
    except MemoryError as error:  # Arrow's too
        raise broken(f"'{path}' does not fit into this machine's memory.", "Give a part of it.") from error
    except (OSError, ValueError, KeyError, csv.Error, NotImplementedError) as error:
        raise broken(f"'{path}' cannot be read as {path.suffix[1:]} ({first_line(error)}).") from error


def read_content(path: Path) -> bytes:
    """A data file's bytes. Raises BenchError (code 3) for what cannot be read, is too large, or is no data at all."""
    with unreadable(path):
        size = path.stat().st_size
        if size > LARGEST:
            raise too_large(str(path), f"{size / 2**30:.1f} GiB")
        content = read_file(path)
    if content.startswith(_LFS_POINTER):
        hint = "Run `git lfs pull` where it was cloned, or download the file itself."
        raise broken(f"'{path}' is a git-lfs pointer, not the data.", hint)
    return content
