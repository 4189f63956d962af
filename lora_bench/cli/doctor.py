"""`doctor`: is everything there that a run needs?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lora_bench.errors import BenchError
from lora_bench.models import identity
from lora_bench.run import environment
from lora_bench.text import clean

Check = tuple[str, bool | None, str]  # what, sound (None: only a notice), words


def examine(results: Path) -> tuple[Table, bool]:
    """A table of checks, and whether all that is needed is sound."""
    checks = [*_versions(), _device(), _sample(), _hub(), _writable(results)]
    table = Table(title="lora-bench doctor", title_justify="left")
    for name in ("check", "", "found"):
        table.add_column(name, overflow="fold")
    for what, sound, words in checks:
        mark = Text("note", "yellow") if sound is None else Text("ok", "green") if sound else Text("BAD", "red")
        table.add_row(what, mark, clean(words))
    return table, all(sound is not False for _, sound, _ in checks)


def _versions() -> list[Check]:
    return [(name, version != "missing", version) for name, version in environment.versions().items()]


def _device() -> Check:
    import torch

    if not torch.cuda.is_available():
        return "device", None, f"no GPU; {environment.device_name('cpu')}"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    return "device", True, f"{torch.cuda.device_count()} × {environment.device_name('cuda')}, {memory:.0f} GiB, {bf16}"


def _sample() -> Check:
    return _attempt("bundled sample", lambda: identity("sample"))


def _attempt(what: str, action: Callable[[], str]) -> Check:
    try:
        return what, True, action()
    except (BenchError, OSError) as error:
        return what, False, " ".join(str(error).split())


def _hub() -> Check:
    from lora_bench.data.hub import reachable

    if reachable():
        return "Hugging Face Hub", True, "answers"
    return "Hugging Face Hub", None, "does not answer: use --preset smoke, or --model DIR and --data-dir DIR"


def _writable(results: Path) -> Check:
    def attempt() -> str:
        nearest = next(folder for folder in (results, *results.resolve().parents) if folder.is_dir())
        with tempfile.TemporaryFile(dir=nearest):
            return f"{results} can be written"

    return _attempt("results folder", attempt)
