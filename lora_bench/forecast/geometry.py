"""The sizes of encoders, read from their config.json. Does not need torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lora_bench.methods.recipe import Shape
from lora_bench.models import location
from lora_bench.records.files import is_folder

JOINED = ("query", "key", "value")  # the engine computes them by one product


@dataclass(frozen=True)
class Geometry:
    """The sizes of an encoder.

    Attributes:
        layers: the number of layers.
        hidden: the width of the hidden states.
        inner: the width of the feed-forward part.
        heads: the number of attention heads.
        embeddings: the rows of all embedding tables together.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    embeddings: int

    @property
    def linear(self) -> int:
        """The number of values in the linear weights of all layers."""
        return self.layers * self.hidden * (4 * self.hidden + 2 * self.inner)

    def adapted(self, targets: str | None) -> dict[str, Shape]:
        """Return the weights of one layer that a target set adapts, by role.

        A list of module names is counted like the target set `attention`.
        """
        square = Shape(self.hidden, self.hidden)
        up, down = Shape(self.inner, self.hidden), Shape(self.hidden, self.inner)
        every = dict.fromkeys((*JOINED, "attn_out"), square) | {"ffn_up": up, "ffn_down": down}
        if targets is None:
            return {}
        if targets == "attention+dense":
            return every
        sets = {"kv+ffn": ("key", "value", "ffn_down"), "qv": ("query", "value"), "ffn-output": ("ffn_down",)}
        chosen = sets.get(targets, JOINED)
        return {role: every[role] for role in chosen}


@lru_cache(maxsize=64)
def load_geometry(model: str) -> Geometry | None:
    """Return the sizes of a model.

    Args:
        model: a directory, or the id of a model in the Hub's cache.

    Returns:
        The sizes; None if there is no config.json or it does not contain them.
    """
    folder = Path(location(model))
    path: object = folder / "config.json"
    if not is_folder(folder):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(model, "config.json")
    try:
        content = json.loads(Path(str(path)).read_text(encoding="utf-8"))
        # The second name of each is DistilBERT's.
        hidden = int(content.get("hidden_size") or content["dim"])
        geometry = Geometry(
            layers=int(content.get("num_hidden_layers") or content["n_layers"]),
            hidden=hidden,
            inner=int(content.get("intermediate_size") or content.get("hidden_dim") or 4 * hidden),
            heads=int(content.get("num_attention_heads") or content["n_heads"]),
            embeddings=int(content["vocab_size"]) + int(content["max_position_embeddings"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return geometry if all(0 < size < 2**31 for size in vars(geometry).values()) else None
