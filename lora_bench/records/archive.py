"""The archive: all records of a results folder in one compressed file, to keep or to commit, `DIR/records.jsonl.gz`.

Each line is the content of `cells/<id>.json` with its seal. Lines are in the order of ids, so that the same records
give the same bytes. Where a cell also has a file of its own, that file counts.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_bench.records.files import naming, opened, sync, write_atomically

NAME = "records.jsonl.gz"
MAX_EMPTY_LINES = 1000  # in a row (chosen): a file of nothing else would take long to read
MAX_RECORD_BYTES = 2**26  # chosen: hardly any record has a hundredth of it


def path_of(results: Path) -> Path:
    """Return the file of a results folder's archive."""
    return results / NAME


def stamp(results: Path) -> tuple[int, int, int] | None:
    """Return what changes when the archive is written, its inode, bytes and time; None if there is none."""
    try:
        stat = path_of(results).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def lines(results: Path) -> Iterator[bytes]:
    """Yield the records as they were written, one after the other; none if there is no archive.

    Raises:
        ValueError: The file is cut off or damaged from here on, or a line is too long for a record.
        OSError: It cannot be read.
    """
    path = path_of(results)
    if not path.exists():
        return
    try:
        with naming(path), opened(path) as file, gzip.GzipFile(fileobj=io.BufferedReader(file)) as content:
            if not file.seek(0, io.SEEK_END):
                raise ValueError("the archive is empty")
            file.seek(0)
            empty = 0
            while line := content.readline(MAX_RECORD_BYTES + 1):
                if len(line) > MAX_RECORD_BYTES:
                    raise ValueError(f"a line has more than {MAX_RECORD_BYTES:,} bytes")
                empty = 0 if line.strip() else empty + 1
                if not empty:
                    yield line
                elif empty > MAX_EMPTY_LINES:
                    raise ValueError(f"more than {MAX_EMPTY_LINES:,} lines in a row are empty")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"the archive is damaged ({error})") from None


def write(results: Path, records: Iterable[bytes]) -> Path:
    """Write the archive anew; it is on the disk under its name when this returns.

    Args:
        results: The results folder.
        records: The content of the records' files, in the order of ids.
    """
    path = path_of(results)
    write_atomically(path, gzip.compress(b"".join(records), 9, mtime=0))
    sync(results)
    return path
