"""Writes files and folders whole or not at all, flushed to the disk, and reads files without trusting what they are."""

from __future__ import annotations

import io
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

# What changes files goes through `os`, not through methods of Path (hence the `noqa: PTH…`): tests put another `os`
# into this module, which fails or kills the process at any one of these calls.
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{12}\.tmp", re.DOTALL)  # as `temporary` makes names
_PIECE = 2**30  # bytes of one write: some systems take less than 2 GiB


def temporary(path: Path) -> Path:
    """Return a new name beside `path` for a file or folder that is not complete yet."""
    return path.parent / f".{path.name[:64]}.{secrets.token_hex(6)}.tmp"


def listing(folder: Path) -> list[Path]:
    """Return the content of a folder, sorted; nothing if there is no such folder."""
    try:
        return sorted(folder / name for name in os.listdir(folder))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []


def without_links(folder: Path) -> list[Path]:
    """Return the content of a folder, sorted, without links: they lead to somebody else's files."""
    return [path for path in listing(folder) if not path.is_symlink()]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError name this file: those of fsync, flock and close name none, others name a temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


def write(path: Path, content: bytes, make_parent: bool = True) -> None:
    """Write a new file and flush it.

    Args:
        path: The file.
        content: Its content.
        make_parent: Whether its folder is made if needed.

    Raises:
        OSError: It could not be written, or there is one already.
    """
    if make_parent:
        path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view[:_PIECE]) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False for names that no file system can have (too long, with a null)."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


@contextmanager
def opened(path: Path, follow: bool = True) -> Iterator[io.FileIO]:
    """Open a regular file for reading.

    Args:
        path: The file.
        follow: Whether `path` may be a link.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is something else; a pipe is not waited for.
    """
    if not follow and path.is_symlink():
        raise ValueError("this is a link, and links are not followed here")
    # Without O_NONBLOCK, opening a pipe would wait for somebody who writes to it. Windows has neither flag.
    added = getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    with io.FileIO(path, opener=lambda name, flags: os.open(name, flags | added)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("this is not a regular file")
        yield file


def read_file(path: Path, follow: bool = True, limit: int | None = None, largest: int | None = None) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file.
        follow: Whether `path` may be a link.
        limit: The number of bytes to read at most; None for all.
        largest: The number of bytes that the file may have; None for any.

    Raises:
        OSError: It cannot be read.
        ValueError: It is something else, a link that is not to be followed, or too large.
    """
    with naming(path), opened(path, follow) as file:
        if largest is not None and os.fstat(file.fileno()).st_size > largest:
            raise ValueError(f"it has more than {largest:,} bytes")
        return file.readall() if limit is None else file.read(limit)


def write_atomically(path: Path, content: bytes, partial: Path | None = None) -> None:
    """Write a file whole or not at all: to a temporary file, flushed to the disk, then renamed.

    Args:
        path: The file.
        content: Its content.
        partial: The temporary file, in a folder of the same file system that is there; by default one beside `path`.
    """
    make_parent = partial is None
    partial = partial or temporary(path)
    try:
        with naming(path):
            write(partial, content, make_parent)
            os.replace(partial, path)  # noqa: PTH105
    except BaseException:
        remove(partial)
        raise


def write_folder(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder of files whole or not at all, the files in the given order. A folder of its name is replaced."""
    partial = temporary(path)
    try:
        with naming(path):
            for name, content in contents.items():
                write(partial / name, content)
            sync(partial)
            move(partial, path)
            sync(path.parent)
    except BaseException:
        remove(partial)
        raise


def move(source: Path, path: Path) -> None:
    """Give a complete file or folder its final name, and replace what has it; `sync` the parent to make it last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        old = temporary(path)
        os.replace(path, old)  # noqa: PTH105
        try:
            os.replace(source, path)  # noqa: PTH105
        except BaseException:
            os.replace(old, path)  # noqa: PTH105
            raise
        remove(old)
    else:
        os.replace(source, path)  # noqa: PTH105


def sync(folder: Path) -> None:
    """Flush the names in a folder to the disk; Windows has no call for that."""
    if os.name == "nt":
        return
    with naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content. What is not there or cannot be removed is no error."""
    try:
        if path.is_dir() and not path.is_symlink():
            for child in listing(path):
                remove(child)
            os.rmdir(path)  # noqa: PTH106
        else:
            os.unlink(path)  # noqa: PTH108
    except OSError:
        return


def discard(path: Path) -> None:
    """Remove a folder at once: it loses its name first, so that nothing is moved out of it meanwhile.

    Raises:
        OSError: It could not be renamed.
    """
    nameless = temporary(path)
    os.replace(path, nameless)  # noqa: PTH105
    remove(nameless)


def remove_empty(folder: Path) -> None:
    """Remove a folder if it is empty; anything else stays, a link to a folder too."""
    with suppress(OSError):
        os.rmdir(folder)  # noqa: PTH106


def leftovers(folder: Path) -> Iterator[Path]:
    """Return what killed processes left incomplete in a folder: names that `temporary` makes, and no others."""
    return (path for path in without_links(folder) if _TEMPORARY.fullmatch(path.name))
