"""The checks of `lora-bench doctor`: whether everything that a run needs is present and works."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from lora_bench.errors import BenchError
from lora_bench.models import SAMPLE, identity
from lora_bench.run import environment
from lora_bench.text import clean


class Check(NamedTuple):
    """One check: `passed` is None for a remark on something that a run can do without."""

    name: str
    passed: bool | None
    finding: str


def run_checks(results: Path) -> list[Check]:
    """Check versions, the device, the bundled sample, the Hub, and whether `results` can be written."""
    return [*_versions(), _device(), _bytecode(), _sample(), _hub(), _results_folder(results)]


def checks_table(checks: Iterable[Check]) -> Table:
    """Return the table that the command prints."""
    table = Table(title="lora-bench doctor", title_justify="left")
    for name in ("check", "", "finding"):
        table.add_column(name, overflow="fold", no_wrap=name == "")
    marks = {None: ("note", "yellow"), True: ("ok", "green"), False: ("BAD", "red")}
    for check in checks:
        table.add_row(check.name, Text(*marks[check.passed]), clean(check.finding))
    return table


def _versions() -> list[Check]:
    return [Check(name, version != "missing", version) for name, version in environment.versions().items()]


def _device() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("device", None, f"no GPU; {environment.device_name('cpu')}")
    count, name = torch.cuda.device_count(), environment.device_name("cuda")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    return Check("device", True, f"{count} × {name}, {memory:.0f} GiB, {bf16}")


def _bytecode() -> Check:
    """Whether libraries stay compiled: compiling torch, transformers and Ray again triples the time of every start."""
    specs = map(find_spec, ("torch", "transformers"))
    if all(Path(cache_from_source(spec.origin)).is_file() for spec in specs if spec is not None and spec.origin):
        return Check("start-up", True, "libraries are compiled once")
    finding = "libraries are compiled at every start, which triples its time: unset PYTHONDONTWRITEBYTECODE"
    return Check("start-up", None, f"{finding}, or run `python -m compileall` on site-packages")


def _sample() -> Check:
    return _attempt("bundled sample", lambda: identity(SAMPLE))


def _attempt(name: str, action: Callable[[], str]) -> Check:
    """Run an action that returns the finding; an error becomes the finding of a failed check."""
    try:
        return Check(name, True, action())
    except (BenchError, OSError) as error:
        return Check(name, False, " ".join(str(error).split()))


def _hub() -> Check:
    from lora_bench.data.hub import reachable

    if reachable():
        return Check("Hugging Face Hub", True, "can be reached")
    return Check("Hugging Face Hub", None, "cannot be reached: use --preset smoke, or --model DIR and --data-dir DIR")


def _results_folder(results: Path) -> Check:
    def attempt() -> str:
        nearest = next(folder for folder in (results, *results.resolve().parents) if folder.is_dir())
        with tempfile.TemporaryFile(dir=nearest):
            return f"{results} can be written"

    return _attempt("results folder", attempt)
