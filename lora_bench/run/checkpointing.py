"""A pack in training is saved after an epoch, in the middle of a long one, and when a signal ends it; and goes on.

Saving takes a copy from the device and a file; it comes at most every `EVERY` seconds, and takes at most a part in
`SHARE` of the time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lora_bench import provenance
from lora_bench.callbacks import Callback
from lora_bench.cell import Cell
from lora_bench.engine.trainer import Trainer
from lora_bench.run import checkpoints, snapshot
from lora_bench.run.checkpoints import Place
from lora_bench.run.snapshot import Snapshot

EVERY = 30.0  # seconds between two epochs that are saved
WITHIN = 300.0  # seconds after which an epoch is saved in its middle
SHARE = 20


class Keeper:
    """Saves one pack. `ended`: its cells that have diverged and left it; `seconds`: how long it has trained before."""

    def __init__(self, place: Place, cells: Sequence[Cell], common: Mapping[str, str], seconds: float = 0.0) -> None:
        self.place, self.cells, self.common = place, tuple(cells), dict(common)
        self.name = checkpoints.name_of(place.token, [cell.id for cell in cells])
        self.ended: list[Snapshot] = []
        self.began = time.monotonic() - seconds
        self._saved, self._cost, self._warned = time.monotonic(), 0.0, False

    @property
    def seconds(self) -> float:
        """How long the pack has trained, without interruptions."""
        return time.monotonic() - self.began

    def should_pause(self) -> bool:
        """Whether to pause now."""
        self.place.guard()
        return self.place.stopper.asked or self._since() > max(WITHIN, SHARE * self._cost)

    def save_if_due(self, trainer: Trainer) -> None:
        """Save if it is time; KeyboardInterrupt when a signal has come. A pack that has ended is published instead."""
        self.place.guard()
        if trainer.finished:
            return
        if self.place.stopper.asked or self._since() >= max(EVERY, SHARE * self._cost):
            self.save(trainer)
        if self.place.stopper.asked:
            raise KeyboardInterrupt

    def _since(self) -> float:
        return time.monotonic() - self._saved

    def save(self, trainer: Trainer) -> None:
        """Write the pack. A failure to write is reported once, and training goes on."""
        start = time.monotonic()
        taken = [*snapshot.take(trainer), *self.ended]
        manifest = checkpoints.Manifest(
            steps=trainer.steps, seconds=self.seconds, fingerprint=self.common,
            cells=tuple(
                snapshot.saved_cell(each, position, provenance.code(cell.method), self.place.written.get(cell.id, 0))
                for position, (each, cell) in enumerate((each, each.progress.cell) for each in taken)
            ),
        )  # fmt: skip
        try:
            checkpoints.save(self.place.results, self.name, manifest, safetensors.torch.save(snapshot.tensors(taken)))
            checkpoints.prune(self.place.results, {cell.id for cell in self.cells}, self.place.written)
        except OSError as error:
            if not self._warned:
                self.place.warn(f"A pack in training cannot be saved ({error.strerror}); it trains on.")
            self._warned = True
        self._saved = time.monotonic()
        self._cost = self._saved - start


class CheckpointCallback(Callback):
    """Pauses and saves one trainer as its keeper decides."""

    def __init__(self, keeper: Keeper, trainer: Trainer) -> None:
        self._keeper, self._trainer = keeper, trainer

    def should_pause(self) -> bool:
        """Whether the pack is to be saved within the epoch, or a signal has come."""
        return self._keeper.should_pause()

    def on_safe_point(self) -> None:
        """Save the pack if it is due."""
        self._keeper.save_if_due(self._trainer)


@dataclass(frozen=True)
class Found:
    """A cell that was saved: its folder, and all values of that folder by name."""

    folder: checkpoints.Folder
    values: Mapping[str, Tensor]

    def rebuilt(self, fresh: Snapshot) -> Snapshot:
        """The cell as it was saved; `fresh` is the same cell before its first step."""
        return snapshot.rebuild(self.folder.cells[fresh.progress.cell.id], self.values, fresh)


def find(place: Place, cells: Sequence[Cell], common: Mapping[str, str]) -> dict[str, Found]:
    """For each cell the newest whole folder that it can go on from, by id."""
    found: dict[str, Found] = {}
    for folder in checkpoints.folders(place.results):
        wanted = [cell.id for cell in cells if cell.id not in found and _continues(place, folder, cell, common)]
        if wanted:
            try:
                values = safetensors.torch.load(folder.values())
            except (ValueError, SafetensorError):
                continue  # the generation before it is looked at next
            found |= {cell: Found(folder, values) for cell in wanted}
    return found


def _continues(place: Place, folder: checkpoints.Folder, cell: Cell, common: Mapping[str, str]) -> bool:
    if cell.id not in folder.alive(place.written):
        return False
    return not provenance.differences(folder.fingerprint(cell.id), {**common, "code": provenance.code(cell.method)})


def start(trainer: Trainer, found: dict[str, Found]) -> float:
    """Let a new trainer go on from what was found of its cells, which `found` gives up; the seconds that they trained.

    Raises:
        KeyError, ValueError, RuntimeError: what was found is not theirs; the trainer is as it was.
    """
    own = [cell.id for cell in trainer.pack.cells if cell.id in found]
    if not own:
        return 0.0
    fresh = {each.progress.cell.id: each for each in snapshot.take(trainer)}
    snapshot.restore(trainer, {cell: found[cell].rebuilt(fresh[cell]) for cell in own})
    return max(found.pop(cell).folder.manifest.seconds for cell in own)
