"""Small cells of any method."""

from __future__ import annotations

from typing import Any

from lora_bench import methods
from lora_bench.cell import Cell

# Different from each other and from the widths of the tiny encoders, so that a swapped dimension shows.
SIZES: dict[str, int | float | str] = {"rank": 4, "a": 9, "b": 6, "alpha": 8.0, "targets": "attention"}


def make_cell(method: str = "lora", **settings: Any) -> Cell:
    """A small cell of a method.

    Args:
        method: The name of the method.
        settings: Fields of `Cell` that replace the defaults. Of a method's parameters (`rank`, `a`, `b`, `alpha`,
            `init`, `targets`) those that this method does not have are left out, so that one call serves all methods.
    """
    recipe = methods.get(method)
    parameters = {name: SIZES.get(name, recipe.defaults.get(name)) for name in recipe.parameters}
    base: dict[str, Any] = {
        "model": "tiny",
        "data": "made-up",
        "task": "sst2",
        "seed": 3,
        "lr": 1e-2,
        "head_lr": 6e-2,
        "epochs": 2,
        "batch_size": 8,
        "max_length": 32,
        "select": "last",
        "precision": "float64",
    }
    given = {name: value for name, value in settings.items() if name in parameters or name not in {*SIZES, "init"}}
    return Cell(**base | parameters | given, method=method)
