"""The plan of a run: which cells of a grid train, in which packs, and why. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench import tasks
from lora_bench.cell import Cell, Head
from lora_bench.errors import BenchError
from lora_bench.forecast.cost import Cost, Estimate
from lora_bench.forecast.devices import Device, find_device
from lora_bench.forecast.schedule import PackTime, StageTimes
from lora_bench.grid.cells import TASK_SOURCE, Grid, Sources, packs
from lora_bench.grid.stages import Entry, Stage
from lora_bench.models import SAMPLE
from lora_bench.records.adapters import read_of_cell
from lora_bench.records.schema import Record
from lora_bench.run.grid_facts import require_heads, sample_rows
from lora_bench.run.interfaces import Options, Setup, StageProgress
from lora_bench.run.publish import RecordStore
from lora_bench.run.status import HELD_UP, RETRY, CellStatus, cell_statuses

if TYPE_CHECKING:
    from lora_bench.data import DataSource

NO_VALUES = "has a record, but what it trained is not there, and other cells continue from it"


@dataclass(frozen=True)
class Plan:
    """The cells to train, in packs, and the records that are there already.

    Attributes:
        grid: The selection, as far as the records decide it.
        packs: The cells that can train now, in the packs that they train in.
        statuses: The status of every known cell of the grid, by id.
        store: The records of the results folder.
        known: The records as they were when the run was planned, by id.
        broken: The files that are not sound records, and what is wrong with them.
        estimate: What predicts seconds and memory.
        limit: The most cells that the user allows in a pack; None for as many as fill the device.
        pack_size: Returns the size of a full pack for a cell in it.
        retry: The states whose cells run again.
        device_name: The name of the device, as records have it.
        device: What is known of the device; None for an unknown one.
        checked: The ids of the cells whose saved adapters were looked for.
        lost: The ids of cells that have to train again, since their saved adapters are missing and others need them.
    """

    grid: Grid
    packs: tuple[tuple[Cell, ...], ...]
    statuses: Mapping[str, CellStatus]
    store: RecordStore
    known: Mapping[str, Record]
    broken: tuple[tuple[Path, str], ...]
    estimate: Estimate
    limit: int | None
    pack_size: Callable[[Cell], int]
    retry: frozenset[str]
    device_name: str
    device: Device | None
    checked: set[str] = field(default_factory=set)
    lost: frozenset[str] = frozenset()

    @cached_property
    def todo(self) -> tuple[Cell, ...]:
        """The cells that can train now, pack by pack."""
        return tuple(cell for pack in self.packs for cell in pack)

    @cached_property
    def costs(self) -> list[Cost]:
        """What each pack is predicted to take."""
        return self.estimate.costs(self.packs, self.model_name)

    def times(self, packs: Sequence[Sequence[Cell]]) -> list[PackTime | None]:
        """Return how the predicted times of packs divide among devices and parts; None where they are unknown."""
        return self.estimate.times(packs, self.model_name)

    def bytes(self, pack: Sequence[Cell]) -> float | None:
        """Return how much of a GPU's memory these cells will take at their peak, if that can be predicted."""
        return self.estimate.bytes(pack, self.model_name(pack))

    def model_name(self, pack: Sequence[Cell]) -> str:
        """Return the user's name of the model of a pack."""
        return self.grid.model_source(pack[0]).name

    def setup(self, options: Options) -> Setup:
        """Return what a worker needs to know before it trains packs of this plan."""
        targets: dict[str, set[str]] = {}
        heads: dict[str, dict[Head | None, None]] = {}
        cells = (*self.todo, *(cell for pack in self.later for cell in pack))
        for cell in cells:
            targets.setdefault(cell.model, set()).update(filter(None, [cell.targets]))
            heads.setdefault(cell.model, {})[cell.head] = None
        return Setup(
            models=self.grid.models,
            data=self.grid.data,
            targets={model: tuple(sorted(names)) for model, names in targets.items()},
            heads={model: tuple(names) for model, names in heads.items()},
            methods=tuple(sorted({cell.method for cell in cells})),
            options=options,
        )

    @cached_property
    def recorded(self) -> list[Record]:
        """The selection's records that will be left as they are."""
        return [
            self.known[cell.id]
            for cell in self.grid.cells
            if cell.id in self.known and not self.statuses[cell.id].will_run
        ]

    @cached_property
    def is_settled(self) -> bool:
        """Whether no cell waits for another: what will train is known."""
        return all(entry.state != "waiting" for entry in self.grid.entries)

    @cached_property
    def ended(self) -> dict[str, Record]:
        """The records of the cells that have ended, by id: those that run again have a new one."""
        records = self.store.records
        return {
            cell_id: records[cell_id]
            for cell_id, status in self.statuses.items()
            if cell_id in records and (not status.will_run or records[cell_id] is not self.known.get(cell_id))
        }

    @cached_property
    def later(self) -> tuple[tuple[Cell, ...], ...]:
        """The cells that wait for others, in the packs they may form; with the lowest rate until one is chosen."""
        entries = (entry for entry in self.grid.entries if entry.state == "waiting" and not self._has_ended(entry))
        waiting = dict.fromkeys(entry.provisional_cell for entry in entries)
        known = set(self.grid.cells)
        return tuple(
            packs(
                [cell for cell in waiting if cell not in known or self.grid.entry_of[cell.id].state == "waiting"],
                self.pack_size,
                self.limit is not None,
            )
        )

    @cached_property
    def stages(self) -> tuple[StageProgress, ...]:
        """How far the stages are, in the grid's order. A cell without a rate is left out if a known one may be it."""
        cells: dict[Stage, dict[Cell, str]] = {}
        needs: dict[Stage, dict[Stage, None]] = {}
        stage_of = {entry.draft: entry.stage for entry in self.grid.entries}
        known = set(self.grid.cells)
        for entry in self.grid.entries:
            cell = entry.provisional_cell
            if entry.cell is None and cell in known:
                continue
            states = cells.setdefault(entry.stage, {})
            states[cell] = "ended" if cell.id in self.ended else entry.state
            others = dict.fromkeys(stage_of[draft] for draft in entry.needs if stage_of[draft] != entry.stage)
            needs.setdefault(entry.stage, {}).update(others)
        return tuple(
            StageProgress(
                title=stage_title(stage),
                cells=len(states),
                needs=tuple(map(stage_title, needs[stage])),
                **{name: list(states.values()).count(name) for name in ("ended", "ready", "waiting", "blocked")},
            )
            for stage, states in cells.items()
        )

    @cached_property
    def stage_costs(self) -> dict[str, list[Cost]]:
        """What the packs that are left of each stage are predicted to take, by the stage's title."""
        costs: dict[str, list[Cost]] = {}
        for pack, cost in zip((*self.packs, *self.later), (*self.costs, *self.later_costs), strict=True):
            costs.setdefault(self._titles[pack[0]], []).append(cost)
        return costs

    @cached_property
    def stage_times(self) -> tuple[StageTimes, ...]:
        """How the predicted times of the packs that are left divide, by stages; unknown times are left out."""
        packs = (*self.packs, *self.later)
        times: dict[str, list[PackTime]] = {}
        for pack, time in zip(packs, self.times(packs), strict=True):
            if time is not None:
                times.setdefault(self._titles[pack[0]], []).append(time)
        searches = {stage_title(entry.stage) for entry in self.grid.entries if entry.stage[0] == "search"}
        return tuple(
            StageTimes(stage.title, times.get(stage.title, ()), stage.needs, stage.title in searches)
            for stage in self.stages
        )

    @cached_property
    def _titles(self) -> dict[Cell, str]:
        """The title of the stage of each cell."""
        titles = {entry.draft.cell: stage_title(entry.stage) for entry in self.grid.entries}
        known = {
            entry.cell: stage_title(entry.stage) for entry in self.grid.entry_of.values() if entry.cell is not None
        }
        return titles | known

    @cached_property
    def later_costs(self) -> list[Cost]:
        """What the packs of cells that wait are predicted to take."""
        return self.estimate.costs(self.later, self.model_name)

    @cached_property
    def needed(self) -> frozenset[str]:
        """The ids of the cells that others, which have not ended and are not blocked, continue or may continue from."""
        return frozenset(entry.cell.id for entry in self._needed if entry.cell is not None)

    @cached_property
    def needed_cells(self) -> tuple[Cell, ...]:
        """The cells that others will continue from, with the lowest rate until one is chosen."""
        return tuple(dict.fromkeys(entry.provisional_cell for entry in self._needed))

    @cached_property
    def _needed(self) -> list[Entry]:
        """The entries that others continue or may continue from.

        Where the rate of such a cell is still being searched, it may become each cell of the search with its seed.
        """
        starts = {
            entry.draft.start
            for entry in self.grid.entries
            if entry.draft.start is not None and entry.state != "blocked" and not self._has_ended(entry)
        }
        for entry in self.grid.entries:  # a search that has not chosen may add cells
            if entry.draft.search is not None and entry.cell is None and entry.state == "waiting":
                starts.update(entry.draft.search.starts)
        entry_of = {entry.draft: entry for entry in self.grid.entries}
        needed = [entry_of[start] for start in starts]
        needed += [
            entry_of[trial]
            for start in starts
            if start.search is not None and entry_of[start].cell is None
            for trial in entry_of[start].needs
            if trial.cell.seed == start.cell.seed and trial.cell.task == start.cell.task
        ]
        return needed

    def _has_ended(self, entry: Entry) -> bool:
        return entry.cell is not None and entry.cell.id in self.ended

    def advanced(self, busy: Collection[str] = ()) -> Plan:
        """Return the plan as the records are now: cells that waited may be able to train.

        Args:
            busy: The ids of cells that are in training, or waiting for it otherwise: they are in no pack.

        Raises:
            BenchError: Exit code 3 if the folder holds records of a newer version that would be replaced.
        """
        plan = replace(self)._resolved()  # a copy: what is cached here is of earlier records
        while missing := [cell_id for cell_id in plan.needed if plan._lacks_values(cell_id)]:
            again = {cell_id: CellStatus("done", NO_VALUES, will_run=True) for cell_id in missing}
            known = {**plan.known, **{cell_id: plan.store.records[cell_id] for cell_id in missing}}
            lost = plan.lost.union(missing)
            plan = replace(plan, statuses={**plan.statuses, **again}, known=known, lost=lost)._resolved()
        entries, taken = plan.grid.entry_of, {*plan.ended, *busy}
        todo = {
            cell_id
            for cell_id, status in plan.statuses.items()
            if status.will_run and entries[cell_id].state == "ready" and cell_id not in taken
        }
        planned = _planned_packs(plan.grid.cells, todo, self.pack_size, self.limit is not None)
        return replace(plan, packs=tuple(sorted(planned, key=lambda pack: not plan.searches(pack))))

    def searches(self, pack: Sequence[Cell]) -> bool:
        """Whether a pack searches a rate: such packs come first, so that cells of several searches can share packs."""
        return self.grid.entry_of[pack[0].id].stage[0] == "search"

    def _resolved(self) -> Plan:
        """This plan with the grid as the records decide it, and with the statuses of all cells that are known now."""
        plan = self._with_statuses()
        while True:
            lost = plan.lost - plan.ended.keys()  # they have records, which choose rates as before
            records = {**plan.ended, **{cell_id: plan.known[cell_id] for cell_id in lost}}
            plan = replace(plan, grid=plan.grid.given(records, lost))
            is_complete = all(cell.id in plan.statuses for cell in plan.grid.cells)
            plan = plan._with_statuses()
            if is_complete:
                return plan

    def _with_statuses(self) -> Plan:
        """This plan with the statuses of all cells that are known now."""
        entries = self.grid.entry_of
        statuses = {cell_id: status for cell_id, status in self.statuses.items() if status.state not in HELD_UP}
        new = [cell for cell in self.grid.cells if cell.id not in statuses]
        if not new:
            return self
        self.store.loaded().refuse_newer({cell.id for cell in new})
        for cell_id, status in cell_statuses(new, self.store, self.retry).items():
            state, is_recorded = entries[cell_id].state, cell_id in self.store.records
            if state != "ready" and not is_recorded and status.state != "unreadable":
                status = CellStatus(state, entries[cell_id].reason, will_run=state == "waiting")
            statuses[cell_id] = status
        return replace(self, statuses=statuses)

    def _lacks_values(self, cell_id: str) -> bool:
        """Whether a cell has ended, but what it has trained is not there. Each cell is looked at once in a run."""
        record = self.ended.get(cell_id)
        if record is None or record.status != "done" or cell_id in self.checked:
            return False
        self.checked.add(cell_id)
        return read_of_cell(self.store.results, cell_id) is None


def stage_title(stage: Stage) -> str:
    """Return the name of a stage: the task, or the search for its rates."""
    purpose, task = stage
    return f"search {tasks.get(task).title}" if purpose == "search" else tasks.get(task).title


def source_of(location: str | Path) -> DataSource:
    """Return the data source of a location: a folder as a path, or one of the words `task` and `sample`.

    The word `task` stands for the task's own source. A folder of such a name is a path, never the word.

    Raises:
        BenchError: Exit code 3 if the folder does not exist.
    """
    from lora_bench.data import DataSource

    if isinstance(location, Path):
        return DataSource.parse(location)
    if location not in (TASK_SOURCE, SAMPLE):
        raise ValueError(f"'{location}' is not a data location")
    return DataSource.parse(sample=location == SAMPLE)


def sources() -> Sources:
    """Return how models and data are found on this machine."""
    from lora_bench.data.model_source import ModelSource

    def find_data(location: str | Path, task: str) -> tuple[DataSource, str]:
        source = source_of(location)
        return source, source.identity(tasks.get(task))

    return Sources(ModelSource.find, find_data)


def make(
    grid: Grid,
    results: Path,
    limit: int | None,
    retry: Iterable[str] = (),
    device: str = "cpu",
    measured: Path | None = None,
) -> Plan:
    """Compare a grid with what a results folder holds.

    Args:
        grid: The selection.
        results: The results folder.
        limit: The most cells that a pack may have; None for as many as fill the device.
        retry: The states (see `status.RETRY`) whose cells run again.
        device: The name of the device, as records have it.
        measured: A file with the device's own coefficients.

    Raises:
        BenchError: Exit code 2 for a state that cannot be retried; 3 if the folder cannot be read, or holds records
            of a newer version that would be replaced, or if a model's own head cannot be trained.
    """
    retried = frozenset(retry)
    if retried - set(RETRY):
        raise BenchError(f"--retry takes {', '.join(RETRY)}.", "Separate several by commas.")
    require_heads(grid)
    store = RecordStore(results)
    loaded = store.loaded()
    known = {record.id: record for record in loaded.records}
    precision = grid.cells[0].precision if grid.cells else "float32"
    known_device = find_device(device, precision, measured)
    estimate = Estimate(None if known_device is None else known_device.coefficients, rows=sample_rows(grid))
    kind = "cpu" if device.startswith("cpu") else "cuda"

    def pack_size(cell: Cell) -> int:  # by the estimate that is not refined: packs do not change as records come
        return limit or estimate.cells_per_pack(cell, kind, grid.model_source(cell).name)

    names = {identity: source.name for identity, source in grid.models.items()}
    refined = estimate.refined(known.values(), device, names)
    return Plan(
        grid, (), {}, store, known, loaded.broken, refined, limit, pack_size, retried, device, known_device
    ).advanced()


def _planned_packs(
    cells: Sequence[Cell], todo: Collection[str], size: Callable[[Cell], int], is_limit: bool
) -> tuple[tuple[Cell, ...], ...]:
    """The packs of the cells in `todo`.

    First come the packs of the whole grid that train as a whole, so that an interrupted pack is the same again. The
    remaining cells are grouped into packs of their own.
    """
    whole = [pack for pack in packs(cells, size, is_limit) if all(cell.id in todo for cell in pack)]
    grouped = {cell.id for pack in whole for cell in pack}
    rest = [cell for cell in cells if cell.id in todo and cell.id not in grouped]
    return (*whole, *packs(rest, size, is_limit))
