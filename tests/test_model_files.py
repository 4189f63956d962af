"""The identity of a model's directory covers whatever loading reads, seen by what is opened, in Python or in Rust."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_bench.engine.encoder.backbone import load
from lora_bench.errors import MISSING, BenchError
from lora_bench.model_files import LFS_POINTER, TOKENIZER_FILES, covered, digest, watched
from lora_bench.models import identity
from lora_bench.run.inputs import Loader
from lora_bench.run.interfaces import Options
from lora_bench.run.tokenizer import load_tokenizer
from lora_bench.sample import ENCODER
from lora_bench.testing import QuietView, TinyBench, make_encoder

IN_OPEN, IN_ISDIR, IN_NONBLOCK = 0x20, 0x40000000, 0o4000
BPE = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6, "ab": 7, "Ġ": 8}


@contextmanager
def opens(folder: Path) -> Iterator[set[str]]:
    """What is opened of a folder in the block, whoever opens it: as the kernel says (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(IN_NONBLOCK)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    watches = {libc.inotify_add_watch(descriptor, os.fsencode(path), IN_OPEN): path for path in folders}
    assert descriptor >= 0 and min(watches) >= 0, os.strerror(ctypes.get_errno())
    names: set[str] = set()
    try:
        yield names
        content, at = os.read(descriptor, 2**20), 0
        while at < len(content):
            watch, mask, _, size = struct.unpack_from("iIII", content, at)
            name = content[at + 16 : at + 16 + size].rstrip(b"\0")
            at += 16 + size
            if name and not mask & IN_ISDIR:
                names.add((watches[watch] / os.fsdecode(name)).relative_to(folder).as_posix())
    finally:
        os.close(descriptor)


def sample(folder: Path) -> None:
    shutil.copytree(ENCODER, folder)


def legacy(folder: Path) -> None:
    """A tokenizer in the old form: words, merges, added tokens, names of special tokens, templates."""
    make_encoder("roberta").save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(BPE))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "added_tokens.json").write_text('{"<new>": 9}')
    (folder / "special_tokens_map.json").write_text('{"unk_token": "<unk>", "mask_token": "<mask>"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")


def words(folder: Path) -> None:
    """BERT with a list of words alone."""
    make_encoder("bert").save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s"]))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')


def shards(folder: Path) -> None:
    """Weights in two files, one of them in a folder, and an index; the config and the tokenizer of other versions."""
    shutil.copytree(ENCODER, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "parts").mkdir()
    names = sorted(weights)
    parts = {"one.safetensors": names[::2], "parts/two.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["fast_tokenizer_files"] = ["tokenizer.4.0.0.json"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").rename(folder / "tokenizer.4.0.0.json")


def named_weights(folder: Path) -> None:
    """A config that names its weights."""
    shutil.copytree(ENCODER, folder)
    (folder / "hidden").mkdir()
    (folder / "model.safetensors").rename(folder / "hidden" / "own.safetensors")
    shutil.copy(folder / "hidden" / "own.safetensors", folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "hidden/own.safetensors"}))


SENTENCES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "data_config.json")


def of_sentences(folder: Path) -> None:
    """A folder of sentence-transformers, with settings that only that library reads, and a hidden config."""
    shutil.copytree(ENCODER, folder)
    for name in (*SENTENCES, ".x.json", ".config.json"):
        (folder / name).write_text('{"max_seq_length": 128, "see": "vocab.txt"}')


KINDS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "sample": (sample, {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}),
    "legacy": (
        legacy,
        {"vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja",
         "additional_chat_templates/tool.jinja"},
    ),
    "words": (words, {"vocab.txt", "tokenizer_config.json"}),
    "shards": (shards, {"model.safetensors.index.json", "parts/two.safetensors", "tokenizer.4.0.0.json"}),
    "named weights": (named_weights, {"hidden/own.safetensors"}),
    "of sentences": (of_sentences, {"config.json", "model.safetensors"}),
}  # fmt: skip


def loads(folder: Path) -> None:
    load(str(folder), torch.device("cpu"), "float32", offline=True)
    load_tokenizer(str(folder), offline=True)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_byte_of_any_file_that_loading_opens_is_another_identity(kind: str, tmp_path: Path) -> None:
    make, expected = KINDS[kind]
    folder = tmp_path / "model"
    make(folder)
    before = identity(str(folder))
    with opens(folder) as opened:
        loads(folder)
    assert expected <= opened
    for name in sorted(opened):
        content = (folder / name).read_bytes()
        for at in (0, len(content) // 2, len(content) - 1):
            (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert identity(str(folder)) != before, name
        (folder / name).write_bytes(content)
    assert identity(str(folder)) == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled encoder."""
    return Path(shutil.copytree(ENCODER, tmp_path / "model"))


def refused(folder: Path) -> str:
    """How the directory is refused, in one line and a hint."""
    with pytest.raises(BenchError) as error:
        digest(folder)
    assert error.value.code == MISSING
    assert "\n" not in error.value.what
    return error.value.what


def test_the_bundled_encoders_identity_is_frozen(folder: Path) -> None:
    assert digest(folder) == identity("sample").partition("@")[2] == "3960b7b6fddc"


@pytest.mark.parametrize(
    "name",
    ["README.md", "LICENSE", "pytorch_model.bin", "tf_model.h5", "dict.txt", ".gitattributes", "trainer_state.json",
     "checkpoint-9/model.safetensors", "checkpoint-9/config.json", "onnx/model.onnx", ".cache/huggingface/x.json"],
)  # fmt: skip
def test_what_loading_never_reads_is_not_in_it(folder: Path, name: str) -> None:
    before = digest(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("content")
    assert digest(folder) == before


def test_settings_of_other_libraries_are_no_hindrance(folder: Path, tmp_path: Path) -> None:
    of_sentences(tmp_path / "sentences")
    loads(tmp_path / "sentences")
    assert digest(tmp_path / "sentences") == digest(folder)


def test_what_loading_opens_is_noted_beside_our_own_reads(folder: Path) -> None:
    (folder / ".config.json").write_text("{}")

    def read() -> None:
        with watched(str(folder)):
            assert ".config.json" not in covered(folder)
            (folder / ".config.json").read_text()

    with pytest.raises(BenchError, match=r"\.config\.json', which its identity"):
        read()


@pytest.mark.parametrize(
    "name", ["sentencepiece.bpe.model", "spiece.model", "bpe.codes", "added_tokens.json", "generation_config.json"]
)
def test_what_a_tokenizer_may_read_is_in_it(folder: Path, name: str) -> None:
    before = digest(folder)
    (folder / name).write_text("one")
    first = digest(folder)
    (folder / name).write_text("two")
    assert len({before, first, digest(folder)}) == 3


def test_names_of_special_tokens_count_where_they_are_read(folder: Path) -> None:
    """transformers reads them where tokenizer_config.json has no `added_tokens_decoder`."""
    (folder / "special_tokens_map.json").write_text("{}")
    assert "special_tokens_map.json" in covered(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": {}}))
    assert "special_tokens_map.json" not in covered(folder)


def test_the_files_that_have_always_counted_come_first_and_as_before(folder: Path) -> None:
    for name in ("a.json", "vocab.txt", "vocab.json", "merges.txt", "z.safetensors", "b.safetensors"):
        (folder / name).write_text("{}")
    always = ["config.json", *TOKENIZER_FILES, "b.safetensors", "model.safetensors", "z.safetensors"]
    assert covered(folder) == [*always, "a.json"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.json", "spm.model"])
def test_a_pipe_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert name in refused(folder)
    assert "is a pipe" in refused(folder)


def test_a_device_is_refused(folder: Path) -> None:
    (folder / "merges.txt").symlink_to("/dev/zero")
    assert "merges.txt' is a pipe, a socket or a device" in refused(folder)


def test_a_pipe_that_is_never_read_is_left_alone(folder: Path) -> None:
    before = digest(folder)
    os.mkfifo(folder / ".agent")
    assert digest(folder) == before


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "vocab.txt"])
def test_a_git_lfs_pointer_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(LFS_POINTER + b"v1\noid sha256:4d7a\nsize 90868376\n")
    assert f"{name}' is a git-lfs pointer" in refused(folder)
    with pytest.raises(BenchError, match=f"{name}' is a git-lfs pointer"):  # where no identity was asked for before
        loads(folder)


def test_an_adapter_beside_the_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "also holds an adapter" in refused(folder)


def test_a_config_that_names_a_file_outside_is_refused(folder: Path) -> None:
    (folder.parent / "tokenizer.4.0.0.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]}')
    assert "names a file outside" in refused(folder)


def test_what_is_opened_without_being_covered_is_refused(folder: Path) -> None:
    (folder / "README.md").write_text("words")
    with pytest.raises(BenchError, match=r"README\.md', which its identity does not cover"), watched(str(folder)):
        (folder / "README.md").read_text()
    outside = folder.parent / "vocab.json"
    outside.write_text("{}")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"vocab_file": str(outside)}))
    with watched(str(folder)):
        (folder / "config.json").read_text()
    with pytest.raises(BenchError, match=r"vocab\.json"), watched(str(folder)):
        outside.read_text()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_changed_since_the_plan_is_refused(name: str, tmp_path: Path) -> None:
    """Another file than the one that was planned with: never a record under the old id."""
    bench = TinyBench.create(tmp_path)
    plan = bench.plan([{"method": "lora", "rank": 2}])
    (cells,) = plan.packs
    loader = Loader(
        plan.grid.models, plan.grid.data, Options(bench.results, offline=True), QuietView(), torch.device("cpu")
    )
    content = json.loads((bench.model / name).read_text()) | {"changed": True}
    (bench.model / name).write_text(json.dumps(content))
    with pytest.raises(BenchError, match="has changed since the plan was made") as error:
        loader.tables(cells[0], loader.backbone(cells[0]))
    assert error.value.code == MISSING
