"""A trained adapter on disk: the trained values and the settings, nothing that can be recomputed.

`adapter.safetensors` holds the trained factors by `module.factor`, `head.safetensors` the classification head.
`adapter.json` holds the cell and the checksums of the other files, and is sealed (`records.seal`). Frozen factors are
rebuilt: random ones from the cell's seed, bases from the backbone's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.errors import MISSING, BenchError
from lora_bench.records.files import read_file, write_atomically
from lora_bench.records.seal import FileInfo, describe, read_companion, seal, unseal

SCHEMA: Literal[1] = 1
Part = Literal["adapter.safetensors", "head.safetensors"]
ADAPTER: Part = "adapter.safetensors"
HEAD: Part = "head.safetensors"
MANIFEST = "adapter.json"


def stored_bytes(values: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> int:
    """The size of a safetensors file of these values; 0 if there are none.

    Args:
        values: The values by name.
        dtype: The type to store them in; by default their own.
    """
    if not values:
        return 0
    cast = {name: value.to(dtype or value.dtype) for name, value in values.items()}
    size = sum(value.numel() * value.element_size() for value in cast.values())
    if size > 2**27:  # instead of a copy of a large file: its values, and the header of a file without values
        return size + len(safetensors.torch.save({name: value.new_empty(0) for name, value in cast.items()}))
    return len(safetensors.torch.save(cast))


class AdapterManifest(BaseModel):
    """The content of `adapter.json`: the cell, the number of outputs, and the files that belong to the adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA
    cell: Cell
    outputs: Annotated[int, Field(gt=0, le=2**16)]
    files: dict[Part, FileInfo]


def contents(cell: Cell, outputs: int, state: State) -> dict[str, bytes]:
    """Return the files of an adapter folder by name, the manifest last."""
    parts: dict[str, bytes] = {HEAD: safetensors.torch.save(state.head)}
    if state.adapter:
        parts[ADAPTER] = safetensors.torch.save(state.adapter)
    manifest = AdapterManifest.model_validate({"cell": cell, "outputs": outputs, "files": describe(parts)})
    return {**parts, MANIFEST: seal(manifest.model_dump_json(indent=2))}


def save(folder: Path, cell: Cell, outputs: int, state: State) -> None:
    """Write an adapter folder. The manifest is written last, so that a folder with a manifest is complete."""
    for name, content in contents(cell, outputs, state).items():
        write_atomically(folder / name, content)


def read(folder: Path) -> tuple[Cell, int, State]:
    """Read an adapter folder, and verify sizes and checksums.

    Returns:
        The cell, its number of outputs, and what it trained.

    Raises:
        BenchError: Exit code 3 if the folder holds no whole adapter.
    """
    try:
        manifest = AdapterManifest.model_validate_json(unseal(read_file(folder / MANIFEST)))
        parts = {
            name: safetensors.torch.load(read_companion(folder / name, info)) for name, info in manifest.files.items()
        }
        return manifest.cell, manifest.outputs, State(parts.get(ADAPTER, {}), parts[HEAD])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        line = " ".join(str(error).split())[:160]
        raise BenchError(f"'{folder}' holds no whole adapter ({line}).", "Train it again.", MISSING) from error


def load(folder: Path, backbone: Backbone) -> Pack:
    """The saved cell as a pack of one over `backbone`.

    Raises:
        BenchError: Exit code 3 if the folder holds no whole adapter, or one of another model.
    """
    cell, outputs, state = read(folder)
    pack = Pack([cell], backbone, outputs)
    if _shapes(state) != _shapes(pack.state(0)):
        raise BenchError(f"'{folder}' is not of this model.", "Give the model that it was trained on.", MISSING)
    pack.load(0, state)
    return pack


def _shapes(state: State) -> list[dict[str, torch.Size]]:
    return [{name: part.shape for name, part in parts.items()} for parts in (state.adapter, state.head)]
