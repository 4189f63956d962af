"""Names of encoders: a Hub id stays as it is, a directory becomes its name and a hash of its content. No torch."""

from __future__ import annotations

import hashlib
import reprlib
from contextlib import suppress
from pathlib import Path

from lora_bench.errors import MISSING, BenchError
from lora_bench.files import is_folder
from lora_bench.sample import ENCODER

DEFAULT_MODEL = "FacebookAI/roberta-base"
SAMPLE = "sample"  # the bundled encoder, and the bundled data
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt")


def location(name: str) -> str:
    """What transformers loads for a name: the bundled encoder for `sample`, else the name itself, `~` expanded."""
    if name == SAMPLE:
        return str(ENCODER)
    with suppress(RuntimeError):  # `~who` where there is no such user
        return str(Path(name).expanduser()) if name.startswith("~") else name
    return name


def identity(name: str) -> str:
    """What enters the cell: `<name>@<12 hex of the files' SHA-256>` for a directory, the id itself for the Hub's.

    Raises:
        BenchError: exit code 3 for a path that is no directory, or one without config.json or safetensors weights.
    """
    folder = Path(location(name))
    if is_folder(folder):
        label = SAMPLE if name == SAMPLE else folder.resolve().name
        return f"{label}@{_fingerprint(folder)}"
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise BenchError(f"There is no model directory '{name}'.", f"The default is {DEFAULT_MODEL}.", MISSING)
    _require_hub_name(name)
    return name


def _require_hub_name(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        what = f"'{reprlib.repr(name)[1:-1]}' is neither a directory nor a name that the Hub allows."
        raise BenchError(what, f"The default is {DEFAULT_MODEL}.", MISSING) from None


def _fingerprint(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors"))
    config = folder / "config.json"
    if not config.is_file() or not weights:
        lacking = "config.json" if not config.is_file() else "weights in safetensors format"
        raise BenchError(f"The directory '{folder}' has no {lacking}.", "Give a transformers model directory.", MISSING)
    digest = hashlib.sha256()
    for path in [config, *(folder / name for name in TOKENIZER_FILES), *weights]:
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name}:".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
