"""What a selection will run, what is there already, and why. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.errors import BenchError
from lora_bench.forecast.cost import Estimate, device_coefficients
from lora_bench.forecast.demand import NO_BASES, Bases
from lora_bench.grid.cells import TASK_SOURCE, Grid, Sources, packs
from lora_bench.models import SAMPLE, identity
from lora_bench.records.schema import Record
from lora_bench.run.publish import Shelf
from lora_bench.run.status import RETRY, Standing, standings
from lora_bench.sample import DATA

if TYPE_CHECKING:
    from lora_bench.data import DataSource


@dataclass(frozen=True)
class Plan:
    """The cells to train, in packs, and the records that are there already."""

    grid: Grid
    packs: tuple[tuple[Cell, ...], ...]
    standings: Mapping[str, Standing]
    shelf: Shelf
    known: Mapping[str, Record]
    broken: tuple[tuple[Path, str], ...]
    estimate: Estimate

    @property
    def reasons(self) -> dict[str, str]:
        """Why each cell runs, by id; empty if it does not."""
        return {cell: standing.why if standing.runs else "" for cell, standing in self.standings.items()}

    @property
    def todo(self) -> tuple[Cell, ...]:
        """The cells that will train, pack by pack."""
        return tuple(cell for pack in self.packs for cell in pack)

    @cached_property
    def costs(self) -> list[tuple[float | None, float | None]]:
        """Each pack's predicted seconds and peak bytes, if known; a basis costs time once and stays in memory."""
        kept: dict[tuple[str, str], Bases] = {}
        found = []
        for pack in self.packs:
            model = self.grid.model_location(pack[0])
            left = kept.get((model, pack[0].precision), NO_BASES)
            found.append((self.estimate.seconds(pack, model, left), self.estimate.bytes(pack, model, left)))
            kept = {(model, pack[0].precision): left | self.estimate.bases(pack, model)}  # of the last encoder alone
        return found

    def bytes(self, pack: Sequence[Cell]) -> float | None:
        """How much of a GPU's memory these cells alone will take at their peak, if that can be predicted."""
        return self.estimate.bytes(pack, self.grid.model_location(pack[0]))

    @property
    def recorded(self) -> list[Record]:
        """The selection's records that will be left as they are."""
        todo = set(self.todo)
        return [self.known[cell.id] for cell in self.grid.cells if cell.id in self.known and cell not in todo]


def source_of(location: str) -> DataSource:
    """The data source of a grid's location: `task`, `sample` or a folder."""
    from lora_bench.data import DataSource

    return DataSource.parse(None if location in (TASK_SOURCE, SAMPLE) else Path(location), location == SAMPLE)


def sources() -> Sources:
    """How models and data are named in cells."""
    return Sources(identity, lambda place, task: source_of(place).identity(tasks.get(task)))


def make(
    grid: Grid, results: Path, limit: int | None, retry: Iterable[str] = (), device: str = "cpu",
    measured: Path | None = None,
) -> Plan:  # fmt: skip
    """Compare a grid with what `results` holds.

    `limit`: the most cells a pack may have, None for as many as fill the device. `retry`: the states (`failed`,
    `diverged`, `oom`, `stale`) whose cells run again. `device`: its name, as records have it; `measured`: its own
    coefficients.
    """
    wanted = frozenset(retry)
    if wanted - set(RETRY):
        raise BenchError(f"--retry takes {', '.join(RETRY)}.", "Separate several by commas.")
    shelf = Shelf(results)
    loaded = shelf.loaded()
    loaded.refuse_newer({cell.id for cell in grid.cells})
    known = {record.id: record for record in loaded.records}
    found = standings(grid.cells, shelf, wanted)
    precision = grid.cells[0].precision if grid.cells else "float32"
    plain = Estimate(device_coefficients(device, precision, measured), rows=_sample_rows(grid))
    kind = "cpu" if device.startswith("cpu") else "cuda"

    def fitting(cell: Cell) -> int:  # not refined: packs do not change as records come
        return limit or plain.cells_per_pack(cell, kind, grid.model_location(cell))

    made = _grouped(grid.cells, {cell.id for cell in grid.cells if found[cell.id].runs}, fitting)
    return Plan(grid, made, found, shelf, known, loaded.broken, plain.refined(known.values(), device, grid.models))


def _grouped(
    cells: Sequence[Cell], todo: Collection[str], fitting: Callable[[Cell], int]
) -> tuple[tuple[Cell, ...], ...]:
    """The packs of the whole grid of which nothing is done, so that an interrupted one comes again as it was; then
    what is left of the others, grouped anew."""
    whole = [pack for pack in packs(cells, fitting) if all(cell.id in todo for cell in pack)]
    taken = {cell.id for pack in whole for cell in pack}
    rest = [cell for cell in cells if cell.id in todo and cell.id not in taken]
    return (*whole, *packs(rest, fitting))


def _sample_rows(grid: Grid) -> dict[tuple[str, str], tuple[int, int]]:
    """Rows of the bundled data's splits, which are not the official ones."""
    found = {}
    for task, data in {(cell.task, cell.data) for cell in grid.cells}:
        if grid.data[task, data] == SAMPLE:
            lines = {path.stem: path.read_bytes().count(b"\n") for path in sorted((DATA / task).glob("*.jsonl"))}
            train = lines.pop("train", 0)
            found[data, task] = train, sum(lines.values())
    return found
