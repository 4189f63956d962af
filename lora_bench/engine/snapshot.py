"""A cell in mid-training: all that its next step depends on, taken from one pack and put into another.

Randomness is a function of (seed, epoch) and (seed, step), so the values, the optimiser's moments and the number of
steps are enough: on a CPU and in the same company a cell goes on bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_bench.engine.adapters.pack import State
from lora_bench.engine.progress import Progress
from lora_bench.engine.trainer import Trainer
from lora_bench.resume.states import SavedCell

KINDS = ("now", "first", "second")


@dataclass(frozen=True)
class Snapshot:
    """One cell between two steps. `states`: what trains, and its first and second moments."""

    progress: Progress
    steps: int
    lived: int
    states: tuple[State, State, State]


def take(trainer: Trainer) -> list[Snapshot]:
    """The cells of a pack, in its order, on the CPU: one copy from the device a block and kind."""
    optimiser, places = trainer.optimiser, range(len(trainer.pack.cells))
    kinds = [trainer.pack.states(places, of) for of in (None, optimiser.first, optimiser.second)]
    lived = optimiser.lived.tolist()
    return [
        Snapshot(progress, trainer.steps, lived[place], (kinds[0][place], kinds[1][place], kinds[2][place]))
        for place, progress in enumerate(trainer.progress)
    ]


@torch.no_grad()
def restore(trainer: Trainer, snapshots: Mapping[str, Snapshot]) -> None:
    """Let a new trainer go on from where its cells were; they have taken equally many steps. In place."""
    optimiser, own = trainer.optimiser, [snapshots[cell.id] for cell in trainer.pack.cells]
    for place, snapshot in enumerate(own):
        for into, state in zip((None, optimiser.first, optimiser.second), snapshot.states, strict=True):
            trainer.pack.load(place, state, into)
        trainer.progress[place] = snapshot.progress
    (trainer.steps,) = {snapshot.steps for snapshot in own}
    trainer.epoch = max(len(snapshot.progress.metrics) for snapshot in own)
    optimiser.count.fill_(trainer.steps)
    optimiser.lived.copy_(torch.tensor([snapshot.lived for snapshot in own]))
    optimiser.alive.copy_(optimiser.lived == trainer.steps)


def facts(snapshot: Snapshot, position: int, code: str, since: int) -> SavedCell:
    """What is written of a cell besides values."""
    progress = snapshot.progress
    return SavedCell(
        id=progress.cell.id, position=position, code=code, since=since, steps=snapshot.steps, lived=snapshot.lived,
        diverged=progress.diverged, selected=progress.selected, epoch_losses=tuple(progress.epoch_losses),
        metrics=tuple(progress.metrics), held_out=tuple(progress.held_out),
    )  # fmt: skip


def values(snapshots: Sequence[Snapshot]) -> dict[str, Tensor]:
    """All values, as vectors by `<position>.<what>`."""
    found: dict[str, Tensor] = {}
    for position, snapshot in enumerate(snapshots):
        progress = snapshot.progress
        own = {kind: state.flat() for kind, state in zip(KINDS, snapshot.states, strict=True)}
        own["losses"] = torch.tensor(progress.losses, dtype=torch.float64)
        if progress.state is not None and progress.predictions is not None:
            own["predictions"] = torch.from_numpy(progress.predictions)
            best = progress.state.flat()
            own |= {} if torch.equal(best, own["now"]) else {"best": best}
        found |= {f"{position}.{what}": vector for what, vector in own.items()}
    return found


def rebuilt(saved: SavedCell, values: Mapping[str, Tensor], fresh: Snapshot) -> Snapshot:
    """A cell as it was kept; `fresh` is the same cell before its first step, for names and shapes.

    Raises:
        KeyError, ValueError, RuntimeError: the values are not this cell's.
    """
    own = {what: values[f"{saved.position}.{what}"] for what in (*KINDS, "losses")}
    like = fresh.states[0].like
    progress = Progress(
        fresh.progress.cell, own["losses"].tolist(), list(saved.epoch_losses), list(saved.metrics),
        list(saved.held_out), saved.diverged, saved.selected,
    )  # fmt: skip
    if saved.selected is not None:
        progress.state = like(values.get(f"{saved.position}.best", own["now"]))
        progress.predictions = values[f"{saved.position}.predictions"].numpy()
    return Snapshot(progress, saved.steps, saved.lived, (like(own["now"]), like(own["first"]), like(own["second"])))
