"""The files of a saved adapter, as bytes. No torch: `engine.adapters.saved` makes tensors of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_bench.cell import Cell
from lora_bench.errors import MISSING, BenchError
from lora_bench.records.files import read_file
from lora_bench.records.seal import FileInfo, read_companion, unseal

SCHEMA: Literal[1] = 1
Part = Literal["adapter.safetensors", "head.safetensors"]
ADAPTER: Part = "adapter.safetensors"
HEAD: Part = "head.safetensors"
MANIFEST = "adapter.json"
FOLDER = "adapters"


class AdapterManifest(BaseModel):
    """The content of `adapter.json`: the cell, the number of outputs, and the files that belong to the adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA
    cell: Cell
    outputs: Annotated[int, Field(gt=0, le=2**16)]
    files: dict[Part, FileInfo]


def read_parts(folder: Path) -> tuple[AdapterManifest, Mapping[Part, bytes]]:
    """Read an adapter folder, and verify sizes and checksums.

    Returns:
        The manifest, and the content of the files that it names.

    Raises:
        BenchError: Exit code 3 if the folder holds no whole adapter.
    """
    try:
        manifest = AdapterManifest.model_validate_json(unseal(read_file(folder / MANIFEST)))
        return manifest, {name: read_companion(folder / name, info) for name, info in manifest.files.items()}
    except (OSError, ValueError) as error:
        raise not_whole(folder, error) from error


def not_whole(folder: Path, error: Exception) -> BenchError:
    """Return the error for a folder that holds no whole adapter."""
    line = " ".join(str(error).split())[:160]
    return BenchError(f"'{folder}' holds no whole adapter ({line}).", "Train it again.", MISSING)


def read_of_cell(results: Path, cell_id: str) -> Mapping[Part, bytes] | None:
    """Return the files of what a cell has trained; None if it is not there whole."""
    try:
        manifest, parts = read_parts(results / FOLDER / cell_id)
    except BenchError:
        return None
    return parts if manifest.cell.id == cell_id else None
