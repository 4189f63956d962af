"""Checks the sizes in a model's files before transformers loads them, and afterwards that every weight was used.

Sizes are taken from the headers of the weight files, which list names and shapes: a config that asks for ten million
layers would keep transformers busy for minutes before it fails.
"""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import AutoConfig, AutoModel, PreTrainedModel

from lora_bench.errors import MISSING, BenchError
from lora_bench.model_files import CONFIG, covered
from lora_bench.records.files import read_file

# Limits, far beyond any encoder (chosen).
HEADER = 2**22  # bytes of a safetensors header, in which a tensor takes about 100
TENSORS = 20_000  # of all files; BERT-large has 391
LABELS = 2**20  # that a config names: transformers makes two dictionaries of them
# Fields that count what transformers repeats, by the names of its families; `_described_values` stops all else.
COUNTS = (
    "num_hidden_layers",
    "num_layers",
    "n_layers",
    "n_layer",
    "num_encoder_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "num_hidden_groups",
    "inner_group_num",
    "num_labels",
)
BUFFERS = ("position_ids", "token_type_ids")  # older versions of transformers saved them
FIT = "Use the config.json that belongs to the weights."


class Stored(NamedTuple):
    """How much there is in the weights of a directory."""

    tensors: int
    values: int


def check_files(folder: Path) -> None:
    """Refuse sizes that no model has: of the weights' headers, and of the config against the weights.

    Files that are merely broken are left to transformers, which fails on them without delay.

    Raises:
        BenchError: Exit code 3.
    """
    stored = _stored(folder)
    if stored is None:
        return
    for name, value in _counts(_json(read_file(folder / CONFIG))):
        most = LABELS if name == "num_labels" else stored.tensors
        if value > most:
            what = f"'{folder}': config.json says {name} = {value:,}, the weights are {stored.tensors:,} tensors."
            raise BenchError(what, FIT, MISSING)
    # Chosen with room: a module with weights has a tensor at least, but containers, dropouts and activations have none,
    # and files may leave out a pooler and weights that can be computed.
    values = _described_values(folder, 1000 + 8 * stored.tensors)
    if values > 2 * stored.values:
        what = f"'{folder}': config.json describes {values:,} weights, its files hold {stored.values:,}."
        raise BenchError(what, FIT, MISSING)


def _stored(folder: Path) -> Stored | None:
    paths = [folder / name for name in covered(folder) if name.endswith(".safetensors")]
    if not paths:
        return None
    tensors = values = 0
    for path in paths:
        shapes = list(_shapes(path))
        with safe_open(path, "pt"):  # says what is wrong with a broken file
            tensors, values = tensors + len(shapes), values + sum(map(math.prod, shapes))
    if tensors > TENSORS:
        raise BenchError(f"'{folder}' has {tensors:,} tensors.", "Give the weights of an encoder.", MISSING)
    return Stored(tensors, values)


def _shapes(path: Path) -> Iterator[list[int]]:
    """The shapes in a safetensors header; none where it is broken."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if HEADER < size <= path.stat().st_size - 8:
            what = f"'{path}' has a header of {size / 2**20:,.0f} MiB: more tensors than any encoder has."
            raise BenchError(what, "Give the weights of an encoder.", MISSING)
        content = _json(file.read(min(size, HEADER)))
    for entry in content.values() if isinstance(content, dict) else ():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape):
            yield shape


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _counts(content: Any) -> Iterator[tuple[str, int]]:
    """The numbers of a config that say how often transformers repeats something."""
    for name in COUNTS if isinstance(content, dict) else ():
        if type(value := content.get(name)) is int:
            yield name, value


def _described_values(folder: Path, modules: int) -> int:
    """The number of values of the model that the config describes, without memory for them.

    Raises:
        BenchError: Exit code 3 if it has more than `modules` modules.
    """
    present = 0

    def count(*_: object) -> None:
        nonlocal present
        present += 1
        if present > modules:
            what = f"'{folder}': config.json describes a model of more than {modules:,} modules."
            raise BenchError(what, FIT, MISSING)

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    hook = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModel.from_config(config)
    finally:
        hook.remove()
    return sum(value.numel() for value in model.parameters())


def check_loaded(location: str, model: object, info: Mapping[str, Any]) -> PreTrainedModel:
    """The model, if transformers has used all weights of the encoder, found all that it needs, and added nothing.

    Raises:
        BenchError: Exit code 3; names a weight.
    """
    for name, stored, wanted in sorted(key for key in info["mismatched_keys"] if "pooler" not in key[0]):
        what = f"'{location}' has a weight {name} of shape {[*stored]}, its config.json says {[*wanted]}."
        raise BenchError(what, FIT, MISSING)
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing or not isinstance(model, PreTrainedModel):
        what = f"'{location}' lacks weights ({missing[0]} …)." if missing else f"'{location}' is not an encoder."
        raise BenchError(what, "Use a complete encoder in safetensors format.", MISSING)
    if getattr(model, "_hf_peft_config_loaded", False):  # of the Hub: a directory is refused before it is loaded
        what = f"'{location}' also holds an adapter, which transformers has applied."
        raise BenchError(what, "Give the base model, or a model with the adapter merged into it.", MISSING)
    unused = sorted(_unused(model, info["unexpected_keys"]))
    kind = getattr(model.config, "position_embedding_type", None)
    if unused or str(kind).startswith("relative"):
        what = f"'{location}' has weights that '{model.config.model_type}' does not use ({_first(unused, kind)})."
        raise BenchError(what, "Use the config.json and the model type that the weights were trained with.", MISSING)
    return model


def _unused(model: PreTrainedModel, unexpected: list[str]) -> Iterator[str]:
    """The unused weights, other than those of heads and poolers and those that can be computed."""
    prefix, buffers = f"{model.base_model_prefix}.", {name for name, _ in model.named_buffers()}
    parts = {name for name, _ in model.named_children()}
    heads = _heads(model, unexpected) - parts if unexpected else set()
    for name in unexpected:
        inner = name.removeprefix(prefix)
        part = inner.partition(".")[0]
        computed = inner in buffers or inner.endswith(BUFFERS)
        if not (part == "pooler" or (inner == name and part in heads) or computed):
            yield name


def _heads(model: PreTrainedModel, unexpected: list[str]) -> set[str]:
    """The names of the parts that transformers' own models of this type have besides the encoder.

    They include unused weights that one of these models ignores by a pattern, as DeBERTa's model for masked tokens
    ignores the head for replaced tokens.
    """
    module, heads = sys.modules[type(model).__module__], set[str]()
    for name in getattr(module, "__all__", ()):
        if "For" in name and "ForCausalLM" not in name:  # a decoder's head has the name that the masked one has
            kind = getattr(module, name)
            for config in _with_either_head(model.config):
                with suppress(Exception), torch.device("meta"):  # one that this config does not fit has no heads here
                    heads |= {part for part, _ in kind(config).named_children()}
            patterns = set(getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ())
            patterns -= set(model._keys_to_ignore_on_load_unexpected or ())
            ignored = [key for key in unexpected if any(re.match(pattern, key) for pattern in patterns)]
            heads |= {key.partition(".")[0] for key in ignored}
    return heads - {model.base_model_prefix}


def _with_either_head(config: Any) -> list[Any]:
    """The config, and for DeBERTa also a copy with the other setting of `legacy`.

    Its published files have the head of one setting, but their config does not say so, and transformers builds the
    head of the other.
    """
    if not isinstance(getattr(config, "legacy", None), bool):
        return [config]
    other = copy.deepcopy(config)
    other.legacy = not config.legacy
    return [config, other]


def _first(unused: list[str], kind: object) -> str:
    more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
    return f"{unused[0]}{more}" if unused else f"position_embedding_type: {kind}"
