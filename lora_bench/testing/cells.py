"""Small cells of any method."""

from __future__ import annotations

from typing import Any

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.errors import BenchError
from lora_bench.methods.recipe import PARAMETERS, Shape

# Different from each other and from the widths of the tiny encoders, so that a swapped dimension shows.
SIZES: dict[str, int | float | str] = {"rank": 4, "a": 9, "b": 6, "alpha": 8.0, "targets": "attention"}
SHAPES = (Shape(32, 32), Shape(48, 32), Shape(32, 48))  # weights of the tiny encoders


def make_cell(method: str = "lora", **settings: Any) -> Cell:
    """Return a small cell of a method.

    Args:
        method: The name of the method.
        settings: Fields of `Cell` that replace the defaults. Parameters (`rank`, `a`, `b`, `alpha`, `init`, `targets`)
            that the method does not have are left out, so that one call serves all methods. Where the method refuses
            a size, because it divides something evenly, a size near it that the method accepts is taken instead.
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
    given = {name: value for name, value in settings.items() if name in parameters or name not in PARAMETERS}
    cell = Cell(**base | parameters | given, method=method)
    return cell if _is_accepted(cell) else _with_even_sizes(cell)


def _is_accepted(cell: Cell) -> bool:
    """Return whether the method accepts the cell's sizes."""
    recipe = methods.of(cell)
    try:
        for shape in SHAPES if recipe.adapts else ():
            recipe.factors(cell, shape)
    except BenchError:
        return False
    return True


def _with_even_sizes(cell: Cell) -> Cell:
    """Return the cell with other sizes, for a method that divides weights, or weights and rank, evenly.

    a and b are rounded down to powers of two, at most 16, which divide the sides of all weights of the tiny encoders.
    The rank is multiplied by a: then a divides it, and cells of different ranks or different a still differ in size.
    """
    sizes = {name: 2 ** min(4, size.bit_length() - 1) for name in ("a", "b") if (size := getattr(cell, name))}
    if cell.rank:
        sizes["rank"] = cell.rank * sizes.get("a", 1)
    return cell.model_copy(update=sizes)
