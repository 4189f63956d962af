"""From a config to the cells of a grid, and from cells to packs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.grid.config import Config
from lora_bench.grid.drafts import TASK_SOURCE as TASK_SOURCE
from lora_bench.grid.drafts import DraftBuilder
from lora_bench.grid.drafts import Sources as Sources
from lora_bench.grid.selection import Overrides as Overrides
from lora_bench.grid.stages import Entry, Resolver
from lora_bench.methods.recipe import Shape
from lora_bench.records.schema import Record

if TYPE_CHECKING:
    from lora_bench.data import DataSource
    from lora_bench.data.model_source import ModelSource

MIN_FILL = 0.25  # chosen: a pack that is filled by a quarter keeps a device nearly as busy as a full one


@dataclass(frozen=True)
class Grid:
    """The cells of a selection as far as they are known, and where their models and data come from.

    Attributes:
        name: The name of the config.
        entries: What is known of the cells of the grid and of all that they need; see `grid.stages`.
        models: The models by their identity, as cells name them.
        data: The data sources by task and identity, as cells name them.
        notes: What deviates from the paper, by task.
        resolver: What decides the entries.
    """

    name: str
    entries: tuple[Entry, ...]
    models: Mapping[str, ModelSource]
    data: Mapping[tuple[str, str], DataSource]
    notes: Mapping[str, tuple[str, ...]]
    resolver: Resolver

    @cached_property
    def entry_of(self) -> dict[str, Entry]:
        """The entries with a known cell, by the cell's id, in the config's order; a cell comes after what it waits for.

        Of several entries with one cell the first of the grid counts, else the first of a search.
        """
        entries: dict[str, Entry] = {}
        for role in ("grid", "trial", "start"):
            for entry in self.entries:
                if entry.cell is not None and entry.role == role:
                    entries.setdefault(entry.cell.id, entry)
        order = dict.fromkeys(entry.cell.id for entry in self.entries if entry.cell is not None)
        return {cell_id: entries[cell_id] for cell_id in order}

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that are known, each once."""
        return tuple(entry.cell for entry in self.entry_of.values() if entry.cell is not None)

    @property
    def is_staged(self) -> bool:
        """Whether some of its cells wait for others."""
        return any(entry.needs for entry in self.entries)

    def given(self, ended: Mapping[str, Record], lost: Collection[str] = ()) -> Grid:
        """Return the grid as far as records decide it.

        Args:
            ended: The records of cells that have ended, by id, those that decided this grid among them. Those of cells
                that will train again are left out.
            lost: The ids of those of them that no other can continue from, since what they have trained is not there.
        """
        if not self.is_staged:
            return self
        resolver = Resolver(self.resolver.drafts, ended, lost, self.resolver)
        return replace(self, entries=resolver.entries(), resolver=resolver)

    def model_source(self, cell: Cell) -> ModelSource:
        """Return the cell's model."""
        return self.models[cell.model]

    def notes_for(self, cell: Cell) -> tuple[str, ...]:
        """Return what deviates from the paper in this cell."""
        return self.notes[cell.task]

    def with_stages(self, record: Record) -> Record:
        """Return a record of one of the cells with what it starts from, and with the search for its rates."""
        entry = self.entry_of[record.id]
        changes: dict[str, object] = {}
        if entry.draft.start is not None:
            start = {
                "start": entry.draft.start.cell.task,
                "start_settings": self.resolver.settings_id(entry.draft.start),
                "start_trained": self.resolver.trained_with(entry.draft.start),
            }
            changes["protocol"] = record.protocol.model_copy(update=start)
        search = self.resolver.search_info(entry)
        if search is not None:
            changes["search"] = search
        return record.model_copy(update=changes) if changes else record


def expand(config: Config, overrides: Overrides, sources: Sources, data: Path | None = None) -> Grid:
    """Return the config's grid under overrides, before any of its cells has ended.

    Args:
        config: The config.
        overrides: The values of the command line by setting; `selection` says what they do.
        sources: Looks up models and data, once for each model and each pair of location and task that the grid needs.
        data: The data folder. By default the sample model has the bundled data for GLUE's tasks; everything else
            comes from the source of the task.

    Raises:
        BenchError: Exit code 2 if the grid has too many cells, if overrides and config do not fit together, if a search
            has seeds of the grid, or if there is not exactly one cell to continue from.
    """
    builder = DraftBuilder(config, overrides, sources, data)
    resolver = Resolver(builder.build(), {})
    notes = {task: config.notes_for(task) for task, _ in builder.data_sources}
    return Grid(config.name, resolver.entries(), builder.models, builder.data_sources, notes, resolver)


def packs(cells: Iterable[Cell], size: Callable[[Cell], int], is_limit: bool = True) -> list[tuple[Cell, ...]]:
    """Return the cells in packs of even sizes, whose cells share their batches.

    Within a pack, cells are sorted by rank. These have packs of their own:

    - each cell of a method that trains the backbone, since it shares nothing;
    - methods with factors as large as the weights, since all cells of a pack get as much memory as its largest cell;
    - cells with other targets, and cells with gains or shifts, if there are enough of them.

    Packs are in the order of their first cells, and what is in a pack does not depend on the order of the cells.

    Args:
        cells: The cells; duplicates are dropped.
        size: Returns the size of a full pack for a cell in it.
        is_limit: Whether no pack may be larger. Otherwise sizes are those nearest to it: a pack may have up to half as
            many cells more, which takes less time than two half-full packs.
    """
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        recipe = methods.of(cell)
        kind = (cell.id,) if recipe.trains_backbone else (recipe.full_width,)
        groups.setdefault(cell.batch_settings() + kind, []).append(cell)
    result = []
    for group in groups.values():
        full = size(min(group, key=lambda cell: cell.id))
        for part in _split_unlike(group, full * MIN_FILL):
            part.sort(key=lambda cell: (cell.rank or 0, cell.method, cell.targets or "", cell.id))
            count = math.ceil(len(part) / full) if is_limit else max(1, round(len(part) / full))
            bounds = [round(index * len(part) / count) for index in range(count + 1)]
            result += [tuple(part[start:end]) for start, end in itertools.pairwise(bounds)]
    return result


def _split_unlike(cells: Sequence[Cell], min_size: float) -> list[list[Cell]]:
    """Split cells that would make one another slower in a pack: those with gains or shifts from many others."""
    kinds: dict[bool, list[Cell]] = {False: [], True: []}
    for cell in cells:
        kinds[bool(methods.of(cell).touches(Shape(1, 1)))].append(cell)
    parts = kinds.values() if kinds[True] and len(kinds[False]) >= min_size else [cells]
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
