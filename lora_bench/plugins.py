"""Python code of users: files that are included and modules of installed packages.

It is run, so it may do anything: raise what it likes, call `sys.exit`, or hang on to Ctrl-C. Here it is loaded from the
very bytes that were hashed, named `<file>@<12 hex of its SHA-256>`, and blamed in one line for what fails in it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.abc import ExecutionLoader
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from lora_bench.errors import BenchError
from lora_bench.records.files import read_file
from lora_bench.text import clean


@dataclass(frozen=True)
class Plugin:
    """A file of a user, as it was loaded.

    Attributes:
        path: the file, as the user gave it.
        origin: `<file>@<12 hex of its SHA-256>`, which stands in the cells that depend on it.
        module: the module that it defines.
    """

    path: Path
    origin: str
    module: ModuleType

    @property
    def file(self) -> str:
        """The file's absolute path, by which tracebacks name it."""
        return str(self.path.absolute())


_plugins: dict[tuple[str, str], Plugin] = {}  # by absolute path and origin
_files: set[str] = set()  # absolute paths of the files of users whose code has been loaded


def load_file(path: Path) -> Plugin:
    """Run a Python file; the same text at the same path is run once.

    Raises:
        BenchError: the file is not there, is no Python file, or fails.
    """
    try:
        content = read_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BenchError(f"'{path}' cannot be read ({reason}).", "Give --include a Python file.") from None
    if path.suffix != ".py":
        raise BenchError(f"'{path}' is no Python file.", "Give --include a file that ends with .py.")
    origin = origin_of(path, content)
    key = str(path.absolute()), origin
    if key not in _plugins:
        _plugins[key] = Plugin(path, origin, _execute(path, content, f"lora_bench_included_{origin[-12:]}"))
    return _plugins[key]


def origin_of(path: Path, content: bytes) -> str:
    """What names a file and its text in a cell: `<file>@<12 hex of its SHA-256>`."""
    return f"{path.name}@{hashlib.sha256(content).hexdigest()[:12]}"


@cache
def _all_points() -> Any:
    """The entry points of all installed packages; reading them takes longer than choosing a group."""
    return entry_points()


def points(group: str) -> EntryPoints:
    """The entry points of a group in the installed packages."""
    chosen: EntryPoints = _all_points().select(group=group)
    return chosen


def load_point(point: EntryPoint) -> object:
    """What an entry point names. It may raise anything, which `note_failure` catches."""
    with _without_interrupts():
        return point.load()


def register(path: Path) -> str:
    """Blame this file of an installed package from now on for what fails in it; returns its origin."""
    _files.add(str(path))
    return origin_of(path, read_file(path))


@contextmanager
def restored(*registries: dict[str, Any]) -> Iterator[None]:
    """Put dictionaries back to their present content at the end of the block."""
    before = [dict(registry) for registry in registries]
    try:
        yield
    finally:
        for registry, content in zip(registries, before, strict=True):
            registry.clear()
            registry.update(content)


@contextmanager
def note_failure(name: str, broken: dict[str, str]) -> Iterator[None]:
    """Keep what fails inside the block in `broken`: a broken package must not take the others with it."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a package may also call sys.exit
        if isinstance(error, _OwnInterruptError):
            error = error.interrupt
        what = error.what if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        broken[name] = clean(" ".join(what.split()))[:200].rstrip(".: ")


def blamed(error: BaseException) -> BenchError | None:
    """An error in a user's code as a BenchError of one line; None where no such code had a part in it.

    Such code may raise anything, and SystemExit would end the process as if all were well.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _files:
            hint = "Correct the file; `lora-bench check FILE` tries each part of it."
            return BenchError(f"'{frame.filename}', {reason(error, frame.filename)}.", hint)
    return None


def reason(error: BaseException, file: str) -> str:
    """An error of the file in one line, with the line of the file that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    where = "" if line is None else f"line {line}: "
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{where}{type(error).__name__}: {message}"[:200].rstrip(".: ")


class _Text(ExecutionLoader):
    """Loads a module from the bytes that were hashed: neither from a later text of the file nor from a cached one."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = str(path.absolute()), content

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002 (the signature is given)
        return self.path

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        return importlib.util.decode_source(self.content)


def _execute(path: Path, content: bytes, name: str) -> ModuleType:
    """Run the file as a module of that name."""
    loader = _Text(path, content)
    spec = importlib.util.spec_from_loader(name, loader)
    if spec is None:
        raise BenchError(f"'{path}' is no Python file.", "Give --include a file that ends with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _without_interrupts():
            loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # it is someone else's code: it may raise anything, and call sys.exit
        del sys.modules[name]
        if isinstance(error, _OwnInterruptError):
            error = error.interrupt
        what = f"'{path}' cannot be loaded: {reason(error, loader.path)}."
        raise BenchError(what, "Correct the file.") from error
    _files.add(loader.path)
    return module


class _OwnInterruptError(Exception):
    """A KeyboardInterrupt that no key and no signal has caused."""

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__("it raised KeyboardInterrupt")
        self.interrupt = interrupt


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Runs someone else's code: a KeyboardInterrupt that it raises is `_OwnInterruptError`, that of a signal stays."""
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    watches = callable(before) and threading.current_thread() is threading.main_thread()

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if callable(before):
            before(number, frame)

    if watches:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except KeyboardInterrupt as error:
        if came or not watches:
            raise
        raise _OwnInterruptError(error) from error
    finally:
        if watches and signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)
