"""The sizes of encoders, from their config.json. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lora_bench.files import is_folder
from lora_bench.methods.recipe import Shape
from lora_bench.models import location

JOINED = ("query", "key", "value")  # one product makes them


@dataclass(frozen=True)
class Geometry:
    """The sizes of an encoder."""

    layers: int
    hidden: int
    inner: int
    heads: int
    embeddings: int  # rows of all tables

    @property
    def linear(self) -> int:
        """Values of all linear weights of the layers."""
        return self.layers * self.hidden * (4 * self.hidden + 2 * self.inner)

    def adapted(self, targets: str | None) -> dict[str, Shape]:
        """The weights that a target set adapts in one layer; an own list of names counts as `attention`."""
        square = Shape(self.hidden, self.hidden)
        up, down = Shape(self.inner, self.hidden), Shape(self.hidden, self.inner)
        every = dict.fromkeys((*JOINED, "attended"), square) | {"widened": up, "narrowed": down}
        if targets is None:
            return {}
        if targets == "attention+dense":
            return every
        chosen = {"kv+ffn": ("key", "value", "narrowed"), "qv": ("query", "value")}.get(targets, JOINED)
        return {place: every[place] for place in chosen}


@lru_cache(maxsize=64)
def geometry(model: str) -> Geometry | None:
    """The sizes of a model, from its config.json in the directory or the Hub's cache; None if it is not there."""
    folder = Path(location(model))
    path: object = folder / "config.json"
    if not is_folder(folder):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(model, "config.json")
    try:
        content = json.loads(Path(str(path)).read_text(encoding="utf-8"))
        hidden = int(content.get("hidden_size") or content["dim"])
        sizes = Geometry(
            int(content.get("num_hidden_layers") or content["n_layers"]), hidden,
            int(content.get("intermediate_size") or content.get("hidden_dim") or 4 * hidden),
            int(content.get("num_attention_heads") or content["n_heads"]),
            int(content["vocab_size"]) + int(content["max_position_embeddings"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return sizes if all(0 < size < 2**31 for size in vars(sizes).values()) else None
