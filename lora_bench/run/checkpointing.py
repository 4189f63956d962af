"""Saves packs in mid-training and resumes their cells, in the same pack or in another.

Randomness is a function of (seed, epoch) and (seed, step), so the trained values, the optimiser's moments and the
number of steps are all that the next step depends on. On a CPU, a cell that is resumed among the same cells ends with
the same numbers to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lora_bench import provenance
from lora_bench.callbacks import Callback
from lora_bench.cell import Cell
from lora_bench.engine.adapters.pack import State
from lora_bench.engine.progress import Progress
from lora_bench.engine.trainer import Trainer
from lora_bench.records.seal import describe
from lora_bench.run import checkpoints
from lora_bench.run.checkpoints import CellEntry, CheckpointManifest, StoredCheckpoint
from lora_bench.run.interfaces import Job, RunContext

# All three were chosen.
EPOCH_INTERVAL = 30.0  # seconds between two checkpoints at the end of an epoch, at least
STEP_INTERVAL = 300.0  # seconds after which a pack is saved in the middle of an epoch
COST_FACTOR = 20  # both are at least this many times what the last checkpoint took, so that saving takes at most 5%

# The names in the file of what `TrainingState.states` holds: the values, and Adam's first and second moments.
KINDS = ("now", "first", "second")
MEMORY = "memory"  # before the names of what `TrainingState.memory` holds
# The fields of `Progress` that a manifest holds under the same names (`CellEntry`); the others are tensors.
PROGRESS = {"diverged", "selected", "epoch_losses", "metrics", "held_out", "calibration", "held_out_calibration"}


@dataclass(frozen=True)
class TrainingState:
    """One cell between two steps: everything that its next step depends on.

    Attributes:
        progress: What is known of the cell.
        steps: How many steps its pack has taken.
        steps_taken: How many of them updated the cell: fewer, if it has diverged.
        states: What it trains, and the first and second moments of that.
        memory: What else its method and its optimiser remember between steps, by name (`Trainer.memory`).
    """

    progress: Progress
    steps: int
    steps_taken: int
    states: tuple[State, State, State]
    memory: Mapping[str, Tensor]


class Checkpointer:
    """Saves one pack in mid-training: after an epoch, in the middle of a long one, and when a signal ends the run.

    Args:
        context: What keeps checkpoints, and what stops the training.
        job: What the pack belongs to.
        fingerprint: As in `CheckpointManifest`.

    Attributes:
        diverged: The states of cells that have diverged and left the pack.
        began: When the pack began to train, on the monotonic clock, as if it had not been interrupted since.
    """

    def __init__(self, context: RunContext, job: Job, fingerprint: Mapping[str, str]) -> None:
        self.context, self.job, self.fingerprint = context, job, dict(fingerprint)
        self.diverged: list[TrainingState] = []
        self.began = time.monotonic()
        self._last_saved, self._cost = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """How long the pack has trained, without interruptions."""
        return time.monotonic() - self.began

    def should_pause(self) -> bool:
        """Whether the trainer should pause after this step, so that the pack can be saved."""
        self.context.check()
        return self.context.stopper.asked or self._unsaved_seconds() > max(STEP_INTERVAL, COST_FACTOR * self._cost)

    def save_if_due(self, trainer: Trainer) -> None:
        """Save the pack if it is time to. A pack that has finished is not saved, since its records follow.

        Raises:
            KeyboardInterrupt: A signal has asked to stop; the pack is saved.
        """
        self.context.check()
        if trainer.finished:
            return
        if self.context.stopper.asked or self._unsaved_seconds() >= max(EPOCH_INTERVAL, COST_FACTOR * self._cost):
            self.save(trainer)
        if self.context.stopper.asked:
            raise KeyboardInterrupt

    def _unsaved_seconds(self) -> float:
        return time.monotonic() - self._last_saved

    def save(self, trainer: Trainer) -> None:
        """Make a checkpoint."""
        start = time.monotonic()
        states = [*copy_states(trainer), *self.diverged]
        content = safetensors.torch.save(_tensors(states))
        manifest = CheckpointManifest(
            steps=trainer.steps,
            seconds=self.seconds,
            fingerprint=self.fingerprint,
            cells=tuple(_cell_entry(state, position, self.job) for position, state in enumerate(states)),
            files=describe({checkpoints.TENSORS: content}),
        )
        self.context.save(manifest, content)
        self._last_saved = time.monotonic()
        self._cost = self._last_saved - start


class CheckpointCallback(Callback):
    """Pauses and saves one trainer as its checkpointer decides."""

    def __init__(self, checkpointer: Checkpointer, trainer: Trainer) -> None:
        self._checkpointer, self._trainer = checkpointer, trainer

    def should_pause(self) -> bool:
        """Whether the pack is to be saved within the epoch, or a signal has come."""
        return self._checkpointer.should_pause()

    def on_safe_point(self) -> None:
        """Save the pack if it is due."""
        self._checkpointer.save_if_due(self._trainer)


@dataclass(frozen=True)
class CellCheckpoint:
    """A cell in a checkpoint.

    Attributes:
        entry: What the manifest holds of the cell.
        seconds: How long its pack had trained.
        tensors: All tensors of the checkpoint by name.
    """

    entry: CellEntry
    seconds: float
    tensors: Mapping[str, Tensor]

    def training_state(self, fresh: TrainingState) -> TrainingState:
        """Return the cell as it was saved; `fresh` is the same cell before its first step, for names and shapes.

        Raises:
            KeyError, ValueError, RuntimeError: The tensors are not this cell's.
        """
        entry, tensors = self.entry, self.tensors
        vectors = {what: tensors[f"{entry.position}.{what}"] for what in (*KINDS, "losses", "recent_steps")}
        like = fresh.states[0].like
        progress = Progress(
            cell=fresh.progress.cell,
            losses=vectors["losses"].tolist(),
            recent_steps=vectors["recent_steps"].numpy(),
            **entry.model_dump(include=PROGRESS),
        )
        if entry.selected is not None:
            progress.state = like(tensors.get(f"{entry.position}.best", vectors["now"]))
            progress.predictions = tensors[f"{entry.position}.predictions"].numpy()
        values, first, second = (like(vectors[kind]) for kind in KINDS)
        prefix = f"{entry.position}.{MEMORY}."
        memory = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if any(memory[name].shape != value.shape for name, value in fresh.memory.items()):
            raise ValueError("the checkpoint remembers another number of values")
        return TrainingState(progress, entry.steps, entry.steps_taken, (values, first, second), memory)


def find(job: Job, fingerprint: Mapping[str, str]) -> dict[str, CellCheckpoint]:
    """Return for each cell of a job, by id, the newest sound checkpoint that it can be resumed from, if there is one.

    Args:
        job: The job.
        fingerprint: As in `CheckpointManifest`.
    """
    saved: dict[str, CellCheckpoint] = {}
    for checkpoint in job.checkpoints:
        unfinished = checkpoint.unfinished(job.record_times)
        usable = [
            cell.id
            for cell in job.cells
            if cell.id not in saved and cell.id in unfinished and _same_fingerprint(checkpoint, cell, job, fingerprint)
        ]
        if usable:
            try:
                tensors = safetensors.torch.load(checkpoint.read_tensors())
            except (ValueError, SafetensorError):
                continue  # damaged: an older checkpoint may hold the cells too
            seconds, entries = checkpoint.manifest.seconds, checkpoint.cells
            saved |= {cell_id: CellCheckpoint(entries[cell_id], seconds, tensors) for cell_id in usable}
    return saved


def _same_fingerprint(checkpoint: StoredCheckpoint, cell: Cell, job: Job, fingerprint: Mapping[str, str]) -> bool:
    now = {**fingerprint, "code": provenance.code(cell.method), "start": _trained_start(cell, job)}
    return not provenance.differences(checkpoint.fingerprint(cell.id), now)


def _trained_start(cell: Cell, job: Job) -> str:
    """What the cell that a cell continues from was trained with; empty if there is none."""
    return "" if cell.start is None else job.trained_with[cell.start]


def resume(trainer: Trainer, saved: dict[str, CellCheckpoint]) -> float:
    """Put the cells of a new trainer that have a checkpoint where they were.

    Args:
        trainer: A trainer that has taken no step. Either all of its cells have a checkpoint after the same number of
            steps, or none has.
        saved: The checkpoints by cell; those of the trainer's cells are removed, so that their memory is freed.

    Returns:
        How many seconds the cells have trained.

    Raises:
        KeyError, ValueError, RuntimeError: The checkpoint is not theirs; the trainer is unchanged.
    """
    cell_ids = [cell.id for cell in trainer.pack.cells if cell.id in saved]
    if not cell_ids:
        return 0.0
    fresh = {state.progress.cell.id: state for state in copy_states(trainer)}
    restore(trainer, {cell_id: saved[cell_id].training_state(fresh[cell_id]) for cell_id in cell_ids})
    return max(saved.pop(cell_id).seconds for cell_id in cell_ids)


def copy_states(trainer: Trainer) -> list[TrainingState]:
    """Copy the cells of a pack to the CPU, in the pack's order: one copy from the device per block and kind."""
    optimiser, positions = trainer.optimiser, range(len(trainer.pack.cells))
    values, first, second = (
        trainer.pack.states(positions, matrices) for matrices in (None, optimiser.first, optimiser.second)
    )
    steps_taken = optimiser.steps_taken.tolist()
    return [
        TrainingState(progress, trainer.steps, steps_taken[k], (values[k], first[k], second[k]), trainer.memory(k))
        for k, progress in enumerate(trainer.progress)
    ]


@torch.no_grad()
def restore(trainer: Trainer, states: Mapping[str, TrainingState]) -> None:
    """Put cells into a new trainer, in place, so that it continues from where they were.

    Args:
        trainer: A trainer that has taken no step.
        states: The state of each of its cells, by id; all after the same number of steps.
    """
    optimiser = trainer.optimiser
    in_order = [states[cell.id] for cell in trainer.pack.cells]
    for position, cell_state in enumerate(in_order):
        for matrices, state in zip((None, optimiser.first, optimiser.second), cell_state.states, strict=True):
            trainer.pack.load(position, state, matrices)
        trainer.load_memory(position, cell_state.memory)
        trainer.progress[position] = cell_state.progress
    (trainer.steps,) = {state.steps for state in in_order}
    trainer.epoch = max(len(state.progress.metrics) for state in in_order)
    optimiser.count.fill_(trainer.steps)
    optimiser.steps_taken.copy_(torch.tensor([state.steps_taken for state in in_order]))
    optimiser.active.copy_(optimiser.steps_taken == trainer.steps)


def _cell_entry(state: TrainingState, position: int, job: Job) -> CellEntry:
    """The part of a state that is written as JSON: everything but tensors. `position`: see `_tensors`."""
    progress = state.progress
    return CellEntry(
        id=progress.cell.id,
        position=position,
        code=provenance.code(progress.cell.method),
        record_time=job.record_times.get(progress.cell.id, 0),
        steps=state.steps,
        steps_taken=state.steps_taken,
        start=_trained_start(progress.cell, job),
        **{name: getattr(progress, name) for name in PROGRESS},
    )


def _tensors(states: Sequence[TrainingState]) -> dict[str, Tensor]:
    """The part of the states that is written as tensors, by `<position>.<what>`."""
    by_name: dict[str, Tensor] = {}
    for position, cell_state in enumerate(states):
        progress = cell_state.progress
        vectors = {kind: state.flat() for kind, state in zip(KINDS, cell_state.states, strict=True)}
        vectors |= {f"{MEMORY}.{name}": value for name, value in cell_state.memory.items()}
        vectors["losses"] = torch.tensor(progress.losses, dtype=torch.float64)
        vectors["recent_steps"] = torch.from_numpy(progress.recent_steps)
        if progress.state is not None and progress.predictions is not None:
            vectors["predictions"] = torch.from_numpy(progress.predictions)
            best = progress.state.flat()
            # Often the best values are the present ones: then they are not written twice.
            vectors |= {} if torch.equal(best, vectors["now"]) else {"best": best}
        by_name |= {f"{position}.{what}": vector for what, vector in vectors.items()}
    return by_name
