"""What a method's functions must return, and the checks that every recipe from outside of this package gets.

A user's recipe may return anything. Its return values are checked where they are returned, so that an error names the
function that is wrong and not the code that failed to use its value.
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

_FLAGS = ("trainable", "shared", "decays")
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


_ANSWERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "factors": (
        "a tuple of Factors, each with a name, positive numbers of rows and cols, and a start",
        lambda value: isinstance(value, tuple | list) and all(map(_is_factor, value)),
    ),
    "update": ("an Update", lambda value: isinstance(value, Update)),
    "trainable": ("a number of values", _is_count),
    "scale": ("a number", _is_number),
    "touches": (f"a tuple of some of {', '.join(sorted(_TOUCHES))}", _are_touches),
    "update_rank": ("a rank or None", lambda value: value is None or _is_count(value)),
    "width": ("a number of rows", _is_count),
    "layout": ("something that can be hashed, like a number or a tuple", lambda value: isinstance(value, Hashable)),
}


def fault(function: str, answer: object) -> str | None:
    """Return what is wrong with a return value, as `FUNCTION returned VALUE, not …`; None if nothing is.

    Args:
        function: The name of the recipe's function.
        answer: What it returned.
    """
    kind, is_sound = _ANSWERS[function]
    try:
        if is_sound(answer):
            return None
        shown = " ".join(reprlib.repr(answer).split())
    except Exception:  # the methods of a user's object may fail too
        shown = f"a {type(answer).__name__}"
    return f"{function} returned {shown}, not {kind}"


def hold(recipe: Recipe, where: Callable[[str], str]) -> None:
    """Make every function of a recipe raise BenchError (exit code 2) for a return value of the wrong kind.

    Args:
        recipe: The recipe. It gets attributes that hide the functions of its class.
        where: Returns the file and line of a function, for the message.
    """
    for function in _ANSWERS:
        vars(recipe)[function] = _with_check(function, getattr(recipe, function), where)


def _with_check(name: str, function: Callable[..., Any], where: Callable[[str], str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*args: Any, **values: Any) -> Any:
        answer = function(*args, **values)
        wrong = fault(name, answer)
        if wrong is not None:
            hint = "Correct the file; `lora-bench check FILE` tries each part of it."
            raise BenchError(f"{where(name)}: {wrong}.", hint)
        return answer

    return checked
