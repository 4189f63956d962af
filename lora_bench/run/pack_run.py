"""Trains one pack, from its first step or from a checkpoint, until all of its cells have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.engine import posterior
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.memory import forget_peak, peak_bytes
from lora_bench.engine.trainer import Trainer
from lora_bench.records.schema import Timing
from lora_bench.run import checkpointing, recording
from lora_bench.run.checkpointing import CellCheckpoint, CheckpointCallback, Checkpointer, TrainingState
from lora_bench.run.inputs import Prepared
from lora_bench.run.interfaces import View
from lora_bench.run.recording import EndedCell


class PackRun:
    """One pack in training.

    When more than half of its cells have diverged, the others continue in a smaller pack.

    Args:
        backbone: The encoder.
        prepared: The tables of the task.
        view: What shows progress.
        checkpointer: What saves the pack.
        starts: What other cells have trained, by id, for the cells that continue from them.

    Attributes:
        ended: The cells that have ended so far.
    """

    def __init__(
        self,
        backbone: Backbone,
        prepared: Prepared,
        view: View,
        checkpointer: Checkpointer,
        starts: Mapping[str, State],
    ) -> None:
        self.backbone, self.prepared, self.view, self.checkpointer = backbone, prepared, view, checkpointer
        self.starts = starts
        self.ended: list[EndedCell] = []

    def train(
        self, cells: Sequence[Cell], saved: dict[str, CellCheckpoint], halved: int
    ) -> tuple[list[EndedCell], Timing]:
        """Train the cells until all have ended.

        Args:
            cells: The cells of the pack.
            saved: The checkpoints of cells by id; those of this pack are removed.
            halved: How often the pack was cut in two because memory ran out.

        Returns:
            What records need of the cells, and the times, which are the same for all of them.
        """
        device = self.backbone.device
        self.view.stage("building the adapters")
        forget_peak(device)
        trainer = build_trainer(cells, self.backbone, self.prepared, self.starts)
        self.checkpointer.began -= checkpointing.resume(trainer, saved)
        self.checkpointer.context.stopper.hold()
        while not self.train_until_thin(trainer):
            active = self._split_off_diverged(trainer)
            del trainer  # free its memory before the next one is built
            members = [state.progress.cell for state in active]
            trainer = build_trainer(members, self.backbone, self.prepared, self.starts)
            checkpointing.restore(trainer, {state.progress.cell.id: state for state in active})
        seconds, count = self.checkpointer.seconds, len(cells)
        tokens = int(self.prepared.train.lengths.sum()) * cells[0].epochs
        timing = Timing(
            seconds=seconds / count,
            pack_seconds=seconds,
            pack_size=count,
            tokens=tokens,
            tokens_per_second=tokens * count / seconds,
            peak_bytes=peak_bytes(device),
            halved=halved,
        )
        return self.ended, timing

    def train_until_thin(self, trainer: Trainer) -> bool:
        """Train until all cells have ended, or more than half have diverged.

        Returns:
            Whether all cells have ended.
        """
        trainer.run([self.view, CheckpointCallback(self.checkpointer, trainer)])
        for position, progress in enumerate(trainer.progress):
            if trainer.finished or progress.diverged:
                averaged = posterior.evaluate(trainer, progress)
                self.ended.append(recording.collect(trainer.pack, position, progress, averaged))
        return trainer.finished

    def _split_off_diverged(self, trainer: Trainer) -> list[TrainingState]:
        """Leave the cells that have diverged to the checkpointer; the states of the others."""
        states = checkpointing.copy_states(trainer)
        self.checkpointer.diverged += [state for state in states if state.progress.diverged]
        return [state for state in states if not state.progress.diverged]


def build_trainer(
    cells: Sequence[Cell], backbone: Backbone, prepared: Prepared, starts: Mapping[str, State]
) -> Trainer:
    """Return a trainer of the cells as one pack, before its first step."""
    task = tasks.of(cells[0])
    pack = Pack(cells, backbone, task.num_outputs)
    return Trainer(pack, task, prepared.train, prepared.evaluation, prepared.held_out, starts)
