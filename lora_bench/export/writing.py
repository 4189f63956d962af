"""A folder that an export fills: it is there completely or not at all. No torch."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from lora_bench.errors import MISSING, USAGE, BenchError, one_line
from lora_bench.records import files

SUFFIX = ".export"  # of the name of a folder that is not complete yet


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `out` if the block succeeds and is removed otherwise.

    The temporary folder of an export that was killed is removed by the next export to the same `out`.

    Raises:
        BenchError: Exit code 2 if `out` is there and not an empty folder, 3 if it cannot be written.
    """
    with _write_errors(out):
        target = Path(os.path.realpath(out))  # `out` may be a link to an empty folder
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BenchError(f"'{out}' exists and is not an empty folder.", "Give --out a new folder.", USAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        temporary = target.parent / f"{_prefix(target)}{secrets.token_hex(6)}{SUFFIX}"
        folder, lock = temporary / "content", _lock(temporary)
        try:
            folder.mkdir(parents=True)
            with suppress(OSError, NotImplementedError):  # without locks, `_remove_abandoned` removes nothing
                lock.acquire(blocking=False)
            yield folder
            for path in (*files.listing(folder), folder):
                files.sync(path)
            if target.exists():
                target.rmdir()
            folder.rename(target)
            files.sync(target.parent)
        finally:
            lock.release()
            files.remove(temporary)


@contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    """Turn an error of writing `out` into a BenchError, whichever library raises it."""
    try:
        yield
    except Exception as error:
        from safetensors import SafetensorError

        # tokenizers raises a bare Exception for errors of the system
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        hint = "Give --out a folder on a disk that has room and may be written."
        raise BenchError(f"'{out}' cannot be written: {reason}.", hint, MISSING) from error


def _prefix(target: Path) -> str:
    """Return the beginning of the names of a target's temporary folders."""
    return f".{target.name[:32]}."


def _lock(temporary: Path) -> FileLock:
    """Return the lock of a process that fills a temporary folder; the system frees it if the process dies."""
    return FileLock(temporary / "lock")


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary folders that killed exports to a target have left beside it."""
    for folder in files.listing(target.parent):
        if folder.name.startswith(_prefix(target)) and folder.name.endswith(SUFFIX) and not folder.is_symlink():
            # It stays where another process still fills it, and where the file system has no locks.
            with suppress(OSError, NotImplementedError), _lock(folder).acquire(blocking=False):
                files.remove(folder)
