"""Drafts: the cells of a grid as far as the config alone determines them.

A cell whose rate is searched, or that continues from another cell, is known only after other cells have ended
(`grid.stages`). Its draft is known from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.errors import BenchError
from lora_bench.grid.config import Config
from lora_bench.grid.search import SEARCHABLE, Search
from lora_bench.grid.selection import Overrides, check_size, combinations, select
from lora_bench.models import SAMPLE

if TYPE_CHECKING:
    from lora_bench.data import DataSource
    from lora_bench.data.model_source import ModelSource

TASK_SOURCE = "task"  # the data location that stands for the task's own source, which is the Hub for GLUE
# The fields in which the template of a cell may differ from that of the cell that it continues from. The latter is then
# given the same seed. All other fields are equal, so that what one has trained fits the other, and so that both have
# the same frozen factors, which are drawn from the seed or computed from the model.
_FREE = frozenset(
    {"data", "task", "task_origin", "seed", "start", "select", "lr", "head_lr", "weight_decay", "warmup", "clip"}
    | {"epochs", "batch_size", "max_length"}
)
SAME_AS_START = tuple(name for name in Cell.model_fields if name not in _FREE)


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


@dataclass(frozen=True, eq=False)
class RateSearch:
    """One search: cells of some seeds that differ only in their rates. Equal searches of a config are one object.

    Attributes:
        axes: The searches by setting, of `lr` or `head_lr` or both.
        trials: The cells of the search by seed, with the lowest rates and without their starts.
        starts: The drafts of the cells that they continue from, by seed; empty if they start from the model.
        at: The values of shared settings that are searched in place of others.
    """

    axes: Mapping[str, Search]
    trials: tuple[Cell, ...]
    starts: tuple[Draft, ...]
    at: Mapping[str, int | str]


@dataclass(frozen=True, eq=False)
class Draft:
    """A cell as far as the config determines it. Equal drafts of a config are one object.

    Attributes:
        cell: The cell, with the lowest rates where these are searched, and without its start.
        search: What chooses its rates, if they are searched.
        start: The cell that it continues from, if there is one.
    """

    cell: Cell
    search: RateSearch | None = None
    start: Draft | None = None


@dataclass(frozen=True)
class _Template:
    """A cell of the config without a seed of its own.

    Attributes:
        cell: The cell, with the lowest rates where these are searched, and without its start.
        searches: The searches by setting.
        start: The task that it continues from.
    """

    cell: Cell
    searches: tuple[tuple[str, Search], ...]
    start: str | None


class DraftBuilder:
    """Builds the drafts of a config.

    Args:
        config: The config.
        overrides: The values of the command line by setting.
        sources: Looks up models and data, once for each model and each pair of location and task that the grid needs.
        data: The data folder, if there is one.

    Attributes:
        models: The models of all drafts by their identity.
        data_sources: The data sources of all drafts by task and identity.
    """

    def __init__(self, config: Config, overrides: Overrides, sources: Sources, data: Path | None) -> None:
        self.config, self.overrides, self.data = config, overrides, data
        self.models: dict[str, ModelSource] = {}
        self.data_sources: dict[tuple[str, str], DataSource] = {}
        self._find_model, self._find_data = cache(sources.model), cache(sources.data)
        self._drafts: dict[tuple[_Template, bool], Draft] = {}
        self._interned: dict[tuple[Cell, RateSearch | None, Draft | None], Draft] = {}
        self._searches: dict[tuple[object, ...], RateSearch] = {}
        self._starts: dict[str, dict[tuple[object, ...], dict[_Template, None]]] = {}

    def build(self) -> tuple[Draft, ...]:
        """Return the drafts of the grid, each once, in the config's order.

        Raises:
            BenchError: Exit code 2 if there are too many, if overrides and config do not fit together, if a search has
                seeds of the grid, or if there is not exactly one cell to start from.
        """
        drafts = [self._draft(template) for template in self._templates(self.overrides)]
        return tuple(dict.fromkeys(drafts))

    def _templates(self, overrides: Overrides, partly: bool = False) -> Iterator[_Template]:
        blocks = select(self.config, overrides, partly)
        check_size(blocks)
        for block in blocks:
            for settings in combinations(block):
                yield self._template(settings)

    def _template(self, settings: Mapping[str, object]) -> _Template:
        values, start = dict(settings), settings["start"]
        searches = tuple((name, value) for name in SEARCHABLE if isinstance(value := values[name], Search))
        values |= {name: search.rates[0] for name, search in searches}
        name, task = str(values["model"]), str(values["task"])
        model = self._find_model(name)
        default = SAMPLE if name == SAMPLE and tasks.origin(task) is None else TASK_SOURCE
        source, data_identity = self._find_data(self.data or default, task)
        self.models.setdefault(model.identity, model)
        self.data_sources.setdefault((task, data_identity), source)
        identities = {"model": model.identity, "data": data_identity, "start": None}
        origins = {"origin": methods.origin(str(values["method"])), "task_origin": tasks.origin(task)}
        cell = Cell.model_validate(values | identities | origins)
        return _Template(cell, searches, None if start is None else str(start))

    def _draft(self, template: _Template, path: tuple[str, ...] = (), searched: bool = False) -> Draft:
        """Return the draft of a template, with all that it waits for.

        Args:
            template: The cell.
            path: The tasks of the cells that continue from it, the last one first.
            searched: Whether it belongs to a search: then its seed may be one that chooses rates.
        """
        key = (template, searched)
        if key not in self._drafts:
            search = self._search(template, path) if template.searches else None
            if search is not None and not searched:
                _check_seeds(template)
            start = self._start(template, path, searched)
            # Where nothing is searched, the grid and a search use the same draft.
            draft = Draft(template.cell, search, start)
            self._drafts[key] = self._interned.setdefault((template.cell, search, start), draft)
        return self._drafts[key]

    def _search(self, template: _Template, path: tuple[str, ...]) -> RateSearch:
        """The search for the rates of a cell."""
        axes = dict(template.searches)
        first = next(iter(axes.values()))
        for setting, search in axes.items():
            if (search.seeds, search.share) != (first.seeds, first.share):
                raise BenchError(
                    f"{' and '.join(axes)} are searched together, but {setting} has other `seeds` or `share`.",
                    "Give both searches the same.",
                )
        at = first.searched_at(template.cell)
        changes = {"select": "held-out", **at}
        cells = tuple(template.cell.model_copy(update={**changes, "seed": seed}) for seed in first.seeds)
        key = (cells, template.searches, template.start)
        if key not in self._searches:
            bare = [_Template(cell, (), template.start) for cell in cells]
            starts = [self._start(trial, path, searched=True) for trial in bare]
            self._searches[key] = RateSearch(axes, cells, tuple(start for start in starts if start is not None), at)
        return self._searches[key]

    def _start(self, template: _Template, path: tuple[str, ...], searched: bool) -> Draft | None:
        """The draft of the cell that a cell continues from: the one of that task that fits, with the same seed."""
        if template.start is None:
            return None
        cell, task, path = template.cell, template.start, (template.cell.task, *path)
        if task in path:
            raise BenchError(
                f"start: {' → '.join([*reversed(path), task])}: no cell can continue from itself.",
                "Let one of these tasks start from the model: `start: {rte: mnli}` names a start by task.",
            )
        changes = {"seed": cell.seed, **({"select": "held-out"} if searched else {})}
        fitting = {
            _Template(other.cell.model_copy(update=changes), other.searches, other.start)
            for other in self._by_fit(task).get(_fit(cell), ())
        }
        if len(fitting) != 1:
            raise _no_single_start(cell, task, [other.cell for other in fitting])
        return self._draft(fitting.pop(), path, searched)

    def _by_fit(self, task: str) -> dict[tuple[object, ...], dict[_Template, None]]:
        """The config's cells of a task that others may continue from, by what they must have in common."""
        if task not in self._starts:
            others = {name: values for name, values in self.overrides.items() if name not in ("task", "start", "seed")}
            by_fit: dict[tuple[object, ...], dict[_Template, None]] = {}
            for template in self._templates(others | {"task": [task]}, partly=True):
                by_fit.setdefault(_fit(template.cell), {})[template] = None
            self._starts[task] = by_fit
        return self._starts[task]


def _fit(cell: Cell) -> tuple[object, ...]:
    return tuple(getattr(cell, name) for name in SAME_AS_START)


def _check_seeds(template: _Template) -> None:
    """Refuse a search with the seed of a cell that uses what it chooses: that would flatter the cell."""
    for setting, search in template.searches:
        if template.cell.seed in search.seeds:
            raise BenchError(
                f"{setting}: seed {template.cell.seed} is among the seeds of the search and of the grid.",
                "Search with other seeds: `seeds: [100, 101]` in the search, or --search-seeds.",
            )


def _no_single_start(cell: Cell, task: str, fitting: list[Cell]) -> BenchError:
    """The error where no cell of a task, or more than one, can be continued from."""
    sizes = "".join(f", {name} {value}" for name in ("rank", "a", "b") if (value := getattr(cell, name)) is not None)
    kind = f"{cell.method}{sizes}{f', targets {cell.targets}' if cell.targets else ''}"
    if not fitting:
        return BenchError(
            f"start: {cell.task} continues from {task}, but the config has no cell of {task} with {kind}.",
            f"Give {task} the same method, sizes, targets, alpha and precision, or let {cell.task} start without it.",
        )
    fields = [name for name in Cell.model_fields if len({getattr(other, name) for other in fitting}) > 1]
    return BenchError(
        f"start: {cell.task} continues from {task}, but {len(fitting)} cells of {task} have {kind}.",
        f"They differ in {' and '.join(fields) or 'how their rate is searched'}: give {task} one value there.",
    )
