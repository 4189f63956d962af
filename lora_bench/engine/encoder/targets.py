"""Which weights are adapted: `attention`, `attention+dense`, `qv`, `kv+ffn`, `ffn-output`, or endings of names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from lora_bench.errors import BenchError, nearest

# The last parts of the names that transformers' encoders give their linears.
QUERY = frozenset({"query", "q", "q_lin", "q_proj", "query_proj"})
KEY = frozenset({"key", "k", "k_lin", "k_proj", "key_proj"})
VALUE = frozenset({"value", "v", "v_lin", "v_proj", "value_proj"})
JOINED = frozenset({"Wqkv", "in_proj"})  # all three in one weight
QV = QUERY | VALUE
KV = KEY | VALUE
ATTENTION = QUERY | KEY | VALUE | JOINED
SECOND_FEED_FORWARD = frozenset({"output.dense", "ffn.lin2", "mlp.Wo"})  # names within a layer
# The layer, up to the first number in the name, and the rest.
LAYER = re.compile(r"^(.*?\.\d+)\.(.+)$")


def within_layer(name: str) -> str | None:
    """The name of a linear within its layer (`attention.self.query`), or None outside the layers."""
    match = LAYER.match(name)
    return match.group(2) if match else None


def layer_of(name: str) -> str | None:
    """The layer that a linear belongs to (`encoder.layer.3`), or None outside the layers."""
    match = LAYER.match(name)
    return match.group(1) if match else None


def is_attention_input(name: str) -> bool:
    """Whether the linear computes queries, keys or values."""
    return name.rsplit(".", 1)[-1] in ATTENTION


# The sets that `--targets` can name, as a condition on the name of a linear of a layer.
SETS: Mapping[str, Callable[[str], bool]] = {
    "attention": is_attention_input,
    "attention+dense": lambda _: True,
    "qv": lambda name: name.rsplit(".", 1)[-1] in QV,
    "kv+ffn": lambda name: name.rsplit(".", 1)[-1] in KV or within_layer(name) in SECOND_FEED_FORWARD,
    "ffn-output": lambda name: within_layer(name) in SECOND_FEED_FORWARD,
}


def resolve(names: Iterable[str], targets: str) -> tuple[str, ...]:
    """The linears that `targets` names.

    Args:
        names: The model's linears, in its order.
        targets: The value of `--targets`: names of sets, or endings of names, joined by commas.

    Returns:
        The matching names, in the model's order.

    Raises:
        BenchError: A part of `targets` matches no linear of a layer. The hint names the candidates.
    """
    layer_linears = [name for name in names if within_layer(name)]
    parts = [part.strip() for part in targets.split(",")]
    chosen = [name for name in layer_linears if any(_matches(name, part) for part in parts)]
    unmatched = [part for part in parts if not any(_matches(name, part) for name in layer_linears)]
    if unmatched or not chosen:
        short = {within_layer(name) or name for name in layer_linears}
        candidates = short | {name.rsplit(".", 1)[-1] for name in short} | SETS.keys()
        wrong = unmatched[0] if unmatched else targets
        raise BenchError(f"--targets '{wrong}' matches no weight of this model.", nearest(wrong, candidates - {wrong}))
    return tuple(chosen)


def _matches(name: str, part: str) -> bool:
    """Whether a part of `targets`, a set or an ending, covers a linear of a layer."""
    is_in_set = SETS.get(part)
    return name == part or name.endswith(f".{part}") if is_in_set is None else is_in_set(name)
