"""Shell completion of names (`lora-bench --install-completion` sets it up).

These functions run in a new process at every press of Tab, so they import the registries of names and no more. typer
itself drops the candidates that do not begin with what was typed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args, get_origin

Candidates = list[tuple[str, str]]  # names, each with a text that some shells show beside it


def task_names() -> Candidates:
    """Return the names of GLUE's tasks and of the tasks of installed packages."""
    from lora_bench import tasks

    return [(task.name, task.title) for task in tasks.TASKS.values()]


def method_names() -> Candidates:
    """Return the names of the methods of this package and of installed packages."""
    from lora_bench import methods

    return [(recipe.name, recipe.title) for recipe in methods.RECIPES.values()]


def method_and_task_names() -> Candidates:
    """Return the names of the methods and of the tasks."""
    return method_names() + task_names()


def preset_names() -> list[str]:
    """Return the names of the presets."""
    from lora_bench.grid.presets import presets

    return list(presets())


def settings() -> list[str]:
    """Return what `--set` takes: `key=value` for settings whose values are words, `key=` for the others."""
    from lora_bench.cell import Cell
    from lora_bench.grid.config import SETTINGS

    candidates: list[str] = []
    for name in SETTINGS:
        annotation = Cell.model_fields[name].annotation
        kinds = (annotation, *get_args(annotation))  # of `Literal["default"] | None` too
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        candidates += [f"{name}={word}" for word in words or [""]]
    return candidates


def precisions() -> list[str]:
    """Return the precisions."""
    from lora_bench.cell import Precision

    return list(get_args(Precision))


def target_sets() -> list[str]:
    """Return the named sets of targets."""
    from lora_bench.forecast.geometry import TARGET_SETS

    return list(TARGET_SETS)


def retried_states() -> list[str]:
    """Return the states whose cells can be trained again."""
    from lora_bench.run.status import RETRY

    return list(RETRY)


def one_of(*names: str) -> Callable[[], list[str]]:
    """Return a completion function for a fixed set of names."""
    return lambda: list(names)
