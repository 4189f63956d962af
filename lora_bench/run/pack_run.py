"""Trains one pack, from its first step or from a checkpoint, until all of its cells have ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lora_bench import tasks
from lora_bench.callbacks import Callback
from lora_bench.cell import Cell
from lora_bench.engine import posterior
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.device_memory import peak_bytes
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.trainer import Trainer
from lora_bench.records.schema import Timing
from lora_bench.run import checkpointing, recording
from lora_bench.run.checkpointing import CellCheckpoint, CheckpointCallback, Checkpointer
from lora_bench.run.inputs import Prepared
from lora_bench.run.interfaces import View
from lora_bench.run.recording import EndedCell

Build = Callable[[Sequence[Cell]], Trainer]


class GraphsCallback(Callback):
    """Says that steps are issued one by one where a trainer cannot record them as CUDA graphs."""

    def __init__(self, trainer: Trainer, warn: Callable[[str], None]) -> None:
        self._graphs, self._warn = trainer.graphs, warn

    def on_safe_point(self) -> None:
        """Say it, if a step was refused before."""
        if self._graphs.refusal is not None:
            reason = f"they cannot be recorded as CUDA graphs ({self._graphs.refusal})"
            self._warn(f"Training steps are issued one by one, which is slower for small packs: {reason}.")


def build_trainer(
    cells: Sequence[Cell], backbone: Backbone, prepared: Prepared, starts: Mapping[str, State]
) -> Trainer:
    """Return a trainer of the cells as one pack, before its first step."""
    task = tasks.of(cells[0])
    pack = Pack(cells, backbone, task.num_outputs)
    return Trainer(pack, task, prepared.train, prepared.evaluation, prepared.held_out, starts)


def train_pack(
    cells: Sequence[Cell],
    build: Build,
    saved: dict[str, CellCheckpoint],
    checkpointer: Checkpointer,
    view: View,
    warn_once: Callable[[str], None],
) -> tuple[list[EndedCell], Timing]:
    """Train the cells of a pack until all have ended.

    When more than half of them have diverged, the others continue in a smaller pack.

    Args:
        cells: The cells of the pack.
        build: Returns a trainer of cells as one pack.
        saved: The checkpoints of cells by id; those of this pack are removed.
        checkpointer: What saves the pack.
        view: What shows progress.
        warn_once: Shows a warning, unless it was shown before.

    Returns:
        What records need of the cells, and the times, which are the same for all of them.
    """
    view.stage("building the adapters")
    trainer = build(cells)
    checkpointer.began -= checkpointing.resume(trainer, saved)
    checkpointer.context.stopper.hold()
    ended: list[EndedCell] = []
    while True:
        trainer.run([view, GraphsCallback(trainer, warn_once), CheckpointCallback(checkpointer, trainer)])
        for position, progress in enumerate(trainer.progress):
            if trainer.finished or progress.diverged:
                averaged = posterior.evaluate(trainer, progress)
                ended.append(recording.collect(trainer.pack, position, progress, averaged))
        if trainer.finished:
            return ended, _timing(trainer, checkpointer, len(cells))
        states = checkpointing.copy_states(trainer)
        del trainer  # free its memory before the next one is built
        checkpointer.diverged += [state for state in states if state.progress.diverged]
        active = {state.progress.cell.id: state for state in states if not state.progress.diverged}
        trainer = build([state.progress.cell for state in active.values()])
        checkpointing.restore(trainer, active)


def _timing(trainer: Trainer, checkpointer: Checkpointer, count: int) -> Timing:
    """The times of a pack that began with `count` cells."""
    seconds = checkpointer.seconds
    tokens = int(trainer.table.lengths.sum()) * trainer.epochs
    return Timing(
        seconds=seconds / count,
        pack_seconds=seconds,
        pack_size=count,
        tokens=tokens,
        tokens_per_second=tokens * count / seconds,
        peak_bytes=peak_bytes(trainer.device),
        halved=checkpointer.job.halved,
    )
