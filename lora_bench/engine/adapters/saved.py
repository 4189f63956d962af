"""A trained adapter on disk: the trained values and the settings, nothing that can be recomputed.

`adapter.safetensors` holds the trained factors by `module.factor`, `head.safetensors` the classification head.
`adapter.json` holds the cell and the checksums of the other files, and is sealed (`records.seal`). Frozen factors are
rebuilt: random ones from the cell's seed, bases from the backbone's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.errors import MISSING, BenchError
from lora_bench.records.adapters import ADAPTER, HEAD, MANIFEST, AdapterManifest, Part, not_whole, read_parts
from lora_bench.records.files import write_atomically
from lora_bench.records.seal import describe, seal


def stored_bytes(values: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> int:
    """The size of a safetensors file of these values; 0 if there are none.

    Args:
        values: The values by name.
        dtype: The type to store them in; by default their own.
    """
    if not values:
        return 0
    # Integers, such as the numbers of VB-LoRA's vectors, keep their type.
    cast = {name: value.to(dtype) if dtype and value.is_floating_point() else value for name, value in values.items()}
    size = sum(value.numel() * value.element_size() for value in cast.values())
    if size > 2**27:  # instead of a copy of a large file: its values, and the header of a file without values
        return size + len(safetensors.torch.save({name: value.new_empty(0) for name, value in cast.items()}))
    return len(safetensors.torch.save(cast))


def compacted(cell: Cell, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the file of an adapter holds: the factors, or the parts that the method stores of them."""
    recipe, parts = methods.of(cell), dict[str, Tensor]()
    for name, value in adapter.items():
        by_kind = recipe.compact(cell, name.rpartition(".")[2], value)
        parts |= {f"{name}:{kind}" if kind else name: part.contiguous() for kind, part in by_kind.items()}
    return parts


def restored(cell: Cell, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the factors of which `compacted` has returned these parts.

    Raises:
        KeyError: A part is missing.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, part in parts.items():
        name, _, kind = key.partition(":")
        by_name.setdefault(name, {})[kind] = part
    recipe = methods.of(cell)
    return {name: recipe.restore(cell, name.rpartition(".")[2], kinds) for name, kinds in by_name.items()}


def contents(cell: Cell, outputs: int, state: State) -> dict[str, bytes]:
    """Return the files of an adapter folder by name, the manifest last."""
    parts: dict[str, bytes] = {HEAD: safetensors.torch.save(state.head)}
    if state.adapter:
        parts[ADAPTER] = safetensors.torch.save(compacted(cell, state.adapter))
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
    manifest, parts = read_parts(folder)
    try:
        return manifest.cell, manifest.outputs, decode(manifest.cell, parts)
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise not_whole(folder, error) from error


def decode(cell: Cell, parts: Mapping[Part, bytes]) -> State:
    """Return what a cell has trained from the files of its adapter.

    Args:
        cell: The cell, or one that continues from it.
        parts: The files.

    Raises:
        KeyError, SafetensorError: They are not whole.
    """
    tensors = {name: safetensors.torch.load(content) for name, content in parts.items()}
    return State(restored(cell, tensors.get(ADAPTER, {})), tensors[HEAD])


def load(folder: Path, backbone: Backbone) -> Pack:
    """The saved cell as a pack of one over `backbone`.

    Raises:
        BenchError: Exit code 3 if the folder holds no whole adapter, or one of another model.
    """
    cell, outputs, state = read(folder)
    pack = Pack([cell], backbone, outputs)
    if state.shapes != pack.state(0).shapes:
        raise BenchError(f"'{folder}' is not of this model.", "Give the model that it was trained on.", MISSING)
    pack.load(0, state)
    return pack
