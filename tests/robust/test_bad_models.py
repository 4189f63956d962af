"""Bad model directories at the command line: two lines and exit code 3; nothing in them is ever run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_bench.errors import DONE, MISSING
from tests.robust.robust_kit import assert_clear_error, lora_bench, make_model, rewrite_json, run

Change = Callable[[Path], object]
Weights = dict[str, NDArray[np.float32]]

PICKLE = b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR."
CODE = "open('pwned', 'w').write('x')\n"


def config(**changes: object) -> Change:
    return lambda model: rewrite_json(model / "config.json", **changes)


def tokenizer(**changes: object) -> Change:
    return lambda model: rewrite_json(model / "tokenizer_config.json", **changes)


def content(name: str, made: bytes) -> Change:
    return lambda model: (model / name).write_bytes(made)


def cut(name: str, keep: float) -> Change:
    return lambda model: (model / name).write_bytes(
        (model / name).read_bytes()[: int(keep * (model / name).stat().st_size)]
    )


def without(name: str) -> Change:
    return lambda model: (model / name).unlink()


def folder(name: str) -> Change:
    def change(model: Path) -> None:
        (model / name).unlink()
        (model / name).mkdir()

    return change


def weights(change: Callable[[Weights], Mapping[str, NDArray[np.float32]]]) -> Change:
    def rewrite(model: Path) -> None:
        path = model / "model.safetensors"
        save_file(dict(change(load_file(path))), path)

    return rewrite


def pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(PICKLE)


def outside(model: Path) -> None:
    """An index that sends for weights outside of the directory."""
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "../../../../etc/passwd"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def more_words(model: Path) -> None:
    path = model / "tokenizer.json"
    made = json.loads(path.read_text())
    vocabulary = made["model"]["vocab"]
    made["model"]["vocab"] = {word: number + 5000 if number > 9 else number for word, number in vocabulary.items()}
    path.write_text(json.dumps(made))


def own_code(model: Path) -> None:
    (model / "evil.py").write_text(CODE)
    automatic = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    rewrite_json(model / "config.json", model_type="evil", auto_map=automatic)


def own_tokenizer(model: Path) -> None:
    (model / "evil.py").write_text(CODE)
    (model / "tokenizer.json").unlink()
    tokenizer(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})(model)


def core(**changes: object) -> Change:
    """Other parts of tokenizer.json."""
    return lambda model: rewrite_json(model / "tokenizer.json", **changes)


def backtracking() -> dict[str, object]:
    """A pattern that tries every way to divide a text before it fails."""
    pattern = {"Regex": r"(?:\w+\s?)+\d"}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def many_tensors(model: Path) -> None:
    """Weights whose header names a million tensors."""
    entries = {f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(10**6)}
    header = json.dumps(entries).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 * 10**6))


def with_adapter(model: Path) -> None:
    """peft's files beside the model's, with which transformers loads both."""
    (model / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["query"]}')
    (model / "adapter_model.safetensors").write_bytes((model / "model.safetensors").read_bytes())


def pipe(name: str) -> Change:
    def change(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)

    return change


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:53aa51172d14\nsize 90868376\n"
NESTED = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
BAD: dict[str, tuple[Change, str]] = {
    "no config.json": (without("config.json"), "has no config.json"),
    "a folder for config.json": (folder("config.json"), "has no config.json"),
    "an empty config.json": (content("config.json", b""), "not a valid JSON file"),
    "a config.json cut off": (cut("config.json", 0.5), "not a valid JSON file"),
    "a config.json that is a list": (content("config.json", b"[]"), "cannot be loaded"),
    "a config.json that is a number": (content("config.json", b"3"), "cannot be loaded"),
    "a config.json that is not UTF-8": (content("config.json", b"\xff\xfe{}"), "cannot be loaded"),
    "a config.json without end": (content("config.json", NESTED), "cannot be loaded"),
    "no kind of model": (config(model_type=None), "cannot be loaded"),
    "a kind with escape codes": (config(model_type="\x1b[31m\n[/red]"), "cannot be loaded"),
    "a decoder": (config(model_type="gpt2"), "lacks weights"),
    "no encoder alone": (config(model_type="t5"), "cannot be loaded"),
    "a causal encoder": (config(is_decoder=True), "its first token, which the head reads, does not depend on"),
    "a size that is text": (config(hidden_size="x"), "cannot be loaded"),
    "a size of zero": (config(hidden_size=0), "cannot be loaded"),
    "a negative size": (config(hidden_size=-64), "cannot be loaded"),
    "a size of a billion": (config(vocab_size=10**12), "config.json describes 64,"),
    "other sizes": (config(hidden_size=32), "of shape [64], its config.json says [32]"),
    "no attention heads": (config(num_attention_heads=0), "cannot be loaded"),
    "an unknown activation": (config(hidden_act="nope"), "cannot be loaded"),
    "a dropout of 2": (config(hidden_dropout_prob=2.0), "between 0 and 1"),
    "padding outside of the words": (config(pad_token_id=99_999), "cannot be loaded"),
    "quantised weights": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "cannot be loaded",
    ),
    "code of its own": (own_code, "cannot be loaded"),
    "no weights": (without("model.safetensors"), "has no weights in safetensors format"),
    "pickled weights alone": (pickled, "has no weights in safetensors format"),
    "a folder for the weights": (folder("model.safetensors"), "cannot be loaded"),
    "empty weights": (content("model.safetensors", b""), "header too small"),
    "weights cut off": (cut("model.safetensors", 0.5), "not fully covered"),
    "weights cut in their header": (cut("model.safetensors", 0.001), "Error while deserializing header"),
    "weights without their last byte": (cut("model.safetensors", 0.999999), "not fully covered"),
    "weights from outside": (outside, "cannot be loaded"),
    "weights of another name": (weights(lambda w: {f"x{k}": v for k, v in w.items()}), "lacks weights"),
    "a weight is missing": (weights(lambda w: {k: v for k, v in w.items() if "query" not in k}), "query.bias"),
    "a weight of another shape": (weights(lambda w: {k: v[:-1] if "query" in k else v for k, v in w.items()}), "says"),
    "weights that are NaN": (weights(lambda w: {k: v * np.float32("nan") for k, v in w.items()}), "not finite"),
    "no tokenizer": (without("tokenizer.json"), "The tokenizer of"),
    "an empty tokenizer": (content("tokenizer.json", b""), "The tokenizer of"),
    "a tokenizer cut off": (cut("tokenizer.json", 0.5), "The tokenizer of"),
    "a tokenizer that is a number": (content("tokenizer.json", b"3"), "The tokenizer of"),
    "a tokenizer without end": (content("tokenizer.json", NESTED), "The tokenizer of"),
    "tokenizer settings that are a list": (content("tokenizer_config.json", b"[]"), "The tokenizer of"),
    "tokenizer settings cut off": (cut("tokenizer_config.json", 0.5), "The tokenizer of"),
    "a tokenizer with code of its own": (own_tokenizer, "The tokenizer of"),
    "a tokenizer without its class": (without("tokenizer_config.json"), "is loaded as RobertaTokenizer, which reads"),
    "a tokenizer of another class": (tokenizer(tokenizer_class="BertTokenizer"), "is loaded as BertTokenizer, which"),
    "a tokenizer that backtracks": (core(pre_tokenizer=backtracking()), "retry-limit-in-match over"),
    "an adapter beside the model": (with_adapter, "also holds an adapter (adapter_config.json)"),
    "fewer layers than the weights": (config(num_hidden_layers=3), "encoder.layer.3.attention.output.LayerNorm.bias"),
    "relative positions": (config(position_embedding_type="relative_key"), "position_embedding_type: relative_key"),
    "a pipe for config.json": (pipe("config.json"), "is a pipe, a socket or a device"),
    "a pipe for the weights": (pipe("model.safetensors"), "is a pipe, a socket or a device"),
    "a pipe for the tokenizer": (pipe("tokenizer_config.json"), "is a pipe, a socket or a device"),
    "a git-lfs pointer for the weights": (content("model.safetensors", POINTER), "is a git-lfs pointer"),
    "a vocabulary smaller than the tokenizer": (more_words, "the model has 279 embeddings"),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_model_is_two_lines(how: str, workplace: Path) -> None:
    change, words = BAD[how]
    change(make_model(workplace / "bad"))
    assert_clear_error(run(model="bad"), MISSING, words)
    assert not (workplace / "pwned").exists()
    assert list((workplace / "results" / "cells").iterdir() if (workplace / "results").exists() else []) == []


ABSURD: dict[str, tuple[Change, str]] = {
    "ten million layers": (config(num_hidden_layers=10**7), "num_hidden_layers = 10,000,000, the weights are 69"),
    "more layers than tensors": (config(num_hidden_layers=10**15), "the weights are 69 tensors"),
    "a billion labels": (config(num_labels=10**9), "num_labels = 1,000,000,000"),
    "a billion positions": (config(max_position_embeddings=10**9), "config.json describes 64,000,156,096 weights"),
    "wide layers": (config(intermediate_size=10**7), "config.json describes 5,160,098,368 weights"),
    "many groups": (config(model_type="albert", inner_group_num=10**7), "inner_group_num = 10,000,000"),
    "a million tensors": (many_tensors, "has a header of"),
}


@pytest.mark.parametrize("how", ABSURD)
def test_absurd_sizes_are_refused_early(how: str, workplace: Path) -> None:
    """Some of these kept transformers busy for minutes, or took all memory."""
    change, words = ABSURD[how]
    change(make_model(workplace / "bad"))
    begin = time.monotonic()
    assert_clear_error(run(model="bad"), MISSING, words)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named_by_bench(name: str, workplace: Path) -> None:
    """Which asks for no identity first."""
    content(name, POINTER)(make_model(workplace / "bad"))
    assert_clear_error(lora_bench("bench", "--quick", "--model", "bad"), MISSING, f"{name}' is a git-lfs pointer")


def test_a_plan_needs_no_sound_config(workplace: Path) -> None:
    """What a model will cost is not known then; that is no error yet."""
    for number, change in enumerate((config(hidden_size=0), config(hidden_size=-1), content("config.json", NESTED))):
        change(make_model(workplace / f"bad{number}"))
        assert run(command="plan", model=f"bad{number}").code == DONE


def test_pickled_weights_beside_sound_ones_are_left_alone(workplace: Path) -> None:
    (make_model(workplace / "both") / "pytorch_model.bin").write_bytes(PICKLE)
    assert run(model="both").code == DONE
    assert not (workplace / "pwned").exists()
