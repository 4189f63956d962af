"""The methods, found by discovery: every module here that defines `RECIPE` is one. Adding a method is adding a file.

Methods from elsewhere are a file that is included (`--include`), or what an installed package offers in the entry-point
group `lora_bench.methods`. Both run as code. A cell of such a method names the file and its hash (`origin`), so that an
id means one text of the method.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import math
import pkgutil
import re
import reprlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import ExecutionLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType, MappingProxyType, ModuleType
from typing import Any

from pydantic import ValidationError

from lora_bench.cell import Cell
from lora_bench.errors import MISSING, BenchError, unknown
from lora_bench.methods.answers import hold
from lora_bench.methods.recipe import Recipe
from lora_bench.records.files import read_file
from lora_bench.text import clean

GROUP = "lora_bench.methods"

_recipes: dict[str, Recipe] = {}
_origins: dict[str, str] = {}
_broken: dict[str, str] = {}
_files: set[str] = set()  # of methods that are not of this package

RECIPES: Mapping[str, Recipe] = MappingProxyType(_recipes)
BROKEN: Mapping[str, str] = MappingProxyType(_broken)  # methods of packages that could not be loaded, and why


def get(name: str) -> Recipe:
    """The recipe of that name; an error that names the nearest one if there is none."""
    if name in _recipes:
        return _recipes[name]
    if name in _broken:
        hint = "Correct its package, or uninstall it."
        raise BenchError(f"The method '{name}' cannot be loaded: {_broken[name]}.", hint, MISSING)
    error = unknown("method", name, _recipes)
    raise BenchError(error.what, f"{error.hint} A method of your own: --include FILE.")


def origin(name: str) -> str | None:
    """Where a method comes from, `<file>@<12 hex of its SHA-256>`; None for those of this package."""
    return _origins.get(name)


def include(path: Path) -> Recipe:
    """Add the method that a file defines as `RECIPE`; the same file again changes nothing.

    Raises:
        BenchError: the file is not there, fails, defines no recipe, or one that is not complete or whose name is taken.
    """
    try:
        content = read_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BenchError(f"'{path}' cannot be read ({reason}).", "Give --include a Python file.") from None
    source = _named(path, content)
    known = next((name for name, other in _origins.items() if other == source), None)
    if known is not None:
        return _recipes[known]
    if path.suffix != ".py":
        raise BenchError(f"'{path}' is no Python file.", "Give --include a file that ends with .py.")
    module = _executed(path, content, f"lora_bench_included_{source.rpartition('@')[2]}")
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise BenchError(f"'{path}' defines no RECIPE.", "End it with `RECIPE = YourMethod()`, a Recipe.")
    _add(recipe, source, str(path))
    return recipe


def blamed(error: BaseException) -> BenchError | None:
    """The error of a method that is not of this package, in one line; None where none of them had a part in it.

    Such code may raise anything, and SystemExit would end the process as if all were well.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _files:
            hint = "Correct the file; `lora-bench check FILE` tries each part of a method."
            return BenchError(f"'{frame.filename}', {_reason(error, frame.filename)}.", hint)
    return None


def _named(path: Path, content: bytes) -> str:
    return f"{path.name}@{hashlib.sha256(content).hexdigest()[:12]}"


class _Text(ExecutionLoader):
    """Loads a module from the bytes that were hashed: neither from a later text of the file nor from a cached one."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = str(path.absolute()), content

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.content)


def _executed(path: Path, content: bytes, name: str) -> ModuleType:
    """The file as a module."""
    loader = _Text(path, content)
    spec = importlib.util.spec_from_loader(name, loader)
    if spec is None:
        raise BenchError(f"'{path}' is no Python file.", "Give --include a file that ends with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _foreign():
            loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # it is someone else's code: it may raise anything, and call sys.exit
        del sys.modules[name]
        if isinstance(error, _OwnInterruptError):
            error = error.interrupt
        what = f"'{path}' cannot be loaded: {_reason(error, loader.path)}."
        raise BenchError(what, "Correct the file.") from error
    _files.add(loader.path)
    return module


class _OwnInterruptError(Exception):
    """A KeyboardInterrupt that no key and no signal has caused."""

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__("it raised KeyboardInterrupt")
        self.interrupt = interrupt


@contextmanager
def _foreign() -> Iterator[None]:
    """Runs someone else's code: a KeyboardInterrupt of its own is `_OwnInterruptError`, that of a signal stays."""
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


def _reason(error: BaseException, file: str) -> str:
    """An error of the file in one line, with the line of the file that it came from."""
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else (own[-1] if own else None)
    where = "" if line is None else f"line {line}: "
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{where}{type(error).__name__}: {message}"[:200].rstrip(".: ")


def _add(recipe: Recipe, source: str | None, where: str) -> None:
    _require_complete(recipe, where)
    if recipe.name in _recipes:
        raise BenchError(f"'{where}' defines '{recipe.name}', which there is already.", "Give it another name.")
    _recipes[recipe.name] = recipe
    if source is not None:
        _origins[recipe.name] = source
        hold(recipe, lambda function: f"'{where}', line {_line_of(recipe, function)}")


_PARAMETERS = frozenset({"rank", "a", "b", "alpha", "init", "targets"})
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a word", lambda value: isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,100}", value) is not None),
    "title": ("a text", lambda value: isinstance(value, str)),
    "source": ("a text", lambda value: isinstance(value, str)),
    "default_lr": (
        "a positive number",
        lambda value: type(value) in (int, float) and 0 < value < math.inf,
    ),
    "parameters": (
        f"a frozenset of {', '.join(sorted(_PARAMETERS))}",
        lambda value: isinstance(value, set | frozenset) and value <= _PARAMETERS,
    ),
    "defaults": (
        "a mapping of parameters to values",
        lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
    ),
    **dict.fromkeys(
        ("trains_backbone", "subtracts_start", "normalises", "full_width"),
        ("True or False", lambda value: isinstance(value, bool)),
    ),
}


def _require_complete(recipe: Recipe, where: str) -> None:
    """Refuse a recipe that says nonsense of itself, before a plan or a training stumbles over it."""
    for field, (kind, is_sound) in _KINDS.items():
        hint = f"Write {field} as {kind}; see lora_bench/methods/lora.py."
        try:
            value = getattr(recipe, field)
            sound = is_sound(value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an attribute may be a property that fails
            what = f"The RECIPE of '{where}' has no {field}"
            if field in dir(recipe):
                what = f"The {field} of '{where}' cannot be had: {_reason(error, _file_of(recipe))}"
            raise BenchError(f"{what}.", hint) from error
        if not sound:
            line = _line_of(recipe, field)
            raise BenchError(f"'{where}', line {line}: {field} is {reprlib.repr(value)}, not {kind}.", hint)
    settings = {"model": "model", "data": "data", "task": "task", "method": recipe.name}
    try:
        Cell.model_validate(settings | {"lr": recipe.default_lr} | dict(recipe.defaults))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"'{where}', line {_line_of(recipe, 'defaults')}: defaults: {first['loc'][0]}: {first['msg']}."
        raise BenchError(what, "Give each parameter a value that a cell takes.") from None


def _file_of(recipe: Recipe) -> str:
    try:
        return str(Path(inspect.getfile(type(recipe))).absolute())
    except (TypeError, OSError):
        return ""


def _line_of(recipe: Recipe, field: str) -> int:
    """The line of the file where the recipe's class says a field, or where the class begins; 1 if nobody knows."""
    try:
        tree = ast.parse(Path(_file_of(recipe)).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return 1
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == type(recipe).__name__]
    for statement in (each for node in classes for each in node.body):
        names = [statement.name] if isinstance(statement, ast.FunctionDef) else []
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
        if field in names:
            return statement.lineno
    return classes[0].lineno if classes else 1


def _discover() -> None:
    """The recipes of this package."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        recipe = getattr(importlib.import_module(f"{__name__}.{module.name}"), "RECIPE", None)
        if isinstance(recipe, Recipe):
            _add(recipe, None, module.name)


def adopt(points: Iterable[EntryPoint]) -> None:
    """Add the recipes of installed packages; one that cannot be had is kept in `BROKEN` and stops nothing."""
    for point in points:
        try:
            with _foreign():
                found = point.load()
            recipe = getattr(found, "RECIPE", found)
            if not isinstance(recipe, Recipe):
                raise TypeError(f"{point.value} is no Recipe")
            path = Path(_file_of(recipe))
            _add(recipe, _named(path, read_file(path)), point.value)
            _files.add(str(path))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a package that is broken must not take the others with it, nor end the process
            if isinstance(error, _OwnInterruptError):
                error = error.interrupt
            what = error.what if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
            _broken[point.name] = clean(" ".join(what.split()))[:200].rstrip(".: ")


_discover()
adopt(entry_points(group=GROUP))
