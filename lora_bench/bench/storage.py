"""The bytes that a trained adapter takes on disk with RoBERTa-base's shapes, measured on written files.

`python -m lora_bench.bench.storage` prints the table.

The weights are random and the values untrained, neither of which changes the size of a file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import RobertaConfig, RobertaModel

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder.backbone import Backbone

METHODS = ("lora", "mini", "xs", "cora")
SETTINGS: dict[str, Any] = {"rank": 16, "a": 64, "b": 64, "alpha": 16.0, "targets": "attention+dense"}


class StoredSizes(NamedTuple):
    """A method's trained values, and the bytes of its adapter's and its head's file in 32 and in 16 bits."""

    method: str
    values: int
    adapter: int
    adapter_fp16: int
    head: int
    head_fp16: int


def base_shape(layers: int = 12) -> Backbone:
    """Return an encoder with the sizes of FacebookAI/roberta-base.

    The vocabulary is small, because embeddings are not adapted.
    """
    config = RobertaConfig(vocab_size=1000, max_position_embeddings=514, type_vocab_size=1, num_hidden_layers=layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backbone(RobertaModel(config, add_pooling_layer=False), torch.device("cpu"), "float32")


def measure(backbone: Backbone, names: Sequence[str] = METHODS) -> Iterator[StoredSizes]:
    """Yield the sizes of the files of a cell of each method, for two classes."""
    for name in names:
        recipe = methods.get(name)
        settings = {key: SETTINGS.get(key, recipe.defaults[key]) for key in recipe.parameters}
        cell = Cell(model="roberta-base", data="none", task="sst2", method=name, **settings)
        pack = Pack([cell], backbone, 2)
        state = pack.state(0)
        full, half = (_file_sizes(cell, state, dtype) for dtype in (torch.float32, torch.float16))
        yield StoredSizes(name, pack.adapter_params(0), full[0], half[0], full[1], half[1])


def _file_sizes(cell: Cell, state: State, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes of the adapter's and the head's file of a saved cell."""
    cast = State(*({name: value.to(dtype) for name, value in part.items()} for part in (state.adapter, state.head)))
    with tempfile.TemporaryDirectory() as folder:
        saved.save(Path(folder), cell, 2, cast)
        names = ("adapter.safetensors", "head.safetensors")
        adapter, head = (Path(folder, name).stat().st_size for name in names)
        return adapter, head


def markdown_table(rows: Sequence[StoredSizes]) -> str:
    """Return the sizes as Markdown; the ratios are LoRA's bytes over the method's, LoRA being the first row."""
    lora = rows[0]
    lines = [
        "| method | values | fp32 | fp16 | LoRA / it | with the head, fp32 | LoRA / it |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        adapter_ratio = lora.adapter / row.adapter
        ratio_with_head = (lora.adapter + lora.head) / (row.adapter + row.head)
        sizes = f"{row.values:,} | {row.adapter:,} | {row.adapter_fp16:,} | {adapter_ratio:.1f}"
        lines.append(f"| `{row.method}` | {sizes} | {row.adapter + row.head:,} | {ratio_with_head:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table(list(measure(base_shape()))))
