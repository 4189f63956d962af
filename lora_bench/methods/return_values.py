"""Checks of what the functions of a recipe return, for recipes from outside of this package.

A user's recipe may return anything. Its return values are checked as soon as they are returned, so that the error names
the function that is wrong and not the code that uses its value.
"""

from __future__ import annotations

import functools
import math
import numbers
import reprlib
from collections.abc import Callable, Hashable
from typing import Any, get_args

from lora_bench.errors import BenchError
from lora_bench.methods.recipe import Factor, Recipe, Start, Touch, Update
from lora_bench.methods.rules import WeightRule

_FLAGS = ("trainable", "shared", "decays", "is_sparse")
_TOUCHES = frozenset(get_args(Touch))


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_factor(value: Any) -> bool:
    return (
        isinstance(value, Factor)
        and isinstance(value.name, str)
        and _is_count(value.rows, 1)
        and _is_count(value.cols, 1)
        and isinstance(value.start, Start)
        and _is_number(value.rate)
        and all(isinstance(getattr(value, flag), bool) for flag in _FLAGS)
    )


def _are_touches(value: Any) -> bool:
    if not isinstance(value, tuple | list | set | frozenset):
        return False
    return all(isinstance(touch, str) and touch in _TOUCHES for touch in value)


def _is_rule(value: Any) -> bool:
    if not isinstance(value, WeightRule):
        return value is None
    projection, layers = value.projection, value.layers
    return (
        (projection is None or (_is_count(projection.rank, 1) and _is_count(projection.gap, 1)))
        and (projection is None or _is_number(projection.scale))
        and (layers is None or (_is_count(layers.count, 1) and _is_count(layers.interval, 1)))
        and _is_number(value.epsilon)
    )


_RETURNS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "factors": (
        "a tuple of Factors, each with a name, positive numbers of rows and cols, and a start",
        lambda value: isinstance(value, tuple | list) and all(map(_is_factor, value)),
    ),
    "update": ("an Update", lambda value: isinstance(value, Update)),
    "trainable": ("a number of values", _is_count),
    "once": ("a number of values", _is_count),
    "compact_bytes": ("a number of bytes", _is_count),
    "scale": ("a number", _is_number),
    "touches": (f"a tuple of some of {', '.join(sorted(_TOUCHES))}", _are_touches),
    "update_rank": ("a rank or None", lambda value: value is None or _is_count(value)),
    "width": ("a number of rows", _is_count),
    "penalty_weight": ("a number", _is_number),
    "remembers": ("True or False", lambda value: isinstance(value, bool)),
    "cut": ("a number of entries", _is_count),
    "meets_budget": ("True or False", lambda value: isinstance(value, bool)),
    "weights": ("a WeightRule with positive counts and sizes, or None", _is_rule),
    "layout": ("something that can be hashed, like a number or a tuple", lambda value: isinstance(value, Hashable)),
}


def fault(function: str, returned: object) -> str | None:
    """Describe what is wrong with a return value, as `FUNCTION returned VALUE, not …`; None for a valid one.

    Args:
        function: The name of the recipe's function.
        returned: Its return value.
    """
    kind, is_sound = _RETURNS[function]
    try:
        if is_sound(returned):
            return None
        shown = " ".join(reprlib.repr(returned).split())
    except Exception:  # the comparison or `repr` of a user's object may fail too
        shown = f"a {type(returned).__name__}"
    return f"{function} returned {shown}, not {kind}"


def check_returns(recipe: Recipe, where: Callable[[str], str]) -> None:
    """Make every function of a recipe raise BenchError (exit code 2) when its return value is of the wrong type.

    Args:
        recipe: The recipe, which gets attributes that replace the methods of its class.
        where: Returns the file and line of a function for the message.
    """
    for function in _RETURNS:
        vars(recipe)[function] = _with_check(function, getattr(recipe, function), where)


def _with_check(name: str, function: Callable[..., Any], where: Callable[[str], str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*args: Any, **values: Any) -> Any:
        returned = function(*args, **values)
        wrong = fault(name, returned)
        if wrong is not None:
            hint = "Correct the file; `lora-bench check FILE` tries each part of it."
            raise BenchError(f"{where(name)}: {wrong}.", hint)
        return returned

    return checked
