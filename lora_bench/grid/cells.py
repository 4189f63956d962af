"""From a config to the cells of a grid, and from cells to packs.

`expand` takes a config and the overrides of the command line. An override narrows the config: blocks keep those of
their values that the override names, and a block without any of them is dropped. If no block has any of them, the
override replaces the setting in all blocks. An override is refused if only a part of its values is in the config.
Overrides of tasks and methods are applied first, so that values that the config gives for one task or one method count
only if that task or method is selected.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.errors import BenchError
from lora_bench.grid.config import DEFAULT, SETTINGS, Alternatives, Config, Values, parse_alternatives
from lora_bench.methods.recipe import Shape
from lora_bench.models import DEFAULT_MODEL, SAMPLE

if TYPE_CHECKING:
    from lora_bench.data import DataSource
    from lora_bench.data.model_source import ModelSource

TASK_SOURCE = "task"  # the data location that stands for the task's own source, which is the Hub for GLUE
MIN_FILL = 0.25  # chosen: a pack that is filled by a quarter keeps a device nearly as busy as a full one
MAX_CELLS = 1_000_000

Overrides = Mapping[str, Sequence[object] | None]
SingleBlock = dict[str, Alternatives]  # a block of one task and one method
BlockT = TypeVar("BlockT", dict[str, Values], SingleBlock)
_PARAMETERS = frozenset({"rank", "a", "b", "alpha", "init", "targets"})


@dataclass(frozen=True)
class Sources:
    """The functions that look up the models and data that a user names.

    Attributes:
        model: Returns the model of a name.
        data: Returns the source for a location (`task`, `sample` or a folder) and the name of a task, and the identity
            of the task's data there, which becomes part of the cells.
    """

    model: Callable[[str], ModelSource]
    data: Callable[[str, str], tuple[DataSource, str]]


@dataclass(frozen=True)
class Grid:
    """The cells of a selection, and where their models and data come from.

    Attributes:
        name: The name of the config.
        cells: The cells, each once, in the config's order.
        models: The models by their identity, as cells name them.
        data: The data sources by task and identity, as cells name them.
        notes: What deviates from the paper, by task.
    """

    name: str
    cells: tuple[Cell, ...]
    models: Mapping[str, ModelSource]
    data: Mapping[tuple[str, str], DataSource]
    notes: Mapping[str, tuple[str, ...]]

    def model_source(self, cell: Cell) -> ModelSource:
        """Return the cell's model."""
        return self.models[cell.model]

    def data_source(self, cell: Cell) -> DataSource:
        """Return where the cell's data come from."""
        return self.data[cell.task, cell.data]

    def notes_for(self, cell: Cell) -> tuple[str, ...]:
        """Return what deviates from the paper in this cell."""
        return self.notes[cell.task]


def expand(config: Config, overrides: Overrides, sources: Sources, data: Path | None = None) -> Grid:
    """Return the config's grid under overrides.

    Args:
        config: The config.
        overrides: The values of the command line by setting.
        sources: Looks up models and data, once for each model and each pair of location and task that the grid needs.
        data: The data folder. By default the sample model has the bundled data for GLUE's tasks; everything else
            comes from the source of the task.

    Raises:
        BenchError: Exit code 2 if the grid has too many cells, or if overrides and config do not fit together.
    """
    blocks = [_with_defaults(block) for block in select(config, overrides)]
    _check_size(blocks)
    models: dict[str, ModelSource] = {}
    data_sources: dict[tuple[str, str], DataSource] = {}
    find_model, find_data = cache(sources.model), cache(sources.data)
    cells: dict[Cell, None] = {}
    for settings in itertools.chain.from_iterable(map(_combinations, blocks)):
        name, task = str(settings["model"]), str(settings["task"])
        model = find_model(name)
        default = SAMPLE if name == SAMPLE and tasks.origin(task) is None else TASK_SOURCE
        source, data_identity = find_data(data or default, task)
        models.setdefault(model.identity, model)
        data_sources.setdefault((task, data_identity), source)
        identities = {"model": model.identity, "data": data_identity}
        origins = {"origin": methods.origin(str(settings["method"])), "task_origin": tasks.origin(task)}
        cells.setdefault(Cell.model_validate(settings | identities | origins))
    notes = {cell.task: config.notes_for(cell.task) for cell in cells}
    return Grid(config.name, tuple(cells), models, data_sources, notes)


def select(config: Config, overrides: Overrides) -> list[SingleBlock]:
    """Return the config's blocks, split by task and method and narrowed by the overrides."""
    narrowing = {setting: parse_alternatives(setting, list(values)) for setting, values in overrides.items() if values}
    merged = _narrow(config.merged(), "task", narrowing)
    by_task = [_for_task(block, task) for block in merged for task in _names(block, "task", config)]
    by_task = _narrow(by_task, "method", narrowing)
    blocks = [_for_method(block, method) for block in by_task for method in _names(block, "method", config)]
    for setting in SETTINGS:
        if setting not in ("task", "method"):
            blocks = _narrow(blocks, setting, narrowing)
    _check_all_offered(blocks, narrowing)
    return blocks


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
    return _PARAMETERS - methods.get(method).parameters


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


def _with_defaults(block: SingleBlock) -> SingleBlock:
    """The block with all settings of its method: the method's or the cell's default for a missing or null value."""
    recipe = methods.get(_method(block))
    defaults = {name: field.default for name, field in Cell.model_fields.items()}
    defaults |= {"model": DEFAULT_MODEL, "lr": recipe.default_lr, **recipe.defaults}
    completed: SingleBlock = {}
    for setting in SETTINGS:
        if setting in recipe.parameters or setting not in _PARAMETERS:
            values = block.get(setting, (None,))
            completed[setting] = tuple(defaults[setting] if value is None else value for value in values)
    return completed


def _check_size(blocks: list[SingleBlock]) -> None:
    """Refuse a grid that is too large before its cells are built."""
    size = sum(math.prod(len(values) for values in block.values()) for block in blocks)
    if size > MAX_CELLS:
        raise BenchError(
            f"This grid has {size:,} cells; the most is {MAX_CELLS:,}.", "Narrow it: fewer values a setting."
        )


def _combinations(block: SingleBlock) -> Iterator[dict[str, object]]:
    """Every combination of the block's values."""
    for values in itertools.product(*block.values()):
        yield dict(zip(block, values, strict=True))


def packs(cells: Iterable[Cell], limit: Callable[[Cell], int]) -> list[tuple[Cell, ...]]:
    """Return the cells in packs of even sizes, whose cells share their batches.

    Within a pack, cells are sorted by rank. Apart from other cells are packed:

    - each cell of a method that trains the backbone, since it shares nothing: its pack is a pack of one;
    - methods with factors as large as the weights, since all cells of a pack get as much memory as its largest cell;
    - where there are enough of them, cells with other targets, and cells with gains or shifts.

    Packs are in the order of their first cells, and what is in a pack does not depend on the order of the cells.

    Args:
        cells: The cells; duplicates are dropped.
        limit: Returns the largest size of a pack for a cell in it.
    """
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        recipe = methods.of(cell)
        kind = (cell.id,) if recipe.trains_backbone else (recipe.full_width,)
        groups.setdefault(cell.shares_batches() + kind, []).append(cell)
    result = []
    for group in groups.values():
        largest = limit(min(group, key=lambda cell: cell.id))
        for part in _split_unlike(group, largest * MIN_FILL):
            part.sort(key=lambda cell: (cell.rank or 0, cell.method, cell.targets or "", cell.id))
            count = math.ceil(len(part) / largest)
            bounds = [round(index * len(part) / count) for index in range(count + 1)]
            result += [tuple(part[start:end]) for start, end in itertools.pairwise(bounds)]
    return result


def _split_unlike(cells: Sequence[Cell], min_size: float) -> list[list[Cell]]:
    """Split cells that would make one another slower in a pack: those with gains or shifts from many others."""
    touching = [cell for cell in cells if methods.of(cell).touches(Shape(1, 1))]
    others = [cell for cell in cells if cell not in set(touching)]
    parts = [others, touching] if touching and len(others) >= min_size else [cells]
    return [group for part in parts for group in _split_by_targets(part, min_size)]


def _split_by_targets(cells: Iterable[Cell], min_size: float) -> list[list[Cell]]:
    """Split cells by their targets, since a pack computes the targets of all its cells for each of them.

    Groups smaller than `min_size` join the first large one.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.targets or "", []).append(cell)
    large = [groups[targets] for targets in sorted(groups) if targets and len(groups[targets]) >= min_size]
    small = [cell for group in groups.values() if group not in large for cell in group]
    return [large[0] + small, *large[1:]] if large else [small]
