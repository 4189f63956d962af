"""Packs in mid-training on disk: `DIR/states/<pack>-<steps>/{state.safetensors, manifest.json}`.

One folder holds all cells of a pack, each under its own names, so that a cell can go on in another pack. It is written
beside its place, flushed and renamed, the manifest last; two generations are kept. The manifest holds the size and the
SHA-256 of the values and ends with its own, so that no truncation and no flipped bit goes unseen: a folder that is not
whole counts as none, and the generation before it is taken. No torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_bench.records import files
from lora_bench.run.signals import Stopper

SCHEMA: Literal[1] = 1
VALUES, MANIFEST = "state.safetensors", "manifest.json"
GENERATIONS = 2
_CHECK = ',"check":"{}"}}\n'
_TAIL = len(_CHECK.format("0" * 64))
_NAME = re.compile(r"[^.].*-[0-9]{9,}", re.DOTALL)
_OURS = re.compile(r"[0-9a-f]{12}-[0-9]{9,}")  # as `name_of` and `save` make it


@dataclass(frozen=True)
class Place:
    """Where a process saves. `token` is its lease's, `guard` raises LeaseLostError when that is gone.

    `written`: when the cells' records were written (nanoseconds), if they have one. `warn` tells the user.
    """

    results: Path
    token: str
    written: Mapping[str, int]
    stopper: Stopper
    guard: Callable[[], None]
    warn: Callable[[str], None]


class SavedCell(BaseModel):
    """What is known of a cell besides values. `steps` taken; `lived` of them while its loss and gradient were finite.

    `position` is its number in the names of the values. Metrics and losses are by epoch; NaN is kept. `code` is that
    of its method, as in `fingerprint`; `since` when the record was written that the cell had (0: none).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    id: str
    position: int
    code: str
    since: int
    steps: int
    lived: int
    diverged: str | None = None
    selected: int | None = None
    epoch_losses: tuple[float, ...] = ()
    metrics: tuple[dict[str, float], ...] = ()
    held_out: tuple[dict[str, float], ...] = ()


class Manifest(BaseModel):
    """What a folder holds. `steps`: those of its cells that have not diverged. `seconds`: training so far.

    `fingerprint`: what numbers depend on besides the cell and its code, by field; a cell goes on only under the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    schema_version: Literal[1] = SCHEMA
    steps: int
    seconds: float
    fingerprint: dict[str, str]
    cells: tuple[SavedCell, ...]
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Folder:
    """A sound manifest and where it lies."""

    path: Path
    manifest: Manifest

    @property
    def cells(self) -> dict[str, SavedCell]:
        """The cells by id."""
        return {cell.id: cell for cell in self.manifest.cells}

    def fingerprint(self, cell: str) -> dict[str, str]:
        """What the cell's numbers so far depend on."""
        return {**self.manifest.fingerprint, "code": self.cells[cell].code}

    def alive(self, written: Mapping[str, int]) -> list[str]:
        """The cells that are still to end: their record, if any, is the one that they had. `written`: as `since`."""
        return [cell.id for cell in self.manifest.cells if cell.since == written.get(cell.id, 0)]

    def values(self) -> bytes:
        """The file of values.

        Raises:
            ValueError: it is not the one that was written.
        """
        try:
            content = files.read_file(self.path / VALUES, follow=False)
        except OSError as error:
            raise ValueError(error.strerror or "cannot be read") from None
        if len(content) != self.manifest.size or hashlib.sha256(content).hexdigest() != self.manifest.sha256:
            raise ValueError("the saved values are damaged")
        return content


def name_of(token: str, cells: Iterable[str]) -> str:
    """The name of a pack: of whose it is and which cells it has."""
    return hashlib.sha256("\n".join([token, *sorted(cells)]).encode()).hexdigest()[:12]


def save(results: Path, name: str, manifest: Manifest, values: bytes) -> Path:
    """Keep a pack; the folder counts from the rename on.

    Raises:
        OSError: it could not be written; what was there before is as it was.
    """
    told = manifest.model_copy(update={"size": len(values), "sha256": hashlib.sha256(values).hexdigest()})
    path = results / "states" / f"{name}-{manifest.steps:09d}"
    files.write_folder(path, {VALUES: values, MANIFEST: encode(told)})
    return path


def encode(manifest: Manifest) -> bytes:
    """The manifest as JSON whose last field is the SHA-256 of all before it."""
    body = manifest.model_dump_json()[:-1].encode()
    return body + _CHECK.format(hashlib.sha256(body).hexdigest()).encode()


def decode(content: bytes) -> Manifest:
    """The manifest.

    Raises:
        ValueError: it is not what was written, or of another version.
    """
    body, tail = content[:-_TAIL], content[-_TAIL:]
    if not body or tail != _CHECK.format(hashlib.sha256(body).hexdigest()).encode():
        raise ValueError("the manifest is damaged")
    try:
        return Manifest.model_validate_json(body + b"}")
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None


def folders(results: Path) -> list[Folder]:
    """Every folder with a sound manifest, those with the most steps first."""
    sound = [folder for path in _paths(results) if isinstance(folder := _read(path), Folder)]
    return sorted(sound, key=lambda folder: (-folder.manifest.steps, folder.path.name))


def damaged(results: Path) -> list[Path]:
    """Every folder of a pack whose manifest is certainly not whole; one that cannot be read now is not among them."""
    return [path for path in _paths(results) if _OURS.fullmatch(path.name) and isinstance(_read(path), ValueError)]


def _paths(results: Path) -> list[Path]:
    """Every folder with a pack's name, links left out."""
    return [path for path in files.without_links(results / "states") if _NAME.fullmatch(path.name) and path.is_dir()]


def _read(path: Path) -> Folder | ValueError | None:
    """A pack's folder, or what is wrong with it; None if the system cannot read it."""
    try:
        return Folder(path, decode(files.read_file(path / MANIFEST, follow=False)))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ValueError("there is no manifest")
    except OSError:
        return None
    except ValueError as error:
        return error


def remove(path: Path) -> None:
    """Remove a pack's folder; a file of another name, which is not ours, stays, and the folder with it."""
    for name in (MANIFEST, VALUES):  # in this order: without its manifest it counts no more
        files.remove(path / name)
    files.remove_empty(path)


def newest(found: Iterable[Folder], written: Mapping[str, int]) -> dict[str, Folder]:
    """For each cell that is still to end the folder with the most steps."""
    best: dict[str, Folder] = {}
    for folder in found:
        for cell in folder.alive(written):
            best.setdefault(cell, folder)
    return best


def prune(results: Path, own: Collection[str], written: Mapping[str, int]) -> None:
    """Remove the folders whose cells have ended or are this process's (`own`), of those all but the newest."""
    kept = 0
    for folder in folders(results):
        alive = folder.alive(written)
        if set(alive) <= set(own):
            kept += bool(alive)
            if not alive or kept > GENERATIONS:
                remove(folder.path)
