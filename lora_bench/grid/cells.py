"""Config to cells to packs: which cells a selection asks for, and which of them train together.

`expand` takes a config and the command line's overrides. An override narrows what the config offers: blocks keep the
values that were asked for, and a block that has none of them is dropped. Where no block has any of them, the override
replaces the setting everywhere. A value that ends up in no block while others of its setting do is refused. Task and
method narrow first, so that a value given by task or in one method's block counts only where they are still there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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

TASK_SOURCE = "task"  # the location of data that come from the source that the task names, GLUE's from the Hub
ENOUGH = 4  # a quarter of a pack keeps a device nearly as busy as a whole one
MAX_CELLS = 1_000_000

Overrides = Mapping[str, Sequence[object] | None]
Atom = dict[str, Alternatives]
BlockT = TypeVar("BlockT", dict[str, Values], Atom)
_PARAMETERS = frozenset({"rank", "a", "b", "alpha", "init", "targets"})


@dataclass(frozen=True)
class Sources:
    """How what the user gives as model and data is found.

    Attributes:
        model: From a model's name to the model.
        data: From a location (`hub`, `sample` or a folder) and a task's name to the source and to the identity of the
            task's data in it, which enters the cells.
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
        data: The data sources by task and by the data's identity, as cells name them.
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


def expand(config: Config, overrides: Overrides, sources: Sources, data: str | None = None) -> Grid:
    """Return the config's grid under overrides.

    Args:
        config: The config.
        overrides: The values of the command line by setting.
        sources: How models and data are found: called once for each model, and for each location and task, after
            the config was narrowed.
        data: A folder of data; by default, the sample model has the bundled data, and others have GLUE from the Hub.
    """
    blocks = [_completed(block) for block in select(config, overrides)]
    _guard(blocks)
    models: dict[str, ModelSource] = {}
    data_sources: dict[tuple[str, str], DataSource] = {}
    find_model, find_data = cache(sources.model), cache(sources.data)
    cells: dict[Cell, None] = {}
    for settings in itertools.chain.from_iterable(map(_points, blocks)):
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


def select(config: Config, overrides: Overrides) -> list[Atom]:
    """The config's blocks, cut to one task and one method each and narrowed by the overrides."""
    wanted = {setting: parse_alternatives(setting, list(values)) for setting, values in overrides.items() if values}
    blocks = _narrowed(config.merged(), "task", wanted)
    by_task = [_at_task(block, task) for block in blocks for task in _chosen(block, "task", config)]
    by_task = _narrowed(by_task, "method", wanted)
    atoms = [_at_method(block, method) for block in by_task for method in _chosen(block, "method", config)]
    for setting in SETTINGS:
        if setting not in ("task", "method"):
            atoms = _narrowed(atoms, setting, wanted)
    _refuse_lost(atoms, wanted)
    return atoms


def _narrowed(blocks: list[BlockT], setting: str, overrides: Mapping[str, Alternatives]) -> list[BlockT]:
    """Narrow where some block has some of the values; else override everywhere."""
    wanted = overrides.get(setting)
    if wanted is None:
        return blocks
    kept = []
    for block in blocks:
        values = tuple(value for value in block.get(setting, wanted) if value in wanted)
        kept.append({**block, setting: values})
    if not any(setting in block and new[setting] for block, new in zip(blocks, kept, strict=True)):
        return [{**block, setting: wanted} for block in blocks]
    return [block for block in kept if block[setting]]


def _refuse_lost(atoms: Sequence[Atom], overrides: Mapping[str, Alternatives]) -> None:
    """An error if a value that was asked for is in no block, while others of its setting are."""
    for setting, wanted in overrides.items():
        lacking = [atom for atom in atoms if setting in _PARAMETERS - methods.get(str(atom["method"][0])).parameters]
        offered = {value for atom in atoms if atom not in lacking for value in atom[setting]}
        lost = [value for value in wanted if value not in offered]
        if lost and offered:
            found = [value for value in wanted if value in offered]
            raise BenchError(
                f"{setting}: the config has {_listed(found)} here, but not {_listed(lost)}.",
                "Leave them out, or give only values that it does not have: those replace its own.",
            )


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _chosen(block: Mapping[str, Values], setting: str, config: Config) -> tuple[str, ...]:
    values = block.get(setting)
    if not values:
        raise BenchError(
            f"{config.name}: no {setting} is chosen.", f"Give --{setting}, or write `{setting}:` in the config."
        )
    return tuple(str(value) for value in values)


def _at_task(block: Mapping[str, Values], task: str) -> Atom:
    """The block for one task: what is given by task is looked up, what is not given for it is left out."""
    at: Atom = {}
    for setting, values in block.items():
        found = values if isinstance(values, tuple) else values.get(task, values.get(DEFAULT))
        if found is not None:
            at[setting] = found
    return at | {"task": (task,)}


def _at_method(block: Atom, method: str) -> Atom:
    """The block for one method, without the parameters that the method lacks."""
    lacking = _PARAMETERS - methods.get(method).parameters
    return {key: values for key, values in block.items() if key not in lacking} | {"method": (method,)}


def _completed(atom: Atom) -> Atom:
    """Every setting of the method, with the method's or the cell's default where the block is silent or says null."""
    recipe = methods.get(str(atom["method"][0]))
    defaults = {name: field.default for name, field in Cell.model_fields.items()}
    defaults |= {"model": DEFAULT_MODEL, "lr": recipe.default_lr, **recipe.defaults}
    completed: Atom = {}
    for setting in SETTINGS:
        if setting in recipe.parameters or setting not in _PARAMETERS:
            values = atom.get(setting, (None,))
            completed[setting] = tuple(defaults[setting] if value is None else value for value in values)
    return completed


def _guard(blocks: list[Atom]) -> None:
    size = sum(math.prod(len(values) for values in block.values()) for block in blocks)
    if size > MAX_CELLS:
        raise BenchError(
            f"This grid has {size:,} cells; the most is {MAX_CELLS:,}.", "Narrow it: fewer values a setting."
        )


def _points(block: Atom) -> Iterator[dict[str, object]]:
    for values in itertools.product(*block.values()):
        yield dict(zip(block, values, strict=True))


def packs(cells: Iterable[Cell], limit: Callable[[Cell], int]) -> list[tuple[Cell, ...]]:
    """The cells in groups of at most `limit` that share batches, of even sizes; in each, similar ranks stand together.

    A method that trains the backbone shares nothing: its packs are packs of one. Those whose factors are as large as
    the weights keep to themselves, as all cells of a pack have the room of the widest; so do cells with other targets,
    and those with gains or shifts, where there are enough cells. Groups come in the cells' order; what is in a pack
    does not depend on it.
    """
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        recipe = methods.of(cell)
        alone = (cell.id,) if recipe.trains_backbone else (recipe.full_width,)
        groups.setdefault(cell.shares_batches() + alone, []).append(cell)
    found = []
    for group in groups.values():
        most = limit(min(group, key=lambda cell: cell.id))
        for part in _alike(group, most / ENOUGH):
            part.sort(key=lambda cell: (cell.rank or 0, cell.method, cell.targets or "", cell.id))
            count = math.ceil(len(part) / most)
            cuts = [round(index * len(part) / count) for index in range(count + 1)]
            found += [tuple(part[start:end]) for start, end in itertools.pairwise(cuts)]
    return found


def _alike(cells: Sequence[Cell], enough: float) -> list[list[Cell]]:
    """The cells in parts that cost one another little: those that touch outputs one by one apart from many others."""
    touching = [cell for cell in cells if methods.of(cell).touches(Shape(1, 1))]
    others = [cell for cell in cells if cell not in set(touching)]
    parts = [others, touching] if touching and len(others) >= enough else [cells]
    return [each for part in parts for each in _by_targets(part, enough)]


def _by_targets(cells: Iterable[Cell], enough: float) -> list[list[Cell]]:
    """The cells by what they adapt: a pack does the work of its widest targets for all. Few ones join the others."""
    parts: dict[str, list[Cell]] = {}
    for cell in cells:
        parts.setdefault(cell.targets or "", []).append(cell)
    large = [parts[targets] for targets in sorted(parts) if targets and len(parts[targets]) >= enough]
    small = [cell for part in parts.values() if part not in large for cell in part]
    return [large[0] + small, *large[1:]] if large else [small]
