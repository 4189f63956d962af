"""What names a model in a cell: its content where it is a directory, its id where it is the Hub's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lora_bench.errors import MISSING, BenchError
from lora_bench.models import identity, location
from lora_bench.sample import ENCODER

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with the files of a model."""
    folder = tmp_path / "here" / "tiny"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(f"content of {name}")
    return folder


def test_a_directory_is_its_name_and_twelve_digits(model: Path) -> None:
    name, _, digits = identity(str(model)).partition("@")
    assert name == "tiny"
    assert len(digits) == 12
    assert int(digits, 16) >= 0


def test_the_identity_is_frozen(model: Path) -> None:
    """It is part of every id: if it changes, every record of a local model is forgotten."""
    assert identity(str(model)) == "tiny@d2cb488d4aba"


def test_the_path_does_not_matter(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = identity(str(model))
    copy = tmp_path / "there" / "tiny"
    shutil.copytree(model, copy)
    os.utime(copy / "config.json", (1, 1))
    assert identity(str(copy)) == expected
    assert identity(f"{copy}/") == expected
    monkeypatch.chdir(copy.parent)
    assert identity("tiny") == expected
    assert identity("./tiny") == expected
    assert identity("../here/tiny") == expected
    monkeypatch.chdir(copy)
    assert identity(".") == expected
    monkeypatch.setenv("HOME", str(copy.parent))
    assert identity("~/tiny") == expected


def test_the_name_of_the_directory_is_in_it(model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    assert identity(str(other)) == identity(str(model)).replace("tiny", "other")


@pytest.mark.parametrize("name", FILES)
def test_the_content_of_every_file_that_counts_is_in_it(model: Path, name: str) -> None:
    before = identity(str(model))
    (model / name).write_text("something else")
    assert identity(str(model)) != before


def test_what_does_not_count_is_not_in_it(model: Path) -> None:
    before = identity(str(model))
    (model / "README.md").write_text("words")
    (model / "pytorch_model.bin").write_bytes(b"never read")
    assert identity(str(model)) == before


def test_swapped_files_are_another_model(model: Path) -> None:
    before = identity(str(model))
    one, other = model / "vocab.json", model / "merges.txt"
    first, second = one.read_text(), other.read_text()
    one.write_text(second)
    other.write_text(first)
    assert identity(str(model)) != before


def test_every_shard_counts(model: Path) -> None:
    before = identity(str(model))
    (model / "model-00002-of-00002.safetensors").write_text("more")
    assert identity(str(model)) != before


@pytest.mark.parametrize("name", ["FacebookAI/roberta-base", "bert-base-uncased", "a/b.c-d"])
def test_a_hub_id_stays_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert identity(name) == location(name) == name


def test_the_sample_is_the_bundled_encoder() -> None:
    assert location("sample") == str(ENCODER)


@pytest.mark.parametrize("name", ["./none", "../none", "/no/such/model", "~/none", "a/b/c", "a\\b", "C:\\models\\x"])
def test_a_path_that_is_no_directory_is_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BenchError) as error:
        identity(name)
    assert error.value.code == MISSING
    assert name in error.value.what


@pytest.mark.parametrize(("lost", "word"), [("config.json", "config.json"), ("model.safetensors", "safetensors")])
def test_a_directory_that_is_no_model_is_missing(model: Path, lost: str, word: str) -> None:
    (model / lost).unlink()
    with pytest.raises(BenchError, match=word) as error:
        identity(str(model))
    assert error.value.code == MISSING


def test_pickled_weights_are_no_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(BenchError, match="no weights in safetensors format"):
        identity(str(model))
