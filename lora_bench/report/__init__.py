"""The report: tables, figures, statistics and one HTML page, computed from the records of a results folder.

    build -> store.read_records -> frame -> entries -> comparisons -> content (answer, tables) -> write

    numbers/  frame, entries, statistics, comparisons, the answer, and the tables in a neutral form
    figures/  the figures
    formats/  terminal, Markdown, CSV, JSON, LaTeX and HTML

The files depend on the records only: not on the date, on paths, on the order of files or on the locale.
"""

from __future__ import annotations

import gc
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.errors import NOTHING, BenchError

if TYPE_CHECKING:
    from rich.console import Console

    from lora_bench.compare import Comparisons
    from lora_bench.report.numbers.frame import MethodGroups
    from lora_bench.report.write import ReportFiles


def build(
    results: Path,
    out: Path,
    console: Console,
    errors: Console | None = None,
    vs_paper: bool = False,
    compare: Comparisons | None = None,
    verdict_only: bool = False,
    kinds: MethodGroups = (),
) -> ReportFiles:
    """Write the report on a results folder and print its tables.

    Writes `report.html`, `report.md`, `report.tex`, `report.json`, `tables/*.{csv,tex}` and `figures/*.{png,svg,pdf}`,
    each whole or not at all.

    Args:
        results: The results folder.
        out: The folder to write to.
        console: Where to print the tables; the last line is the page's path.
        errors: Where to name the records that cannot be read; standard error by default.
        vs_paper: Whether to compare with the published numbers.
        compare: What is compared; the default comparisons unless given.
        verdict_only: Whether to print the answer and the table of a verdict alone.
        kinds: The methods of each group, in the order of the groups (`methods.by_kind().items()`).

    Returns:
        What was written.

    Raises:
        BenchError: There are no records (exit code NOTHING).
    """
    from threadpoolctl import threadpool_limits

    from lora_bench.records.store import count_records, read_records
    from lora_bench.report.figures.encoding import figure_encoder

    import_module("numpy")  # loads the library whose threads are limited
    # With one thread the order of a sum, and with it the last digit, is the same whatever the environment asks for.
    with threadpool_limits(1), _without_garbage_collection(), figure_encoder(count_records(results)) as encoder:
        # Imported here, where nothing collects garbage, and while the processes of the encoder start.
        from lora_bench.report.content import gather
        from lora_bench.report.formats.render import print_lines
        from lora_bench.report.write import print_files, print_frontiers, print_report, print_verdict, write

        loaded = read_records(results)
        gc.freeze()  # importing some libraries runs a collection, which need not look through the records
        unreadable = [f"Cannot read {path.name}: {reason}" for path, reason in loaded.broken]
        print_lines(unreadable, errors or _standard_error(), "yellow")
        if not loaded.records:
            command = f"lora-bench run --preset smoke --results {shlex.quote(str(results))}"
            raise BenchError(f"No results in '{results}'.", f"Fill it: {command}", NOTHING)
        content = gather(loaded, vs_paper, compare, kinds)
        files = write(content, out, encoder)
        if verdict_only:
            print_verdict(content, console)
            print_frontiers(files, console)
        else:
            print_report(content, console)
        print_files(files, console)
    return files


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch off garbage collection: 100,000 records contain no garbage, and traversing them doubles the time."""
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
