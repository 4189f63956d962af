"""The paths that a user gives: `~` in them, and the results folder where none is given."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_bench.errors import NOTHING, BenchError
from lora_bench.text import clean

RESULTS = Path("results")  # `run` writes to a folder in it
READ_NAMES = ("metrics.csv", "records.jsonl.gz", "cells")  # of a results folder: what changes with its records

ResultsOption = Annotated[
    Path | None,
    typer.Option(help="The results folder (default: the newest under results/).", show_default=False),
]


def results_folder(given: Path | None) -> Path:
    """Return the results folder to read: the one that is given, else the one under `results` that was written last.

    Which one was taken is said on standard error.

    Raises:
        BenchError: Exit code 4 if none is given and there is none.
    """
    if given is not None:
        return given
    times = dict(_times_written())
    if not times:
        hint = "Train something first, or give --results the folder of a run."
        raise BenchError(f"There are no results under '{RESULTS}'.", hint, NOTHING)
    newest = max(times, key=lambda folder: (times[folder], folder))
    print(clean(f"Reading {newest} (the newest; --results names another)."), file=sys.stderr)
    return newest


def _times_written() -> Iterator[tuple[Path, int]]:
    """Yield the results folders under `results`, each with the nanoseconds when it was written last."""
    for folder in RESULTS.iterdir() if RESULTS.is_dir() else ():
        times = [path.stat().st_mtime_ns for name in READ_NAMES if (path := folder / name).exists()]
        if times:
            yield folder, max(times)


def expand_home(value: Any) -> Any:
    """Expand `~` in an option's value if it is a path or a list of paths; shells do not in `--option=~/x`.

    Raises:
        BenchError: Exit code 2 for `~name` where there is no such user, or `~` without a home folder.
    """
    if isinstance(value, list):
        return [expand_home(item) for item in value]
    if not isinstance(value, Path) or not str(value).startswith("~"):
        return value
    try:
        return value.expanduser()
    except RuntimeError:
        first = value.parts[0]
        raise BenchError(
            f"'{first}' of '{value}' is not a home folder.", f"For a folder with that name, write ./{first}."
        ) from None
