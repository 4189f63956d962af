"""The methods, found by discovery: every module here that defines `RECIPE` is one. Adding a method is adding a file.

Methods from elsewhere are a file that is included (`--include`), or what an installed package offers in the entry-point
group `lora_bench.methods`. Both run as code. A cell of such a method names the file and its hash (`origin`), so that an
id means one text of the method.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType

from lora_bench.errors import MISSING, BenchError, unknown
from lora_bench.methods.recipe import Recipe

GROUP = "lora_bench.methods"

_recipes: dict[str, Recipe] = {}
_origins: dict[str, str] = {}
_broken: dict[str, str] = {}

RECIPES: Mapping[str, Recipe] = MappingProxyType(_recipes)
BROKEN: Mapping[str, str] = MappingProxyType(_broken)  # methods of packages that could not be loaded, and why


def get(name: str) -> Recipe:
    """The recipe of that name; an error that names the nearest one if there is none."""
    if name in _recipes:
        return _recipes[name]
    if name in _broken:
        raise BenchError(f"The method '{name}' cannot be loaded: {_broken[name]}.", "Mend its package.", MISSING)
    error = unknown("method", name, _recipes)
    raise BenchError(error.what, f"{error.hint} A method of your own: --include FILE.")


def origin(name: str) -> str | None:
    """Where a method comes from, `<file>@<12 hex of its SHA-256>`; None for those of this package."""
    return _origins.get(name)


def include(path: Path) -> Recipe:
    """Add the method that a file defines as `RECIPE`; the same file again changes nothing.

    Raises:
        BenchError: the file is not there, fails, defines no recipe, or one whose name is taken.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BenchError(f"'{path}' cannot be read ({error.strerror}).", "Give --include a Python file.") from None
    source = _named(path, content)
    known = next((name for name, other in _origins.items() if other == source), None)
    if known is not None:
        return _recipes[known]
    recipe = getattr(_executed(path, f"lora_bench_included_{source.rpartition('@')[2]}"), "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise BenchError(f"'{path}' defines no RECIPE.", "End it with `RECIPE = YourMethod()`, a Recipe.")
    _add(recipe, source, str(path))
    return recipe


def _named(path: Path, content: bytes) -> str:
    return f"{path.name}@{hashlib.sha256(content).hexdigest()[:12]}"


def _executed(path: Path, name: str) -> ModuleType:
    """The file as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BenchError(f"'{path}' is no Python file.", "Give --include a file that ends with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is someone else's code: it may raise anything
        del sys.modules[name]
        raise BenchError(f"'{path}' cannot be loaded: {_reason(error, path)}.", "Mend the file.") from error
    return module


def _reason(error: Exception, path: Path) -> str:
    """An error of the file in one line, with the line of the file that it came from."""
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (own[-1] if own else None)
    where = "" if line is None else f"line {line}: "
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{where}{type(error).__name__}: {message}"[:200].rstrip(".")


def _add(recipe: Recipe, source: str | None, where: str) -> None:
    lacking = [name for name in ("name", "title", "source", "default_lr") if not hasattr(recipe, name)]
    if lacking:
        raise BenchError(f"The RECIPE of '{where}' has no {', '.join(lacking)}.", "See lora_bench/methods/lora.py.")
    if recipe.name in _recipes:
        raise BenchError(f"'{where}' defines '{recipe.name}', which there is already.", "Give it another name.")
    _recipes[recipe.name] = recipe
    if source is not None:
        _origins[recipe.name] = source


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
            found = point.load()
            recipe = getattr(found, "RECIPE", found)
            if not isinstance(recipe, Recipe):
                raise TypeError(f"{point.value} is no Recipe")
            path = Path(inspect.getfile(type(recipe)))
            _add(recipe, _named(path, path.read_bytes()), point.value)
        except Exception as error:  # a package that is broken must not take the others with it
            _broken[point.name] = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")


_discover()
adopt(entry_points(group=GROUP))
