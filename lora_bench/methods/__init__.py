"""The methods, found by discovery: every module here that defines `RECIPE` is one. Adding a method is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from lora_bench.errors import unknown
from lora_bench.methods.recipe import Recipe


def _discover() -> dict[str, Recipe]:
    found: dict[str, Recipe] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        recipe = getattr(importlib.import_module(f"{__name__}.{module.name}"), "RECIPE", None)
        if isinstance(recipe, Recipe):
            found[recipe.name] = recipe
    return found


RECIPES: Mapping[str, Recipe] = MappingProxyType(_discover())


def get(name: str) -> Recipe:
    """The recipe of that name; an error that names the nearest one if there is none."""
    if name not in RECIPES:
        raise unknown("method", name, RECIPES)
    return RECIPES[name]
