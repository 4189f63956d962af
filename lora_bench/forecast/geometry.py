"""The sizes of encoders: those of a config.json, and those of the usual encoders of the Hub, which need no network.

Does not need torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_bench.methods.recipe import Shape
from lora_bench.models import location
from lora_bench.records.files import is_folder

JOINED = ("query", "key", "value")  # the engine computes them by one product
# Model types whose layers have one weight for query, key and value, and those whose feed-forward part is gated: its
# first weight has twice the outputs.
ONE_QKV_WEIGHT = frozenset({"modernbert", "deberta"})
GATED = frozenset({"modernbert"})
TARGET_SETS = ("attention", "attention+dense", "qv", "kv+ffn", "ffn-output")
ROTARY = frozenset({"modernbert"})  # model types without a table of positions


@dataclass(frozen=True)
class Geometry:
    """The sizes of an encoder.

    Attributes:
        layers: The number of layers that a token passes.
        hidden: The width of the hidden states.
        inner: The width of the feed-forward part.
        heads: The number of attention heads.
        embeddings: The rows of all embedding tables together.
        model_type: The `model_type` of config.json; empty if that has none.
        shared: How many layers share one set of weights (ALBERT: all).
        embedding_width: The width of the embedding tables; None for that of the hidden states.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    embeddings: int
    model_type: str = ""
    shared: int = 1
    embedding_width: int | None = None

    @property
    def linear(self) -> int:
        """The number of weights that a token is multiplied by in all layers; shared ones count in each layer."""
        up = 2 if self.model_type in GATED else 1
        return self.layers * self.hidden * (4 * self.hidden + (1 + up) * self.inner)

    @property
    def stored_layers(self) -> int:
        """The number of layers with weights of their own."""
        return -(-self.layers // self.shared)

    @property
    def weights(self) -> int:
        """The number of weights of the model that are kept in memory."""
        layer = sum(shape.outputs * shape.inputs for shape in self.adapted("attention+dense").values())
        return self.stored_layers * layer + self.embeddings * (self.embedding_width or self.hidden)

    def adapted(self, targets: str | None) -> dict[str, Shape]:
        """Return the weights of one layer that a target set adapts, by role.

        A list of module names is counted like the target set `attention`.
        """
        if targets is None:
            return {}
        square = Shape(self.hidden, self.hidden)
        up = Shape(self.inner * (2 if self.model_type in GATED else 1), self.hidden)
        one_weight = self.model_type in ONE_QKV_WEIGHT
        inputs = {"qkv": Shape(3 * self.hidden, self.hidden)} if one_weight else dict.fromkeys(JOINED, square)
        every = inputs | {"attn_out": square, "ffn_up": up, "ffn_down": Shape(self.hidden, self.inner)}
        if self.model_type == "deberta":
            every |= {"key_of_distance": square, "query_of_distance": square}
        if targets == "attention+dense":
            return every
        sets = {"kv+ffn": ("key", "value", "ffn_down"), "qv": ("query", "value"), "ffn-output": ("ffn_down",)}
        chosen = sets.get(targets, tuple(inputs))
        return {role: every[role] for role in chosen if role in every}


@lru_cache(maxsize=64)
def load_geometry(model: str) -> Geometry | None:
    """Return the sizes of a model.

    Args:
        model: A directory, or the id of a model of the Hub. The config.json in the Hub's cache counts, else what is
            known of the usual encoders.

    Returns:
        The sizes; None if there is no config.json or it does not contain them.
    """
    folder = Path(location(model))
    if is_folder(folder):
        return _read_config(folder / "config.json")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json")
    geometry = _read_config(Path(cached)) if isinstance(cached, str) else None
    return geometry or _known_encoders().get(model)


@lru_cache(maxsize=1)
def _known_encoders() -> dict[str, Geometry | None]:
    """The sizes of the usual encoders, by Hub id and by the ids that the Hub redirects."""
    content = json.loads(Path(__file__).with_name("encoders.json").read_text(encoding="utf-8"))
    sizes = {name: _from_config(config) for name, config in content["configs"].items()}
    return sizes | {name: sizes[other] for name, other in content["other_names"].items()}


def _read_config(path: Path) -> Geometry | None:
    try:
        return _from_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None


def _from_config(content: Mapping[str, Any]) -> Geometry | None:
    """The sizes that a config.json contains; None if they cannot be those of an encoder."""
    # The second name of each is DistilBERT's, the third XLM's.
    hidden = int(content.get("hidden_size") or content.get("dim") or content["emb_dim"])
    layers = int(content.get("num_hidden_layers") or content["n_layers"])
    model_type = str(content.get("model_type", ""))
    has_positions = model_type not in ROTARY and content.get("position_biased_input", True)
    geometry = Geometry(
        layers=layers,
        hidden=hidden,
        inner=int(content.get("intermediate_size") or content.get("hidden_dim") or 4 * hidden),
        heads=int(content.get("num_attention_heads") or content["n_heads"]),
        embeddings=int(content["vocab_size"]) + (int(content["max_position_embeddings"]) if has_positions else 0),
        model_type=model_type,
        shared=max(1, layers // int(content.get("num_hidden_groups", 1))) if model_type == "albert" else 1,
        embedding_width=int(content["embedding_size"]) if content.get("embedding_size") else None,
    )
    sizes = (value for value in vars(geometry).values() if isinstance(value, int))
    return geometry if all(0 < size < 2**31 for size in sizes) else None
