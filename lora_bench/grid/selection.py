"""The blocks of a config that a command selects: narrowed or overridden by its options, split by task and method.

An override narrows the config: blocks keep those of their values that the override names, and a block without any of
them is dropped. If no block has any of them, the override replaces the setting in all blocks. An override is refused if
only a part of its values is in the config. Overrides of tasks and methods are applied first, so that values that the
config gives for one task or one method count only if that task or method is selected.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.errors import BenchError
from lora_bench.grid.config import DEFAULT, SETTINGS, Alternatives, Config, Values, parse_alternatives
from lora_bench.grid.search import Search
from lora_bench.methods.recipe import PARAMETERS
from lora_bench.models import DEFAULT_MODEL

MAX_CELLS = 1_000_000

Overrides = Mapping[str, Sequence[object] | None]
SingleBlock = dict[str, Alternatives]  # a block of one task and one method
BlockT = TypeVar("BlockT", dict[str, Values], SingleBlock)


def select(config: Config, overrides: Overrides, partly: bool = False) -> list[SingleBlock]:
    """Return the config's blocks with all of their settings, split by task and method and narrowed by the overrides.

    Args:
        config: The config.
        overrides: The values of the command line by setting.
        partly: Whether the config may have only a part of the values of an override.

    Raises:
        BenchError: Exit code 2 if overrides and config do not fit together.
    """
    narrowing = {setting: parse_alternatives(setting, list(values)) for setting, values in overrides.items() if values}
    merged = _narrow(config.merged(), "task", narrowing)
    by_task = [_for_task(block, task) for block in merged for task in _names(block, "task", config)]
    by_task = _narrow(by_task, "method", narrowing)
    blocks = [_for_method(block, method) for block in by_task for method in _names(block, "method", config)]
    for setting in SETTINGS:
        if setting not in ("task", "method"):
            blocks = _narrow(blocks, setting, narrowing)
    if not partly:
        _check_all_offered(blocks, narrowing)
    return [_with_defaults(block) for block in blocks]


def _narrow(blocks: list[BlockT], setting: str, overrides: Mapping[str, Alternatives]) -> list[BlockT]:
    """Narrow a setting to the override's values if a block has any of them; otherwise set it in all blocks."""
    override = overrides.get(setting)
    if override is None:
        return blocks
    narrowed = []
    for block in blocks:
        values = tuple(value for value in block.get(setting, override) if value in override)
        narrowed.append({**block, setting: values})
    if not any(setting in block and new[setting] for block, new in zip(blocks, narrowed, strict=True)):
        return [{**block, setting: override} for block in blocks]
    return [block for block in narrowed if block[setting]]


def _check_all_offered(blocks: Sequence[SingleBlock], overrides: Mapping[str, Alternatives]) -> None:
    """Refuse an override of which only a part of the values is in the narrowed blocks."""
    for setting, override in overrides.items():
        values = {
            value for block in blocks if setting not in _parameters_lacking(_method(block)) for value in block[setting]
        }
        missing = [value for value in override if value not in values]
        if missing and values:
            present = [value for value in override if value in values]
            raise BenchError(
                f"{setting}: the config has {_listed(present)} here, but not {_listed(missing)}.",
                "Leave them out, or give only values that it does not have: those replace its own.",
            )


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _method(block: SingleBlock) -> str:
    return str(block["method"][0])


def _parameters_lacking(method: str) -> frozenset[str]:
    """The parameters of other methods that this method does not have."""
    return PARAMETERS - methods.get(method).parameters


def _names(block: Mapping[str, Values], setting: str, config: Config) -> tuple[str, ...]:
    """The block's tasks or methods, of which it must have one."""
    values = block.get(setting)
    if not values:
        raise BenchError(
            f"{config.name}: no {setting} is chosen.", f"Give --{setting}, or write `{setting}:` in the config."
        )
    return tuple(str(value) for value in values)


def _for_task(block: Mapping[str, Values], task: str) -> SingleBlock:
    """The block for one task, with the values of that task where the config gives them by task."""
    single: SingleBlock = {}
    for setting, values in block.items():
        alternatives = values if isinstance(values, tuple) else values.get(task, values.get(DEFAULT))
        if alternatives is not None:
            single[setting] = alternatives
    return single | {"task": (task,)}


def _for_method(block: SingleBlock, method: str) -> SingleBlock:
    """The block for one method, without the parameters that the method does not have."""
    lacking = _parameters_lacking(method)
    return {key: values for key, values in block.items() if key not in lacking} | {"method": (method,)}


def default_settings(method: str) -> dict[str, Any]:
    """Return the values of a method's settings where nothing else is given: the method's own, or those of cells."""
    recipe = methods.get(method)
    defaults: dict[str, Any] = {name: field.default for name, field in Cell.model_fields.items()}
    defaults |= {"model": DEFAULT_MODEL, "lr": recipe.default_lr, **recipe.defaults}
    lacking = _parameters_lacking(method)
    return {setting: defaults[setting] for setting in SETTINGS if setting not in lacking}


def _with_defaults(block: SingleBlock) -> SingleBlock:
    """The block with all settings of its method: the default for a missing or null value."""
    completed: SingleBlock = {}
    for setting, default in default_settings(_method(block)).items():
        values = block.get(setting, (None,))
        completed[setting] = tuple(default if value is None else value for value in values)
    return completed


def check_size(blocks: list[SingleBlock]) -> None:
    """Refuse a grid that is too large before its cells are built, those of searches included.

    Raises:
        BenchError: Exit code 2.
    """
    size = sum(map(_size, blocks))
    if size > MAX_CELLS:
        raise BenchError(
            f"This grid has {size:,} cells; the most is {MAX_CELLS:,}.", "Narrow it: fewer values a setting."
        )


def _size(block: SingleBlock) -> int:
    """How many cells a block has at most. A search has its own seeds in place of the block's."""
    searches = [value for values in block.values() for value in values if isinstance(value, Search)]
    trials = sum(len(search.rates) * len(search.seeds) for search in searches)
    settings = math.prod(len(values) for setting, values in block.items() if setting != "seed")
    return settings * (len(block["seed"]) + trials)


def combinations(block: SingleBlock) -> Iterator[dict[str, object]]:
    """Every combination of the block's values."""
    for values in itertools.product(*block.values()):
        yield dict(zip(block, values, strict=True))
