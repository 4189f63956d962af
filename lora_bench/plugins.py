"""Loads the Python code of users: included files and modules of installed packages.

That code is executed and may do anything: raise any exception, call `sys.exit`, raise KeyboardInterrupt. It is compiled
from the same bytes that its hash is computed from; its origin is `<file>@<12 hex of its SHA-256>`. Errors in it are
reported in one line that names the file and the line.
"""

from __future__ import annotations

import hashlib
import importlib.util
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.abc import ExecutionLoader
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import FrameType, MappingProxyType, ModuleType
from typing import Any, Generic, TypeVar

from lora_bench.errors import MISSING, BenchError, described, stop_within, unknown
from lora_bench.records.files import read_file
from lora_bench.text import clean

T = TypeVar("T")


class Registry(Generic[T]):
    """The methods or the tasks of this process by name: those of this package, and those of users.

    Args:
        noun: What messages call an entry, such as `method`.

    Attributes:
        entries: The entries, read-only.
        broken: For each entry of an installed package that cannot be loaded, the message; read-only.
    """

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._entries: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._broken: dict[str, str] = {}
        self.entries: Mapping[str, T] = MappingProxyType(self._entries)
        self.broken: Mapping[str, str] = MappingProxyType(self._broken)

    def get(self, name: str) -> T:
        """Return the entry of a name.

        Raises:
            BenchError: Exit code 2 if there is none, with the most similar name; 3 if its package cannot be loaded.
        """
        if name in self._entries:
            return self._entries[name]
        if name in self._broken:
            hint = "Correct its package, or uninstall it."
            raise BenchError(f"The {self._noun} '{name}' cannot be loaded: {self._broken[name]}.", hint, MISSING)
        error = unknown(self._noun, name, self._entries)
        raise BenchError(error.what, f"{error.hint} A {self._noun} of your own: --include FILE.")

    def origin(self, name: str) -> str | None:
        """Return the origin of an entry, `<file>@<12 hex of its SHA-256>`; None for entries of this package."""
        return self._origins.get(name)

    def of_origin(self, origin: str) -> T | None:
        """Return the entry of an origin; None if there is none."""
        return next((self._entries[name] for name, other in self._origins.items() if other == origin), None)

    def put(self, name: str, entry: T, origin: str | None = None) -> None:
        """Add an entry, or replace the one of that name; without an origin it has none."""
        self._entries[name] = entry
        self._origins.pop(name, None)
        if origin is not None:
            self._origins[name] = origin

    def restored(self) -> AbstractContextManager[None]:
        """Restore the present content at the end of the block."""
        return restored(self._entries, self._origins, self._broken)

    def note_failure(self, name: str) -> AbstractContextManager[None]:
        """Catch any exception of the block, and list it in `broken` under this name."""
        return note_failure(name, self._broken)


@dataclass(frozen=True)
class Plugin:
    """A loaded file of a user.

    Attributes:
        path: The file, as the user gave it.
        origin: `<file>@<12 hex of its SHA-256>`, which is part of the cells that depend on it.
        module: The module that it defines.
    """

    path: Path
    origin: str
    module: ModuleType

    @property
    def file(self) -> str:
        """The file's absolute path, as in tracebacks."""
        return str(self.path.absolute())


_plugins: dict[tuple[str, str], Plugin] = {}  # by absolute path and origin
_files: set[str] = set()  # absolute paths of the files of users whose code has been loaded


def load_file(path: Path) -> Plugin:
    """Execute a Python file. The same content at the same path is executed only once.

    Raises:
        BenchError: Exit code 2 if the file does not exist, is not a Python file, or fails.
    """
    try:
        content = read_file(path)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise BenchError(f"'{path}' cannot be read ({cause}).", "Give the path of a Python file.") from None
    if path.suffix != ".py":
        raise BenchError(f"'{path}' is not a Python file.", "Give a file that ends with .py.")
    origin = origin_of(path, content)
    key = str(path.absolute()), origin
    if key not in _plugins:
        _plugins[key] = Plugin(path, origin, _execute(path, content, f"lora_bench_included_{origin[-12:]}"))
    return _plugins[key]


def included() -> list[Plugin]:
    """Return the files that have been executed, in that order."""
    return list(_plugins.values())


def origin_of(path: Path, content: bytes) -> str:
    """Return what names a file and its content in a cell: `<file>@<12 hex of its SHA-256>`."""
    return f"{path.name}@{hashlib.sha256(content).hexdigest()[:12]}"


@cache
def _all_points() -> Any:
    """The entry points of all installed packages, cached because reading them is slow."""
    return entry_points()


def points(group: str) -> EntryPoints:
    """Return the entry points of a group in the installed packages."""
    selected: EntryPoints = _all_points().select(group=group)
    return selected


def load_point(point: EntryPoint) -> object:
    """Import what an entry point names. It may raise anything; call this inside `note_failure`."""
    with _without_interrupts():
        return point.load()


def register(path: Path) -> str:
    """Let `blamed` report errors in this file of an installed package; return the file's origin."""
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
    """Catch any exception of the block and keep its message in `broken`, so that other packages are still loaded.

    Args:
        name: The key of the message: the name of the entry point.
        broken: The messages.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a package may also call sys.exit
        if isinstance(error, _RaisedInterruptError):
            error = error.interrupt
        what = error.what if isinstance(error, BenchError) else described(error)
        broken[name] = clean(" ".join(what.split()))[:200].rstrip(".: ")


def blamed(error: BaseException) -> BenchError | None:
    """Return an exception that passed through a user's code as a BenchError, or None for any other exception.

    SystemExit counts as well: otherwise `sys.exit(0)` in a user's code would end the process successfully.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _files:
            hint = "Correct the file; `lora-bench check FILE` tries each part of it."
            return BenchError(f"'{frame.filename}', {reason(error, frame.filename)}.", hint)
    return None


def reason(error: BaseException, file: str) -> str:
    """Describe an exception in one line, with the line of `file` in which it was raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    where = "" if line is None else f"line {line}: "
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{where}{type(error).__name__}: {message}"[:200].rstrip(".: ")


class _HashedSource(ExecutionLoader):
    """Compiles a module from the bytes that were hashed.

    Python's own loader would read the file again, which may have changed since, or use cached bytecode.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = str(path.absolute()), content

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002 (importlib's signature)
        return self.path

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        return importlib.util.decode_source(self.content)


def _execute(path: Path, content: bytes, name: str) -> ModuleType:
    """Execute the content of a file as a module of that name."""
    loader = _HashedSource(path, content)
    spec = importlib.util.spec_from_loader(name, loader)
    if spec is None:
        raise BenchError(f"'{path}' is not a Python file.", "Give a file that ends with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
        with _without_interrupts():
            loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's code may raise anything, SystemExit included
        del sys.modules[name]
        if isinstance(error, _RaisedInterruptError):
            error = error.interrupt
        what = f"'{path}' cannot be loaded: {reason(error, loader.path)}."
        raise BenchError(what, "Correct the file.") from error
    _files.add(loader.path)
    return module


class _RaisedInterruptError(Exception):
    """Stands for a KeyboardInterrupt that a user's code raised itself, without a signal."""

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__("it raised KeyboardInterrupt")
        self.interrupt = interrupt


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Turn a KeyboardInterrupt that the block raises itself into `_RaisedInterruptError`; one by a signal stays.

    A stop that an import has turned into another error, as compiled modules do, is raised as the stop again. Signal
    handlers run in the main thread only. In other threads every KeyboardInterrupt stays.
    """
    signals: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    handles_signals = in_main_thread and callable(before)
    # A shell starts background jobs with SIGINT ignored: no signal raises anything then.
    is_ignored = in_main_thread and before == signal.SIG_IGN

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if callable(before):
            before(number, frame)

    if handles_signals:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except BaseException as error:
        stop = stop_within(error)
        if stop is not None:
            raise stop from None
        if not isinstance(error, KeyboardInterrupt) or signals or not (handles_signals or is_ignored):
            raise
        raise _RaisedInterruptError(error) from error
    finally:
        if handles_signals and signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)
