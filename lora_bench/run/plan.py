"""The plan of a run: which cells of a grid train, in which packs, and why. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench import tasks
from lora_bench.cell import Cell, Head
from lora_bench.errors import BenchError
from lora_bench.forecast.cost import Estimate, device_coefficients
from lora_bench.forecast.demand import NO_BASES, Bases
from lora_bench.grid.cells import TASK_SOURCE, Grid, Sources, packs
from lora_bench.models import SAMPLE
from lora_bench.records.schema import Record
from lora_bench.run.interfaces import Options, Setup
from lora_bench.run.publish import RecordStore
from lora_bench.run.status import RETRY, CellStatus, cell_statuses
from lora_bench.sample import DATA

if TYPE_CHECKING:
    from lora_bench.data import DataSource


@dataclass(frozen=True)
class Plan:
    """The cells to train, in packs, and the records that are there already.

    Attributes:
        grid: The selection.
        packs: The cells to train, in the packs that they train in.
        statuses: The status of every cell of the grid, by id.
        store: The records of the results folder.
        known: The records as they were when the plan was made, by id.
        broken: The files that are not sound records, and what is wrong with them.
        estimate: What predicts seconds and memory.
        limit: The most cells that the user allows in a pack; None for as many as fill the device.
    """

    grid: Grid
    packs: tuple[tuple[Cell, ...], ...]
    statuses: Mapping[str, CellStatus]
    store: RecordStore
    known: Mapping[str, Record]
    broken: tuple[tuple[Path, str], ...]
    estimate: Estimate
    limit: int | None = None

    @property
    def reasons(self) -> dict[str, str]:
        """Why each cell will run, by id; empty if it will not."""
        return {cell_id: status.reason if status.will_run else "" for cell_id, status in self.statuses.items()}

    @property
    def todo(self) -> tuple[Cell, ...]:
        """The cells that will train, pack by pack."""
        return tuple(cell for pack in self.packs for cell in pack)

    @cached_property
    def costs(self) -> list[tuple[float | None, float | None]]:
        """Each pack's predicted seconds and peak bytes, None where unknown.

        A basis is computed once and stays in memory as long as its encoder does.
        """
        bases: dict[tuple[str, str], Bases] = {}
        costs = []
        for pack in self.packs:
            model, precision = self._model_name(pack), pack[0].precision
            present = bases.get((model, precision), NO_BASES)
            costs.append((self.estimate.seconds(pack, model, present), self.estimate.bytes(pack, model, present)))
            # Only one encoder is in memory: those of the pack before are gone.
            bases = {(model, precision): present | self.estimate.bases(pack, model)}
        return costs

    def bytes(self, pack: Sequence[Cell]) -> float | None:
        """Return how much of a GPU's memory these cells will take at their peak, if that can be predicted."""
        return self.estimate.bytes(pack, self._model_name(pack))

    def _model_name(self, pack: Sequence[Cell]) -> str:
        return self.grid.model_source(pack[0]).name

    def setup(self, options: Options) -> Setup:
        """Return what a worker needs to know before it trains packs of this plan."""
        targets: dict[str, set[str]] = {}
        heads: dict[str, dict[Head | None, None]] = {}
        for cell in self.todo:
            targets.setdefault(cell.model, set()).update(filter(None, [cell.targets]))
            heads.setdefault(cell.model, {})[cell.head] = None
        return Setup(
            models=self.grid.models,
            data=self.grid.data,
            targets={model: tuple(sorted(names)) for model, names in targets.items()},
            heads={model: tuple(names) for model, names in heads.items()},
            methods=tuple(sorted({cell.method for cell in self.todo})),
            options=options,
        )

    @property
    def recorded(self) -> list[Record]:
        """The selection's records that will be left as they are."""
        todo = set(self.todo)
        return [self.known[cell.id] for cell in self.grid.cells if cell.id in self.known and cell not in todo]


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
            of a newer version that would be replaced.
    """
    retried = frozenset(retry)
    if retried - set(RETRY):
        raise BenchError(f"--retry takes {', '.join(RETRY)}.", "Separate several by commas.")
    store = RecordStore(results)
    loaded = store.loaded()
    loaded.refuse_newer({cell.id for cell in grid.cells})
    known = {record.id: record for record in loaded.records}
    statuses = cell_statuses(grid.cells, store, retried)
    precision = grid.cells[0].precision if grid.cells else "float32"
    estimate = Estimate(device_coefficients(device, precision, measured), rows=_sample_rows(grid))
    kind = "cpu" if device.startswith("cpu") else "cuda"

    def pack_limit(cell: Cell) -> int:  # by the estimate that is not refined: packs do not change as records come
        return limit or estimate.cells_per_pack(cell, kind, grid.model_source(cell).name)

    planned = _planned_packs(grid.cells, {cell_id for cell_id in statuses if statuses[cell_id].will_run}, pack_limit)
    names = {identity: source.name for identity, source in grid.models.items()}
    refined = estimate.refined(known.values(), device, names)
    return Plan(grid, planned, statuses, store, known, loaded.broken, refined, limit)


def _planned_packs(
    cells: Sequence[Cell], todo: Collection[str], limit: Callable[[Cell], int]
) -> tuple[tuple[Cell, ...], ...]:
    """The packs of the cells in `todo`.

    First come the packs of the whole grid none of whose cells is done, so that an interrupted pack is the same again.
    What is left of the others is grouped anew.
    """
    whole = [pack for pack in packs(cells, limit) if all(cell.id in todo for cell in pack)]
    grouped = {cell.id for pack in whole for cell in pack}
    rest = [cell for cell in cells if cell.id in todo and cell.id not in grouped]
    return (*whole, *packs(rest, limit))


def _sample_rows(grid: Grid) -> dict[tuple[str, str], tuple[int, int]]:
    """The rows of the bundled data's splits, which are not the official ones."""
    rows = {}
    for (task, identity), source in grid.data.items():
        if source.kind == "sample":
            lines = {path.stem: path.read_bytes().count(b"\n") for path in sorted((DATA / task).glob("*.jsonl"))}
            train = lines.pop("train", 0)
            rows[identity, task] = train, sum(lines.values())
    return rows
