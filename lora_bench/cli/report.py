"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_bench.cli import output, paths
from lora_bench.cli.export import IncludeOption
from lora_bench.cli.options import including
from lora_bench.errors import BenchError


def report(
    results: paths.ResultsOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to (default: the results folder).", show_default=False)
    ] = None,
    vs_paper: Annotated[bool, typer.Option("--vs-paper", help="Compare with the published numbers.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Config whose `compare` says what is compared (default: compare.yaml of the results folder).",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Another results folder: say which cells are in both, and what changed, instead.", show_default=False
        ),
    ] = None,
    include: IncludeOption = None,
) -> None:
    """Rebuild tables, figures, statistics and the HTML page from the records; the last line is the page's path."""
    including(include)
    from lora_bench import methods
    from lora_bench.grid.config import load_comparisons
    from lora_bench.report import build
    from lora_bench.report.against import compare_folders

    console, errors = output.plain_console(), output.plain_console(stderr=True)
    folder = paths.results_folder(results)
    compare = load_comparisons(folder, config)
    if against is not None:
        if vs_paper:
            raise BenchError("--against and --vs-paper exclude each other.", "Give one of them.")
        compare_folders(folder, against, out or folder, console, compare.margin)
        return
    built = build(folder, out or folder, console, errors, vs_paper, compare, kinds=methods.by_kind().items())
    if built.code:
        raise typer.Exit(built.code)
