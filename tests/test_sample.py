"""The bundled sample: its data follow from the grammar, and its encoder loads offline."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from lora_bench.sample import DATA, ENCODER, ROOT, tasks

COLUMNS = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "mrpc": ["sentence1", "sentence2"],
    "stsb": ["sentence1", "sentence2"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
    "qnli": ["question", "sentence"],
    "rte": ["sentence1", "sentence2"],
    "wnli": ["sentence1", "sentence2"],
}
LIMIT = 4 * 1024 * 1024


def files() -> list[Path]:
    return sorted(DATA.glob("*/*.jsonl"))


def rows(file: Path) -> list[dict[str, str | int | float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def texts(row: dict[str, str | int | float]) -> tuple[str, ...]:
    return tuple(str(value) for key, value in row.items() if key not in ("label", "idx"))


def named(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


@pytest.mark.parametrize("hash_seed", ["0", "7"])
def test_the_grammar_writes_the_same_bytes(tmp_path: Path, hash_seed: str) -> None:
    code = "import sys, pathlib; from lora_bench.sample import tasks; tasks.write_all(pathlib.Path(sys.argv[1]))"
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=env, cwd=ROOT.parents[1])
    written = {str(f.relative_to(tmp_path)): f.read_bytes() for f in tmp_path.rglob("*.jsonl")}
    assert written == {str(f.relative_to(DATA)): f.read_bytes() for f in files()}


def test_importing_the_sample_imports_nothing_heavy() -> None:
    code = "import sys, lora_bench.sample; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parents[1], check=False).returncode == 0


def test_every_task_has_its_splits() -> None:
    assert {f.parent.name for f in files()} == set(COLUMNS) == set(tasks.TASKS)
    for task in COLUMNS:
        ends = ["_matched", "_mismatched"] if task == "mnli" else [""]
        assert {f.stem for f in files() if f.parent.name == task} == {"train", *("validation" + end for end in ends)}


@pytest.mark.parametrize("file", files(), ids=named)
def test_rows_have_the_hub_columns_and_balanced_labels(file: Path) -> None:
    found = rows(file)
    assert len(found) == (tasks.TRAIN if file.stem == "train" else tasks.VALIDATION)
    assert all(list(row) == [*COLUMNS[file.parent.name], "label", "idx"] for row in found)
    assert [row["idx"] for row in found] == list(range(len(found)))
    kind = float if file.parent.name == "stsb" else int
    assert all(type(row["label"]) is kind for row in found)
    counts = Counter(row["label"] for row in found)
    assert sorted(counts) == list(range(tasks.TASKS[file.parent.name].labels))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", sorted(COLUMNS))
def test_no_row_comes_twice_in_or_across_splits(task: str) -> None:
    every = [texts(row) for file in files() if file.parent.name == task for row in rows(file)]
    assert len(set(every)) == len(every)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(ENCODER, local_files_only=True)


@pytest.mark.parametrize("file", files(), ids=named)
def test_every_word_is_known_and_rows_are_short(file: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    for row in rows(file):
        ids = tokenizer(*texts(row)).input_ids
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= 40


def test_pairs_are_joined_as_roberta_joins_them(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("the dog", "the cat").input_ids)
    assert tokens == ["<s>", "the", "dog", "</s>", "</s>", "the", "cat", "</s>"]
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert tokenizer.model_max_length == 128


def test_the_encoder_loads_offline_without_a_word(capfd: pytest.CaptureFixture[str], tokenizer) -> None:  # type: ignore[no-untyped-def]
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModel.from_pretrained(ENCODER, local_files_only=True, add_pooling_layer=False).eval()
    assert "".join(capfd.readouterr()) == ""
    inputs = tokenizer(["the dog helped the cat", "who"], ["the cat", "the big dog"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    assert hidden.shape == (*inputs.input_ids.shape, model.config.hidden_size)
    assert torch.isfinite(hidden).all()
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.1


def test_the_checkpoint_is_a_bare_encoder() -> None:
    with safe_open(ENCODER / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        assert {str(weights.get_tensor(name).dtype) for name in names} == {"torch.float32"}
    assert all(name.startswith(("embeddings.", "encoder.layer.")) for name in names)


def test_the_sample_is_small() -> None:
    assert (ENCODER / "model.safetensors").stat().st_size <= LIMIT
    assert sum(f.stat().st_size for f in files()) <= 1024 * 1024


def test_the_readme_has_the_checksum_of_the_encoder() -> None:
    digest = hashlib.sha256((ENCODER / "model.safetensors").read_bytes()).hexdigest()
    assert re.search(digest, (ROOT / "README.md").read_text())
