"""Checkpoints on disk: packs in mid-training, as `DIR/states/<pack>-<steps>/{state.safetensors, manifest.json}`.

A checkpoint holds all cells of a pack, each under names of its own, so that a cell can be resumed in another pack. The
folder is written under a temporary name, flushed and renamed. The manifest is sealed and holds the checksum of the
tensors (`records.seal`): a damaged checkpoint is ignored, and the one before it is used. Two of a pack are kept.

Checkpoints of older versions have another kind of checksum, so they count as damaged. No torch.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_bench.records import files
from lora_bench.records.seal import FileInfo, read_companion, seal, unseal

SCHEMA: Literal[2] = 2
FOLDER = "states"
TENSORS: Literal["state.safetensors"] = "state.safetensors"
MANIFEST = "manifest.json"
KEPT_PER_PACK = 2
_NAME = re.compile(r"[^.].*-[0-9]{9,}", re.DOTALL)
_OWN_NAME = re.compile(r"[0-9a-f]{12}-[0-9]{9,}")  # as `pack_name` and `save` make it


class CellEntry(BaseModel):
    """What a manifest holds of a cell.

    Attributes:
        id: The cell's id.
        position: Its number in the names of the tensors.
        code: The fingerprint of the code that trains its method.
        record_time: When the record that the cell had was written, in nanoseconds; 0 if it had none.
        steps: How many steps its pack has taken.
        steps_taken: How many of them updated the cell: fewer, if it has diverged.
        diverged: Why it has diverged; None if it has not.
        selected: Its best epoch so far, from 1.
        epoch_losses: The mean loss of each epoch.
        metrics: The metrics after each epoch; NaN stays NaN.
        held_out: The metrics on the held-out rows after each epoch, if there are such rows.
        calibration: How well its probabilities are calibrated after each epoch (`engine.calibration`).
        held_out_calibration: The same on the held-out rows.
        start: What the cell that it continues from was trained with (`Record.trained_with`); empty if there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    id: str
    position: int
    code: str
    record_time: int
    steps: int
    steps_taken: int
    diverged: str | None = None
    selected: int | None = None
    epoch_losses: list[float] = []
    metrics: list[dict[str, float]] = []
    held_out: list[dict[str, float]] = []
    calibration: list[dict[str, float]] = []
    held_out_calibration: list[dict[str, float]] = []
    start: str = ""


class CheckpointManifest(BaseModel):
    """The content of `manifest.json`.

    Attributes:
        steps: How many steps the cells that have not diverged have taken.
        seconds: How long the pack has trained.
        fingerprint: What the numbers of all its cells depend on besides the cells and their code. A cell is resumed
            only where it is the same.
        cells: The cells of the pack.
        files: The size and checksum of the tensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    schema_version: Literal[2] = SCHEMA
    steps: int
    seconds: float
    fingerprint: dict[str, str]
    cells: tuple[CellEntry, ...]
    files: dict[Literal["state.safetensors"], FileInfo]


@dataclass(frozen=True)
class StoredCheckpoint(ABC):
    """A checkpoint whose manifest is sound."""

    manifest: CheckpointManifest

    @property
    def cells(self) -> dict[str, CellEntry]:
        """The cells by id."""
        return {cell.id: cell for cell in self.manifest.cells}

    def fingerprint(self, cell_id: str) -> dict[str, str]:
        """Return what the numbers of a cell depend on besides its settings."""
        entry = self.cells[cell_id]
        return {**self.manifest.fingerprint, "code": entry.code} | ({"start": entry.start} if entry.start else {})

    def unfinished(self, record_times: Mapping[str, int]) -> list[str]:
        """Return the ids of the cells that no record was written for since the checkpoint was.

        Args:
            record_times: When the records of cells were written, in nanoseconds, by id.
        """
        return [cell.id for cell in self.manifest.cells if cell.record_time == record_times.get(cell.id, 0)]

    @abstractmethod
    def read_tensors(self) -> bytes:
        """Read the file of tensors.

        Raises:
            ValueError: It cannot be read, or is not the one that was written.
        """


@dataclass(frozen=True)
class Checkpoint(StoredCheckpoint):
    """A checkpoint in a folder."""

    path: Path

    def read_tensors(self) -> bytes:
        """Read the file of tensors."""
        try:
            return read_companion(self.path / TENSORS, self.manifest.files[TENSORS], follow=False)
        except OSError as error:
            raise ValueError(error.strerror or "cannot be read") from None
        except KeyError:
            raise ValueError("the manifest lists no tensors") from None


@dataclass(frozen=True)
class SentCheckpoint(StoredCheckpoint):
    """A checkpoint whose tensors have been read."""

    tensors: bytes

    def read_tensors(self) -> bytes:
        """Return the file of tensors."""
        return self.tensors


def pack_name(token: str, cell_ids: Iterable[str]) -> str:
    """Return the name of a pack: a hash of the token of the run's owner, and of its cells."""
    return hashlib.sha256("\n".join([token, *sorted(cell_ids)]).encode()).hexdigest()[:12]


def save(results: Path, name: str, manifest: CheckpointManifest, tensors: bytes) -> Path:
    """Write a checkpoint of the pack of a name, whole or not at all, and return its folder.

    Raises:
        OSError: It could not be written; what was there before is unchanged.
    """
    path = results / FOLDER / f"{name}-{manifest.steps:09d}"
    files.write_folder(path, {TENSORS: tensors, MANIFEST: seal(manifest.model_dump_json())})
    return path


def parse_manifest(content: bytes) -> CheckpointManifest:
    """Return the manifest in the content of its file.

    Raises:
        ValueError: It is damaged, or of another version.
    """
    try:
        return CheckpointManifest.model_validate_json(unseal(content))
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None


def read_all(results: Path) -> list[Checkpoint]:
    """Return every checkpoint with a sound manifest, those with the most steps first."""
    sound = [checkpoint for path in _folders(results) if isinstance(checkpoint := _read(path), Checkpoint)]
    return sorted(sound, key=lambda checkpoint: (-checkpoint.manifest.steps, checkpoint.path.name))


def damaged_folders(results: Path) -> list[Path]:
    """Return the folders of checkpoints whose manifest is certainly damaged, or of another version.

    One that the system cannot read now may be sound, so it is not among them.
    """
    return [
        path for path in _folders(results) if _OWN_NAME.fullmatch(path.name) and isinstance(_read(path), ValueError)
    ]


def _folders(results: Path) -> list[Path]:
    """Every folder with the name of a checkpoint; links are left out."""
    return [path for path in files.without_links(results / FOLDER) if _NAME.fullmatch(path.name) and path.is_dir()]


def _read(path: Path) -> Checkpoint | ValueError | None:
    """A checkpoint, or what is wrong with it; None if the system cannot read it."""
    try:
        return Checkpoint(parse_manifest(files.read_file(path / MANIFEST, follow=False)), path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ValueError("there is no manifest")
    except OSError:
        return None
    except ValueError as error:
        return error


def remove(path: Path) -> None:
    """Remove a checkpoint. A file of another name was not written here: it stays, and the folder with it."""
    for name in (MANIFEST, TENSORS):  # in this order: without its manifest the checkpoint does not count
        files.remove(path / name)
    files.remove_empty(path)


def newest_by_cell(checkpoints: Iterable[Checkpoint], record_times: Mapping[str, int]) -> dict[str, Checkpoint]:
    """Return for each unfinished cell, by id, the first checkpoint that holds it.

    Args:
        checkpoints: Checkpoints as `read_all` sorts them.
        record_times: As in `StoredCheckpoint.unfinished`.
    """
    newest: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        for cell_id in checkpoint.unfinished(record_times):
            newest.setdefault(cell_id, checkpoint)
    return newest


def prune(results: Path, cell_ids: Collection[str], record_times: Mapping[str, int]) -> None:
    """Remove the checkpoints that are no longer needed.

    A checkpoint is needed if a cell of it has no record yet. Of the checkpoints whose unfinished cells are all among
    `cell_ids`, only the newest `KEPT_PER_PACK` are kept.

    Args:
        results: The results folder.
        cell_ids: The cells that this process trains.
        record_times: As in `StoredCheckpoint.unfinished`.
    """
    kept = 0
    for checkpoint in read_all(results):
        unfinished = checkpoint.unfinished(record_times)
        if set(unfinished) <= set(cell_ids):
            kept += bool(unfinished)
            if not unfinished or kept > KEPT_PER_PACK:
                remove(checkpoint.path)
