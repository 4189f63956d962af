"""What a cell's numbers depend on besides its settings: the code that trains it, and the libraries. No torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from lora_bench import methods

LIBRARIES = ("torch", "transformers", "tokenizers")
_ROOT = Path(__file__).parent
_TRAINS = ("data/tokens.py", "metrics.py", "methods/recipe.py")


@cache
def code(method: str) -> str:
    """12 hex of the SHA-256 of the files that decide the numbers of a method: the engine's and its own."""
    classes = type(methods.get(method)).__mro__  # some are not of this package
    own = [_ROOT / "methods" / f"{kind.__module__.rpartition('.')[2]}.py" for kind in classes]
    paths = {*(_ROOT / name for name in _TRAINS), *filter(Path.is_file, own), *(_ROOT / "engine").glob("*.py")}
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}:".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def versions_of(*names: str) -> dict[str, str]:
    """Versions of installed packages, `missing` for one that is not."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


@cache
def current(method: str) -> dict[str, str]:
    """The fingerprint by field, as it is now."""
    return {"code": code(method), **versions_of(*LIBRARIES)}


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Which fields have changed, in words; a field that either lacks has not. Builds of one version count as one."""
    return [
        f"{field} {then[field]}, now {value}"
        for field, value in now.items()
        if field in then and value != "missing" and then[field].partition("+")[0] != value.partition("+")[0]
    ]
