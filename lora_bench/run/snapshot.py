"""A cell in mid-training: everything that its next step depends on, taken from one pack and restored in another.

Randomness is a function of (seed, epoch) and (seed, step), so the values, the optimiser's moments and the number of
steps are enough. On a CPU, a cell that is resumed among the same cells ends with the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_bench.engine.adapters.pack import State
from lora_bench.engine.progress import Progress
from lora_bench.engine.trainer import Trainer
from lora_bench.run.checkpoints import SavedCell

# The names in the file of what a snapshot's `states` hold: the values, and Adam's first and second moments.
KINDS = ("now", "first", "second")


@dataclass(frozen=True)
class Snapshot:
    """One cell between two steps.

    Attributes:
        progress: What is known of the cell.
        steps: How many steps its pack has taken.
        steps_taken: How many of them updated the cell: fewer, if it has diverged.
        states: What it trains, and the first and second moments of that.
    """

    progress: Progress
    steps: int
    steps_taken: int
    states: tuple[State, State, State]


def take(trainer: Trainer) -> list[Snapshot]:
    """Copy the cells of a pack to the CPU, in the pack's order: one copy from the device per block and kind."""
    optimiser, positions = trainer.optimiser, range(len(trainer.pack.cells))
    values, first, second = (
        trainer.pack.states(positions, matrices) for matrices in (None, optimiser.first, optimiser.second)
    )
    steps_taken = optimiser.steps_taken.tolist()
    return [
        Snapshot(progress, trainer.steps, steps_taken[k], (values[k], first[k], second[k]))
        for k, progress in enumerate(trainer.progress)
    ]


@torch.no_grad()
def restore(trainer: Trainer, snapshots: Mapping[str, Snapshot]) -> None:
    """Put cells into a new trainer, in place, so that it continues from where they were.

    Args:
        trainer: A trainer that has taken no step.
        snapshots: The snapshot of each of its cells, by id; all after the same number of steps.
    """
    optimiser = trainer.optimiser
    in_order = [snapshots[cell.id] for cell in trainer.pack.cells]
    for position, snapshot in enumerate(in_order):
        for matrices, state in zip((None, optimiser.first, optimiser.second), snapshot.states, strict=True):
            trainer.pack.load(position, state, matrices)
        trainer.progress[position] = snapshot.progress
    (trainer.steps,) = {snapshot.steps for snapshot in in_order}
    trainer.epoch = max(len(snapshot.progress.metrics) for snapshot in in_order)
    optimiser.count.fill_(trainer.steps)
    optimiser.steps_taken.copy_(torch.tensor([snapshot.steps_taken for snapshot in in_order]))
    optimiser.active.copy_(optimiser.steps_taken == trainer.steps)


def saved_cell(snapshot: Snapshot, position: int, code: str, since: int) -> SavedCell:
    """The part of a snapshot that is written as JSON: everything but tensors.

    Args:
        snapshot: The cell.
        position: The number of the cell in the names of its tensors.
        code: The fingerprint of the code of its method.
        since: When the record was written that the cell has, in nanoseconds; 0 if it has none.
    """
    progress = snapshot.progress
    return SavedCell(
        id=progress.cell.id,
        position=position,
        code=code,
        since=since,
        steps=snapshot.steps,
        lived=snapshot.steps_taken,  # the field's name in the file
        diverged=progress.diverged,
        selected=progress.selected,
        epoch_losses=tuple(progress.epoch_losses),
        metrics=tuple(progress.metrics),
        held_out=tuple(progress.held_out),
    )


def tensors(snapshots: Sequence[Snapshot]) -> dict[str, Tensor]:
    """The part of the snapshots that is written as tensors, by `<position>.<what>`: all vectors but `recent_steps`."""
    by_name: dict[str, Tensor] = {}
    for position, snapshot in enumerate(snapshots):
        progress = snapshot.progress
        vectors = {kind: state.flat() for kind, state in zip(KINDS, snapshot.states, strict=True)}
        vectors["losses"] = torch.tensor(progress.losses, dtype=torch.float64)
        vectors["recent_steps"] = torch.from_numpy(progress.recent_steps)
        if progress.state is not None and progress.predictions is not None:
            vectors["predictions"] = torch.from_numpy(progress.predictions)
            best = progress.state.flat()
            # Often the best values are the present ones: then they are not written twice.
            vectors |= {} if torch.equal(best, vectors["now"]) else {"best": best}
        by_name |= {f"{position}.{what}": vector for what, vector in vectors.items()}
    return by_name


def rebuild(saved: SavedCell, by_name: Mapping[str, Tensor], fresh: Snapshot) -> Snapshot:
    """The snapshot of a cell from what was written.

    Args:
        saved: What `saved_cell` returned.
        by_name: What `tensors` returned.
        fresh: A snapshot of the same cell before its first step, for names and shapes.

    Raises:
        KeyError, ValueError, RuntimeError: The tensors are not this cell's.
    """
    vectors = {what: by_name[f"{saved.position}.{what}"] for what in (*KINDS, "losses")}
    like = fresh.states[0].like
    progress = Progress(
        cell=fresh.progress.cell,
        losses=vectors["losses"].tolist(),
        epoch_losses=list(saved.epoch_losses),
        metrics=list(saved.metrics),
        held_out=list(saved.held_out),
        diverged=saved.diverged,
        selected=saved.selected,
    )
    if (recent := by_name.get(f"{saved.position}.recent_steps")) is not None:  # not in files of older versions
        progress.recent_steps = recent.numpy()
    if saved.selected is not None:
        progress.state = like(by_name.get(f"{saved.position}.best", vectors["now"]))
        progress.predictions = by_name[f"{saved.position}.predictions"].numpy()
    values, first, second = (like(vectors[kind]) for kind in KINDS)
    return Snapshot(progress, saved.steps, saved.lived, (values, first, second))
