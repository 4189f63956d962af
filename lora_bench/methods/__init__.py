"""The registry of methods. Every module in this folder that defines `RECIPE` is a method; a new file adds one.

Users add methods with a file (`--include`) or with an installed package that has an entry point in the group
`lora_bench.methods`. Both are executed. A cell of such a method contains the file's name and hash (`origin`), so that
its id stands for one version of the method.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import pkgutil
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from lora_bench import plugins
from lora_bench.cell import Cell
from lora_bench.errors import BenchError
from lora_bench.methods.recipe import PARAMETERS, Kind, Recipe
from lora_bench.methods.return_values import check_returns
from lora_bench.methods.rules import Posterior
from lora_bench.plugins import Plugin, Registry

GROUP = "lora_bench.methods"

_registry = Registry[Recipe]("method")

RECIPES: Mapping[str, Recipe] = _registry.entries
BROKEN: Mapping[str, str] = _registry.broken


def get(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        BenchError: Exit code 2 if there is none, with the most similar name; 3 if its package cannot be loaded.
    """
    return _registry.get(name)


def by_kind() -> dict[Kind, list[Recipe]]:
    """Return the recipes by what they change, in the order of `Kind`; kinds without a method are left out."""
    kinds: dict[Kind, list[Recipe]] = {kind: [] for kind in get_args(Kind)}
    for recipe in RECIPES.values():
        kinds[recipe.kind].append(recipe)
    return {kind: recipes for kind, recipes in kinds.items() if recipes}


def of(cell: Cell) -> Recipe:
    """Return the recipe of a cell's method."""
    return get(cell.method)


def origin(name: str) -> str | None:
    """Return the origin of a method, `<file>@<12 hex of its SHA-256>`; None for methods of this package."""
    return _registry.origin(name)


def include(path: Path) -> Recipe:
    """Add the method that a file defines as `RECIPE`. Including the same file again changes nothing.

    Raises:
        BenchError: Exit code 2 if the file does not exist, fails or defines no recipe, or if the recipe is incomplete
            or its name is taken.
    """
    recipe = add_from(plugins.load_file(path))
    if recipe is None:
        raise BenchError(f"'{path}' defines no RECIPE.", "End it with `RECIPE = YourMethod()`, a Recipe.")
    return recipe


def add_from(plugin: Plugin) -> Recipe | None:
    """Add the method that a loaded file defines as `RECIPE`, and return it; None if the file defines none.

    Raises:
        BenchError: Exit code 2 if `RECIPE` is not a Recipe or is incomplete, or if its name is taken.
    """
    recipe = getattr(plugin.module, "RECIPE", None)
    if recipe is None:
        return None
    if not isinstance(recipe, Recipe):
        what = f"The RECIPE of '{plugin.path}' is not a Recipe."
        raise BenchError(what, "End the file with `RECIPE = YourMethod()`, a Recipe.")
    known = _registry.of_origin(plugin.origin)
    if known is not None:
        return known
    _add(recipe, plugin.origin, str(plugin.path))
    return recipe


def _add(recipe: Recipe, origin: str | None, where: str) -> None:
    """Check a recipe and add it; `where` is what messages call its file."""
    _require_complete(recipe, where)
    if recipe.name in RECIPES:
        raise BenchError(f"'{where}' defines '{recipe.name}', which exists already.", "Give it another name.")
    _registry.put(recipe.name, recipe, origin)
    if origin is not None:
        check_returns(recipe, lambda function: f"'{where}', line {_line_of(recipe, function)}")


@contextmanager
def registered(*recipes: Recipe) -> Iterator[None]:
    """Have these recipes in the registry during a block of a test; at its end the registry is as it was before.

    Methods that are included in the block are removed too, so that a block without recipes keeps tests apart.

    Args:
        recipes: The recipes. They are not checked as those of `include` are, so that contracts can be tried on
            incomplete ones, and they have no origin. One with the name of another method replaces it.
    """
    with _registry.restored():
        for recipe in recipes:
            _registry.put(recipe.name, recipe)
        yield


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a word", lambda value: isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,100}", value) is not None),
    "title": ("a text", lambda value: isinstance(value, str)),
    "source": ("a text", lambda value: isinstance(value, str)),
    "kind": (f"one of {', '.join(get_args(Kind))}", lambda value: value in get_args(Kind)),
    "default_lr": (
        "a positive number",
        lambda value: type(value) in (int, float) and 0 < value < math.inf,
    ),
    "parameters": (
        f"a frozenset of {', '.join(sorted(PARAMETERS))}",
        lambda value: isinstance(value, set | frozenset) and value <= PARAMETERS,
    ),
    "defaults": (
        "a mapping of parameters to values",
        lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
    ),
    "gate": ("the name of a factor, or ''", lambda value: isinstance(value, str)),
    "memory": (
        "a mapping of names to factors",
        lambda value: isinstance(value, Mapping) and all(isinstance(word, str) for word in (*value, *value.values())),
    ),
    **dict.fromkeys(
        (
            "trains_backbone",
            "starts_as_base",
            "subtracts_start",
            "normalises",
            "full_width",
            "penalty_mean",
            "penalty_steps",
        ),
        ("True or False", lambda value: isinstance(value, bool)),
    ),
    "posterior": ("a posterior of methods.rules, or None", lambda value: isinstance(value, Posterior | None)),
}


def _require_complete(recipe: Recipe, where: str) -> None:
    """Refuse a recipe with attributes of the wrong type, before a plan or a training fails because of them."""
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
                what = f"The {field} of '{where}' cannot be read: {plugins.reason(error, _file_of(recipe))}"
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
    """The line where the recipe's class defines a field, or where the class begins; 1 if neither is known."""
    try:
        tree = ast.parse(Path(_file_of(recipe)).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return 1
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == type(recipe).__name__]
    for statement in (statement for node in classes for statement in node.body):
        names = [statement.name] if isinstance(statement, ast.FunctionDef) else []
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
        if field in names:
            return statement.lineno
    return classes[0].lineno if classes else 1


def _discover() -> None:
    """Add the recipes of this package."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        recipe = getattr(importlib.import_module(f"{__name__}.{module.name}"), "RECIPE", None)
        if isinstance(recipe, Recipe):
            _add(recipe, None, module.name)


def add_installed(points: Iterable[EntryPoint]) -> None:
    """Add the recipes of installed packages. Those that cannot be loaded are listed in `BROKEN`."""
    for point in points:
        with _registry.note_failure(point.name):
            loaded = plugins.load_point(point)
            recipe = getattr(loaded, "RECIPE", loaded)
            if not isinstance(recipe, Recipe):
                raise TypeError(f"{point.value} is not a Recipe")
            _add(recipe, plugins.register(Path(_file_of(recipe))), point.value)


_discover()
add_installed(plugins.points(GROUP))
