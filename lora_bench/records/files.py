"""The one place where results are written, whole or not at all and flushed to the disk, and read without trust."""

from __future__ import annotations

import io
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = ".tmp"
_UNFINISHED = re.compile(r"\..*\.[0-9a-f]{12}\.tmp", re.DOTALL)  # as `temporary` makes names


def temporary(path: Path) -> Path:
    """A name beside `path` for what is not whole yet."""
    return path.parent / f".{path.name[:64]}.{secrets.token_hex(6)}{MARK}"


def listing(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing if it is not there."""
    try:
        return sorted(folder / name for name in os.listdir(folder))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []


def without_links(folder: Path) -> list[Path]:
    """What is in a folder, sorted, links left out: they are somebody else's, and lead elsewhere."""
    return [path for path in listing(folder) if not path.is_symlink()]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say which file it was: fsync, flock and close do not, and a temporary name tells nobody."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


def write(path: Path, content: bytes) -> None:
    """Write a new file and flush it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view[: 2**30]) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_folder(path: Path) -> bool:
    """Whether there is a folder; no for a name that the system cannot have (too long, no text)."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


@contextmanager
def opened(path: Path, follow: bool = True) -> Iterator[io.FileIO]:
    """A regular file, open for reading. `follow`: also where its name is a link.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is something else; a pipe is not waited for.
    """
    if not follow and path.is_symlink():
        raise ValueError("this is a link, and links are not followed here")
    more = getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    with io.FileIO(path, opener=lambda name, flags: os.open(name, flags | more)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("this is not a regular file")
        yield file


def read_file(path: Path, follow: bool = True, limit: int | None = None, largest: int | None = None) -> bytes:
    """The bytes of a regular file, the first `limit` at most.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else, a link that is not to be followed, or has more than `largest` bytes.
    """
    with naming(path), opened(path, follow) as file:
        if largest is not None and os.fstat(file.fileno()).st_size > largest:
            raise ValueError(f"it has more than {largest:,} bytes")
        return file.readall() if limit is None else file.read(limit)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary file beside it, flushed to the disk, then renamed."""
    unfinished = temporary(path)
    try:
        with naming(path):
            write(unfinished, content)
            os.replace(unfinished, path)  # noqa: PTH105
    except BaseException:
        remove(unfinished)
        raise


def write_folder(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder of files whole or not at all, the files in this order; one of that name is replaced."""
    unfinished = temporary(path)
    try:
        with naming(path):
            for name, content in contents.items():
                write(unfinished / name, content)
            sync(unfinished)
            place(unfinished, path)
            sync(path.parent)
    except BaseException:
        remove(unfinished)
        raise


def place(made: Path, path: Path) -> None:
    """Give a whole file or folder its name; a folder of that name gives way. `sync` the parent to make it last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        aside = temporary(path)
        os.replace(path, aside)  # noqa: PTH105
        os.replace(made, path)  # noqa: PTH105
        remove(aside)
    else:
        os.replace(made, path)  # noqa: PTH105


def sync(folder: Path) -> None:
    """Flush the names in a folder."""
    if os.name == "nt":
        return
    with naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def touch(path: Path) -> None:
    """Set a file's time to now, by the clock of the file system."""
    os.utime(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder and what is in it; nothing if it is not there or cannot be removed."""
    try:
        if path.is_dir() and not path.is_symlink():
            for child in listing(path):
                remove(child)
            os.rmdir(path)  # noqa: PTH106
        else:
            os.unlink(path)  # noqa: PTH108
    except OSError:
        return


def remove_empty(folder: Path) -> None:
    """Remove a folder in which nothing is left; anything else, a link to a folder too, stays."""
    with suppress(OSError):
        os.rmdir(folder)  # noqa: PTH106


def leftovers(folder: Path) -> Iterator[Path]:
    """What killed processes left unfinished in a folder: names that `temporary` makes, and no others."""
    return (path for path in without_links(folder) if _UNFINISHED.fullmatch(path.name))
