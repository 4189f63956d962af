"""The files of a model's directory that loading may read, which its identity (a hash) covers. No torch.

All files at the top of the directory count, except hidden ones and kinds that loading never reads (documents, other
formats of weights). In its subfolders, the files that a config or an index names count. Loading is watched (`watched`):
if it opens any other file, the model is refused, so that the identity covers everything that was read.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BufferedReader
from pathlib import Path

from lora_bench.errors import MISSING, BenchError
from lora_bench.records.files import listing, read_file

CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt")
ADAPTER = "adapter_config.json"
TEMPLATES = "additional_chat_templates"  # transformers lists this folder, so no config names its files

# Only safetensors are loaded, no pickle and no code. If loading opens one of these files all the same, `watched`
# refuses the model.
OTHER_WEIGHTS = (
    ".bin",
    ".ckpt",
    ".gguf",
    ".h5",
    ".mlmodel",
    ".msgpack",
    ".onnx",
    ".ot",
    ".pickle",
    ".pkl",
    ".pt",
    ".pth",
)
OTHER_CONTENT = (
    ".csv",
    ".ipynb",
    ".jsonl",
    ".log",
    ".md",
    ".parquet",
    ".pdf",
    ".png",
    ".py",
    ".sh",
    ".tsv",
    ".yaml",
    ".yml",
)
DOCUMENTS = ("LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt", "README", "README.txt", "dict.txt")
LEFT_BY_TRAINING = ("all_results.json", "eval_results.json", "train_results.json", "trainer_state.json")
OF_SENTENCES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "data_config.json")
LEGACY = ("added_tokens.json", "special_tokens_map.json")  # not read beside `added_tokens_decoder`
UNREAD = frozenset(DOCUMENTS + LEFT_BY_TRAINING + OF_SENTENCES)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LONGEST_JSON = 2**24  # bytes


def digest(folder: Path) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of all covered files, with their names.

    Raises:
        BenchError: Exit code 3 for what `covered` refuses, and for a file that cannot be read.
    """
    directory_hash = hashlib.sha256()
    for name in covered(folder):
        with _open_complete(folder / name) as file:
            content_hash = hashlib.file_digest(file, "sha256").digest()
        directory_hash.update(f"{name}:".encode() + content_hash)
    return directory_hash.hexdigest()[:12]


@contextmanager
def _open_complete(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading.

    Raises:
        BenchError: Exit code 3 if it cannot be read, or is a git-lfs pointer to the file.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                what = f"'{path}' is a git-lfs pointer, not the file itself."
                raise BenchError(what, "Run `git lfs pull` where it was cloned, or download the file itself.", MISSING)
            file.seek(0)
            yield file
    except OSError as error:
        what = f"'{path}' cannot be read: {error.strerror}."
        raise BenchError(what, "Make it readable, or get it again.", MISSING) from error


def covered(folder: Path) -> list[str]:
    """Return the files that loading may read, as paths within the folder.

    The order is part of the identity: first config, tokenizer and weights, then all others, sorted.

    Raises:
        BenchError: Exit code 3 for a folder without config.json or safetensors weights, with an adapter beside the
            model, with a pipe or device, or with a config that names a file outside of the folder.
    """
    entries = [path.name for path in listing(folder) if not _is_dangling(path)]
    if ADAPTER in entries:
        what = f"The directory '{folder}' also holds an adapter ({ADAPTER}), which transformers would apply."
        raise BenchError(what, "Merge it into the weights, or move it to a directory of its own.", MISSING)
    regular = [name for name in entries if (folder / name).is_file()]
    weights = [name for name in regular if name.endswith(".safetensors")]
    if CONFIG not in regular or not any(name.endswith(".safetensors") for name in entries):
        lacking = CONFIG if CONFIG not in regular else "weights in safetensors format"
        raise BenchError(f"The directory '{folder}' has no {lacking}.", "Give a transformers model directory.", MISSING)
    first = [CONFIG, *(name for name in TOKENIZER_FILES if name in regular), *weights]
    others = {name for name in regular if not _is_unread(name)} - _superseded_files(folder)
    others |= set(_named_files(folder, regular))
    others |= {f"{TEMPLATES}/{path.name}" for path in listing(folder / TEMPLATES) if not _is_dangling(path)}
    return first + sorted(others - set(first))


def _is_unread(name: str) -> bool:
    return name.startswith(".") or name in UNREAD or name.lower().endswith(OTHER_WEIGHTS + OTHER_CONTENT)


def _superseded_files(folder: Path) -> set[str]:
    """Return the files that transformers does not read because tokenizer_config.json has their content."""
    settings = _content(folder / "tokenizer_config.json")
    return set(LEGACY) if isinstance(settings, dict) and "added_tokens_decoder" in settings else set()


def _is_dangling(path: Path) -> bool:
    """Return whether a path is a link to nowhere.

    Raises:
        BenchError: For a pipe, a socket or a device, which a reader might wait for without end.
    """
    try:
        mode = path.stat().st_mode
    except OSError:  # a link to nowhere
        return True
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or _is_unread(path.name):
        return False
    raise BenchError(f"'{path}' is a pipe, a socket or a device.", "Put a regular file in its place.", MISSING)


def _named_files(folder: Path, regular: list[str]) -> Iterator[str]:
    """Yield the files in the folder that its configs and indices name.

    Absolute paths are left to `watched`: transformers writes paths of its cache into configs, but does not read them.
    """
    for text in _texts(folder, regular):
        path = Path(os.path.normpath(text))
        if not path.is_absolute() and _is_file(folder / path):
            if path.parts[0] == "..":
                what = f"The directory '{folder}' names a file outside of it: '{text}'."
                raise BenchError(what, "Put the file into the directory.", MISSING)
            if not _is_dangling(folder / path):
                yield path.as_posix()


def _texts(folder: Path, regular: list[str]) -> Iterator[str]:
    """Yield all texts in the configs and indices that may be paths."""
    for name in regular:
        if not _is_unread(name) and name.endswith(".json") and ("config" in name or name.endswith(".index.json")):
            values = [_content(folder / name)]
            while values:
                value = values.pop()
                if isinstance(value, dict):
                    values += value.values()
                elif isinstance(value, list):
                    values += value
                elif isinstance(value, str) and 0 < len(value) < 512 and value.isprintable():
                    yield value


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):
        return False


_opened: list[set[str]] = []  # the paths opened in each `watched` block in progress


class _Reader(threading.local):
    """Whether this thread reads for this module, which is not a part of loading."""

    is_us = False


_reader = _Reader()


@contextmanager
def _unnoted_reads() -> Iterator[None]:
    """Do not note the files that this thread opens in the block."""
    before, _reader.is_us = _reader.is_us, True
    try:
        yield
    finally:
        _reader.is_us = before


@_unnoted_reads()
def _content(path: Path) -> object:
    """Return the content of a JSON file; None if it is not JSON, which loading will report."""
    try:
        return json.loads(read_file(path)) if path.stat().st_size <= LONGEST_JSON else None
    except (OSError, ValueError, RecursionError):
        return None


@cache
def _audit() -> None:
    """Install a hook that notes the files that this process opens within `watched`.

    Python cannot remove an audit hook. Outside of `watched` this one does nothing.
    """

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if _opened and event == "open" and not _reader.is_us and isinstance(arguments[0], str | bytes | os.PathLike):
            for names in _opened:
                names.add(os.path.abspath(os.fsdecode(arguments[0])))  # noqa: PTH100

    sys.addaudithook(note)


@contextmanager
def watched(location: str) -> Iterator[None]:
    """Refuse a model if the block opens a file that the identity of its directory does not cover.

    Only files that Python opens are seen. The libraries that open files by themselves (safetensors, tokenizers) are
    given paths that `covered` returns.

    Args:
        location: The model: a directory, or an id of the Hub, for which nothing is watched.

    Raises:
        BenchError: Exit code 3; it names the file. After the block for a file that is not covered, before it for a
            covered file that cannot be read or is a git-lfs pointer.
    """
    folder = Path(os.path.abspath(location))  # noqa: PTH100
    if not folder.is_dir():
        yield
        return
    _audit()
    covered_names = covered(folder)
    for name in covered_names:
        with _unnoted_reads(), _open_complete(folder / name):
            pass
    named = {os.path.normpath(folder / text) for text in _texts(folder, covered_names)}
    _opened.append(set())
    try:
        yield
    finally:
        names = _opened.pop()
    inside = {name for name in names if Path(name).is_relative_to(folder)}
    allowed = {str(folder / name) for name in covered_names}
    for name in sorted((inside | (names & named)) - allowed):
        if _is_file(Path(name)):
            what = f"Loading '{location}' reads '{name}', which its identity does not cover."
            raise BenchError(what, "Remove that file, or the line of a config that names it.", MISSING)
