"""The report: tables, figures, statistics and one HTML page, from the records that are there.

    build -> store.read_records -> rows -> slots -> content (tables, sentences) -> write, html

The files are a function of the records alone: no date, no path, no order of files, no locale enters them.
"""

from __future__ import annotations

import gc
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.errors import DONE, NOTHING, SOME_FAILED, BenchError

if TYPE_CHECKING:
    from rich.console import Console

    from lora_bench.report.figures.encoding import Helpers


@dataclass(frozen=True)
class Report:
    """What was written. `code` is the exit code: SOME_FAILED when a record could not be read, else DONE."""

    page: Path
    reports: tuple[Path, ...]
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    broken: tuple[Path, ...]

    @property
    def code(self) -> int:
        """The process's exit code."""
        return SOME_FAILED if self.broken else DONE


def build(results: Path, out: Path, console: Console, errors: Console | None = None, vs_paper: bool = False) -> Report:
    """Write the report on `results` to `out` and print its tables to `console`, the page's path last.

    Writes `report.html`, `report.md`, `report.tex`, `report.json`, `tables/*.{csv,tex}` and `figures/*.{png,svg,pdf}`,
    each whole or not at all. `vs_paper` adds the published numbers. Records that cannot be read are named on `errors`
    (standard error by default). BenchError NOTHING: no record there.
    """
    from lora_bench.report.figures.encoding import helping
    from lora_bench.store import count_records

    with _uncollected(), helping(count_records(results)) as helpers:
        return _build(results, out, console, errors, vs_paper, helpers)


def _build(
    results: Path, out: Path, console: Console, errors: Console | None, vs_paper: bool, helpers: Helpers
) -> Report:
    from lora_bench.report.content import gather
    from lora_bench.report.formats.render import print_lines
    from lora_bench.report.write import show, show_files, write
    from lora_bench.store import read_records

    loaded = read_records(results)
    gc.freeze()  # some libraries collect when they are imported
    unread = [f"Cannot read {path.name}: {reason}" for path, reason in loaded.broken]
    print_lines(unread, errors or _standard_error(), "yellow")
    if not loaded.records:
        command = f"lora-bench run --preset smoke --results {shlex.quote(str(results))}"
        raise BenchError(f"No results in '{results}'.", f"Fill it: {command}", NOTHING)
    content = gather(loaded, vs_paper)
    written = write(content, out, helpers)
    show(content, console)
    show_files(written, console)
    return Report(written.page, written.reports, written.tables, written.figures, tuple(p for p, _ in loaded.broken))


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection inside: 100,000 records are none, and to look through them again doubles the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def _standard_error() -> Console:
    from rich.console import Console

    return Console(stderr=True)
