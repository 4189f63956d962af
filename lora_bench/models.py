"""Names of encoders: a Hub id is used as it is, a directory by its name and a hash of its content. No torch."""

from __future__ import annotations

import reprlib
from contextlib import suppress
from pathlib import Path

from lora_bench import model_files
from lora_bench.errors import MISSING, BenchError
from lora_bench.records.files import is_folder
from lora_bench.sample import ENCODER

DEFAULT_MODEL = "FacebookAI/roberta-base"
SAMPLE = "sample"  # the bundled encoder, and the bundled data


def location(name: str) -> str:
    """Return what transformers loads for a name: the bundled encoder for `sample`, else the name with `~` expanded."""
    if name == SAMPLE:
        return str(ENCODER)
    with suppress(RuntimeError):  # `~who` where there is no such user
        return str(Path(name).expanduser()) if name.startswith("~") else name
    return name


def identity(name: str) -> str:
    """Return a model as a cell names it: `<name>@<12 hex of the files' SHA-256>` for a directory, else the Hub's id.

    Raises:
        BenchError: Exit code 3 for a path that is not a directory, a directory that is not a complete model
            (`model_files.covered`), and a name that the Hub does not allow.
    """
    folder = Path(location(name))
    if is_folder(folder):
        label = SAMPLE if name == SAMPLE else folder.resolve().name
        return f"{label}@{model_files.digest(folder)}"
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
