"""One pack from its first step, or from what was saved of it, to its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.memory import forget_peak, peak_bytes
from lora_bench.engine.trainer import Trainer
from lora_bench.records.schema import Timing
from lora_bench.run import checkpointing, recording, snapshot
from lora_bench.run.checkpointing import CheckpointCallback, Found, Keeper
from lora_bench.run.inputs import Prepared
from lora_bench.run.interfaces import View
from lora_bench.run.outcome import Outcome
from lora_bench.run.recording import Ended


@dataclass(frozen=True)
class Setting:
    """Where the packs of a run train. `save`: adapters are kept. `notes`, `environment`: for a cell's record."""

    device: torch.device
    view: View
    save: bool
    notes: Callable[[Cell], Sequence[str]]
    environment: Callable[[Cell], dict[str, str]]


class PackRun:
    """One pack on its way: cells that diverge leave it when they are more than half."""

    def __init__(self, setting: Setting, backbone: Backbone, prepared: Prepared, keeper: Keeper) -> None:
        self.setting, self.backbone, self.prepared, self.keeper = setting, backbone, prepared, keeper
        self.ended: list[Ended] = []

    def train(self, cells: Sequence[Cell], found: dict[str, Found], halved: int) -> list[Outcome]:
        """From the start, or from what was saved, to the end."""
        setting, prepared = self.setting, self.prepared
        setting.view.stage("building the adapters")
        forget_peak(setting.device)
        trainer = trainer_of(cells, self.backbone, prepared)
        self.keeper.began -= checkpointing.start(trainer, found)
        self.keeper.place.stopper.hold()
        while not self._ran(trainer):
            alive = self._thinned(trainer)
            del trainer  # its memory is wanted for the next one
            trainer = trainer_of([each.progress.cell for each in alive], self.backbone, prepared)
            snapshot.restore(trainer, {each.progress.cell.id: each for each in alive})
        timing = self._timing(cells, halved)
        return [self._outcome(each, timing) for each in self.ended]

    def _ran(self, trainer: Trainer) -> bool:
        """Train until all cells have ended, or more than half have diverged."""
        trainer.run([self.setting.view, CheckpointCallback(self.keeper, trainer)])
        for place, progress in enumerate(trainer.progress):
            if trainer.finished or progress.diverged:
                self.ended.append(recording.ended(trainer.pack, place, progress))
        return trainer.finished

    def _thinned(self, trainer: Trainer) -> list[snapshot.Snapshot]:
        """The cells that go on."""
        taken = snapshot.take(trainer)
        self.keeper.ended += [each for each in taken if each.progress.diverged]
        return [each for each in taken if not each.progress.diverged]

    def _timing(self, cells: Sequence[Cell], halved: int) -> Timing:
        elapsed, count = self.keeper.seconds, len(cells)
        tokens = int(self.prepared.train.lengths.sum()) * cells[0].epochs
        return Timing(
            seconds=elapsed / count, pack_seconds=elapsed, pack_size=count, tokens=tokens,
            tokens_per_second=tokens * count / elapsed, peak_bytes=peak_bytes(self.setting.device), halved=halved,
        )  # fmt: skip

    def _outcome(self, ended: Ended, timing: Timing) -> Outcome:
        setting, cell, state = self.setting, ended.progress.cell, ended.progress.state
        task = tasks.get(cell.task)
        made = recording.finished(
            ended, task, self.prepared.info, timing, setting.notes(cell), setting.environment(cell)
        )
        if state is None or not setting.save or methods.get(cell.method).trains_backbone:
            return Outcome(made)
        return Outcome(made, lambda folder: saved.save(folder, cell, task.num_outputs, state))


def trainer_of(cells: Sequence[Cell], backbone: Backbone, prepared: Prepared) -> Trainer:
    """A trainer of the cells as one pack, before its first step."""
    task = tasks.get(cells[0].task)
    return Trainer(
        Pack(cells, backbone, task.num_outputs), task, prepared.train, prepared.evaluation, prepared.held_out
    )
