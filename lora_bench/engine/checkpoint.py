"""A trained adapter on disk: what was trained and the settings, nothing that can be made again.

`adapter.safetensors` holds the trained factors by `module.factor`, `head.safetensors` the head, `adapter.json` the
cell. Frozen factors are rebuilt: random ones from the cell's seed, bases from the backbone's weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine.backbone import Backbone
from lora_bench.engine.pack import Pack, State
from lora_bench.errors import MISSING, BenchError
from lora_bench.files import write_atomically

SCHEMA = 1


def stored_bytes(values: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> int:
    """The size of a safetensors file of these values, in their own type or another; 0 where there are none."""
    if not values:
        return 0
    cast = {name: value.to(dtype or value.dtype) for name, value in values.items()}
    size = sum(value.numel() * value.element_size() for value in cast.values())
    if size > 2**27:
        return size + len(safetensors.torch.save({name: value.new_empty(0) for name, value in cast.items()}))
    return len(safetensors.torch.save(cast))


def save(folder: Path, cell: Cell, outputs: int, state: State) -> None:
    """Write an adapter folder; the manifest last, so that a folder with one is whole."""
    if state.adapter:
        write_atomically(folder / "adapter.safetensors", safetensors.torch.save(state.adapter))
    write_atomically(folder / "head.safetensors", safetensors.torch.save(state.head))
    manifest = {"schema_version": SCHEMA, "cell": cell.model_dump(mode="json"), "outputs": outputs}
    write_atomically(folder / "adapter.json", (json.dumps(manifest, indent=2) + "\n").encode())


def read(folder: Path) -> tuple[Cell, int, State]:
    """The cell, its number of outputs, and what it trained.

    Raises:
        BenchError: exit code 3 if the folder holds no whole adapter.
    """
    try:
        manifest = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
        cell, outputs = Cell.model_validate(manifest["cell"]), int(manifest["outputs"])
        file = folder / "adapter.safetensors"
        adapter = safetensors.torch.load_file(file) if file.exists() else {}
        return cell, outputs, State(adapter, safetensors.torch.load_file(folder / "head.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, ValidationError, SafetensorError) as error:
        line = " ".join(str(error).split())[:160]
        raise BenchError(f"'{folder}' holds no whole adapter ({line}).", "Train it again.", MISSING) from error


def load(folder: Path, backbone: Backbone) -> Pack:
    """The saved cell as a pack of one over `backbone`."""
    cell, outputs, state = read(folder)
    pack = Pack([cell], backbone, outputs)
    pack.load(0, state)
    return pack
