"""What trains the packs of a plan: parts of a pack that go on together, as large as the device holds."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch

from lora_bench import provenance
from lora_bench.cell import Cell
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.memory import SAMPLES, cells_that_fit, free_bytes
from lora_bench.engine.shortage import is_memory
from lora_bench.records.schema import DataInfo
from lora_bench.run import checkpointing, environment
from lora_bench.run.checkpointing import Keeper
from lora_bench.run.checkpoints import Place
from lora_bench.run.inputs import Loader, Prepared
from lora_bench.run.interfaces import Options, View
from lora_bench.run.outcome import Outcome
from lora_bench.run.pack_run import PackRun, Setting, trainer_of
from lora_bench.run.plan import Plan

SURE = 0.4  # a pack whose predicted memory is below this fraction of the free memory is not measured


class Training:
    """Trains packs of a plan, one after another."""

    def __init__(self, plan: Plan, options: Options, view: View) -> None:
        self.plan, self.options, self.view = plan, options, view
        self.device = torch.device(options.device)
        self.loader = Loader(plan, options, view, self.device)
        self.setting = Setting(self.device, view, options.save, plan.grid.notes_for, self.environment)

    def prepare(self, cells: tuple[Cell, ...]) -> None:
        """Load the encoder and the tables."""
        self.loader.tables(cells[0], self.loader.backbone(cells[0]))

    def train(self, cells: tuple[Cell, ...], halved: int, place: Place) -> Iterator[list[Outcome]]:
        """What becomes of the cells, part by part: those saved after as many steps go on together, others begin."""
        backbone = self.loader.backbone(cells[0])
        prepared = self.loader.tables(cells[0], backbone)
        common = self._common(prepared.info)
        found = checkpointing.find(place, cells, common)
        parts: dict[int, list[Cell]] = {}
        for cell in cells:
            steps = found[cell.id].folder.cells[cell.id].steps if cell.id in found else 0
            parts.setdefault(steps, []).append(cell)
        for steps in sorted(parts, reverse=True):
            room = self._room(parts[steps], backbone, prepared) if not halved else len(cells)
            for part in _even(parts[steps], room):
                run = PackRun(self.setting, backbone, prepared, Keeper(place, part, common))
                yield run.train(part, found, halved)

    def is_memory(self, error: BaseException) -> bool:
        """Whether memory ran out."""
        return is_memory(error)

    def forget(self) -> None:
        """Give back what a failed pack took."""
        gc.collect()
        torch.cuda.empty_cache()

    def environment(self, cell: Cell) -> dict[str, str]:
        """What a record says of where it comes from."""
        return {**self._versions, **provenance.current(cell.method)}

    @cached_property
    def _versions(self) -> dict[str, str]:
        return {**environment.versions(), "device": environment.device_name(self.options.device)}

    def _common(self, info: DataInfo) -> dict[str, str]:
        """What the numbers of all cells of a pack depend on. Kinds of device draw other dropout masks."""
        libraries = provenance.versions_of(*provenance.LIBRARIES)
        return {**libraries, "data": info.fingerprint, "device": self.device.type}

    def _room(self, cells: Sequence[Cell], backbone: Backbone, prepared: Prepared) -> int:
        """How many of the cells a GPU's memory holds; measured where the forecast is unknown or near the limit."""
        if self.device.type != "cuda" or len(cells) <= SAMPLES[1]:
            return len(cells)
        predicted = self.plan.bytes(cells)
        if predicted is not None and predicted < SURE * free_bytes(self.device):
            return len(cells)
        self.view.stage("measuring memory")
        return cells_that_fit(cells, lambda some: trainer_of(some, backbone, prepared), self.device)


def _even(cells: Sequence[Cell], room: int) -> list[Sequence[Cell]]:
    """The cells in as few parts of at most `room` as can be, of even sizes."""
    count = -(-len(cells) // room)
    return [cells[index * len(cells) // count : (index + 1) * len(cells) // count] for index in range(count)]
