"""A model's tokenizer reads texts as its own tokenizer.json does, or it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from tokenizers import Tokenizer

from lora_bench.data.sources import Rows
from lora_bench.data.tokens import tokenize
from lora_bench.errors import MISSING, BenchError
from lora_bench.run.tokenizer import load_tokenizer
from lora_bench.sample import ENCODER

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(97 + number) for number in range(26)]
WORDS = [*SPECIAL, "the", "The", "cat", "Cat", *LETTERS, *(f"##{letter}" for letter in LETTERS), "日", "é"]
TEXTS = ["the cat", "The Cat", "zebra é 日 ☃", " Émile "]


def bert(folder: Path, **settings: Any) -> Path:
    """A BERT tokenizer as transformers saves it, beside the bundled encoder's weights and a BERT config."""
    shutil.copytree(ENCODER, folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = hf.BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, **settings)
    tokenizer.save_pretrained(folder)
    return folder


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The JSON file, changed."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def agrees(folder: Path) -> bool:
    """Whether the texts have the ids that `tokenizers` itself gives them, by the file alone."""
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.no_padding()
    core.no_truncation()
    ids = load_tokenizer(str(folder), offline=True)(TEXTS, add_special_tokens=False)["input_ids"]
    return bool(ids == [core.encode(text, add_special_tokens=False).ids for text in TEXTS])


def refused(folder: Path) -> str:
    """How the tokenizer is refused."""
    with pytest.raises(BenchError) as error:
        load_tokenizer(str(folder), offline=True)
    assert error.value.code == MISSING
    assert "tokenizer_config.json" in error.value.hint
    return error.value.what


@pytest.mark.parametrize("cased", [False, True])
def test_a_tokenizer_that_transformers_saved_is_taken(cased: bool, tmp_path: Path) -> None:
    assert agrees(bert(tmp_path / "model", do_lower_case=not cased))


def test_padding_and_truncation_in_the_file_are_no_difference(tmp_path: Path) -> None:
    folder = bert(tmp_path / "model")
    core: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.enable_padding(length=128, pad_id=0, pad_token="[PAD]")
    core.enable_truncation(max_length=8)
    core.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(str(folder), offline=True).vocab_size == len(WORDS)


def test_tokens_that_the_settings_add_are_no_difference(tmp_path: Path) -> None:
    folder = bert(tmp_path / "model")
    added = {"content": "<new>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {str(len(WORDS)): added | {"special": True}}
    rewritten(folder / "tokenizer_config.json", lambda content: content.update(added_tokens_decoder=decoder))
    assert load_tokenizer(str(folder), offline=True).convert_tokens_to_ids("<new>") == len(WORDS)


def test_settings_that_are_declared_are_followed(tmp_path: Path) -> None:
    """transformers' own rule: what tokenizer_config.json says of case wins over tokenizer.json."""
    folder = bert(tmp_path / "model", do_lower_case=True)
    rewritten(folder / "tokenizer_config.json", lambda content: content.update(do_lower_case=False))
    tokenizer = load_tokenizer(str(folder), offline=True)
    assert tokenizer("The Cat", add_special_tokens=False)["input_ids"] == [WORDS.index("The"), WORDS.index("Cat")]


def test_a_cased_tokenizer_without_its_settings_is_refused(tmp_path: Path) -> None:
    """transformers takes its default for BERT, lower case."""
    folder = bert(tmp_path / "model", do_lower_case=False)
    (folder / "tokenizer_config.json").unlink()
    assert "is loaded as BertTokenizer, which reads 'The cat SAT on the Mat.' otherwise" in refused(folder)


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "RobertaTokenizer"}, {"model_max_length": 128}])
def test_a_hand_made_tokenizer_without_its_class_is_refused(settings: dict[str, Any] | None, tmp_path: Path) -> None:
    """Of the bundled encoder, whose tokenizer is a list of words: every word would become the unknown id."""
    folder = Path(shutil.copytree(ENCODER, tmp_path / "model"))
    (folder / "tokenizer_config.json").unlink()
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "is loaded as RobertaTokenizer, which reads" in refused(folder)


def test_a_hand_made_tokenizer_with_the_general_class_is_taken(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ENCODER, tmp_path / "model"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert agrees(folder)


LIST = "\n".join([*SPECIAL, "the", "cat", "##s", "film"])
PAIRS = {
    "vocab.json": json.dumps({"<s>": 0, "<unk>": 1, "a": 2, "b": 3, "ab": 4}),
    "merges.txt": "#version: 0.2\na b\n",
}
WITHOUT: dict[str, tuple[str, dict[str, str]]] = {
    "roberta without any": ("roberta", {}),
    "bert without any": ("bert", {}),
    "xlm-r without any": ("xlm-roberta", {}),
    "distilbert without any": ("distilbert", {}),
    "camembert without any": ("camembert", {}),
    "bert with settings alone": ("bert", {"tokenizer_config.json": "{}"}),
    "roberta with a list of words": ("roberta", {"vocab.txt": LIST}),
    "bert with merges": ("bert", PAIRS),
}


def with_files(folder: Path, kind: str, files: dict[str, str]) -> Path:
    """A model's directory with these files of a tokenizer alone."""
    shutil.copytree(ENCODER, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("how", WITHOUT)
def test_a_model_without_its_tokenizer_is_refused(how: str, tmp_path: Path) -> None:
    """transformers makes a tokenizer of special tokens alone: every text would be empty, or all words unknown."""
    with pytest.raises(BenchError, match="Tokenizer, which has no words: it would read texts as unknown") as error:
        load_tokenizer(str(with_files(tmp_path / "model", *WITHOUT[how])), offline=True)
    assert error.value.code == MISSING


def test_a_tokenizer_that_does_not_know_its_own_words_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ENCODER, tmp_path / "model"))
    split = {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}
    rewritten(folder / "tokenizer.json", lambda content: content.update(pre_tokenizer=split))
    with pytest.raises(BenchError, match="of its own words otherwise"):
        load_tokenizer(str(folder), offline=True)


@pytest.mark.parametrize(("kind", "files"), [("bert", {"vocab.txt": LIST}), ("roberta", PAIRS)])
def test_a_small_tokenizer_in_the_old_form_is_taken(kind: str, files: dict[str, str], tmp_path: Path) -> None:
    text = "ab" if kind == "roberta" else "the film"
    tokenizer = load_tokenizer(str(with_files(tmp_path / "model", kind, files)), offline=True)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("how", ["a panic", "an exception"])
def test_a_tokenizer_that_fails_on_a_row_is_no_traceback(how: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ENCODER, tmp_path / "model"))
    pattern = {"Regex": r"(?:q\s?q?)+\d"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    rewritten(folder / "tokenizer.json", lambda content: content.update(pre_tokenizer=split))
    tokenizer = load_tokenizer(str(folder), offline=True)
    if how == "an exception":  # a word that is unknown, where no id stands for those
        rewritten(folder / "tokenizer.json", lambda content: content["model"].update(unk_token="none"))
        tokenizer._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = Rows((["a good film", "q" * 200],), np.zeros(2, dtype=np.int64))
    with pytest.raises(BenchError, match="The tokenizer fails on rows 1 to 2") as error:
        tokenize(rows, tokenizer, 16)
    assert error.value.code == MISSING
