"""The commands `export`, which hands trained cells to other tools, and `check`, which tests a method of your own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_bench.cli import completion, paths
from lora_bench.cli.options import including
from lora_bench.errors import SOME_FAILED, USAGE, BenchError, unknown
from lora_bench.text import counted

if TYPE_CHECKING:
    from lora_bench.data import DataSource
    from lora_bench.export.trained import Trained

FORMS = ("peft", "merged", "glue")
DTYPES = ("float32", "float16", "bfloat16")

IncludeOption = Annotated[
    list[Path] | None, typer.Option("--include", help="Python file with your own method; it is run.", metavar="FILE")
]


def export(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="A cell's id, or the beginning of it.")],
    to: Annotated[
        str,
        typer.Option(
            help="peft, merged or glue (glue takes several ids, one for each task).",
            autocompletion=completion.one_of(*FORMS),
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder to write to.")],
    results: Annotated[Path, typer.Option(help="The results folder.")] = Path("results/smoke"),
    model: Annotated[Path | None, typer.Option(help="The model's directory, if it is not from the Hub.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="glue: folder with <task>/test.parquet, .jsonl or .tsv.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, float16 or bfloat16; not for glue.", autocompletion=completion.one_of(*DTYPES))
    ] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Use no network.")] = False,
    include: IncludeOption = None,
) -> Iterator[str]:
    """Export a trained cell to other tools: as a peft LoRA, a transformers model, or a submission to GLUE.

    peft and merged exports are compared with the cell before they are written; every folder has a model card.
    """
    including(include)
    _require_valid_options(ids, to, dtype)  # before torch is imported, so that a wrong option is reported at once
    from lora_bench.data import DataSource
    from lora_bench.export import folders, glue, trained
    from lora_bench.models import SAMPLE
    from lora_bench.run.device import choose_device

    load = partial(trained.load, results=results, model=model, device=choose_device(device), offline=offline)

    def test_data(cell: Trained) -> DataSource:
        return DataSource.parse(data_dir, sample=cell.cell.data.startswith(SAMPLE))

    if to == "glue":
        yield from glue.write([partial(load, cell_id) for cell_id in ids], out, test_data)
    else:
        yield folders.WRITERS[to](load(ids[0]), out, dtype)
    yield str(out)


def _require_valid_options(ids: Sequence[str], to: str, dtype: str) -> None:
    if to not in FORMS:
        raise unknown("form", to, FORMS)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if to != "glue" and len(ids) > 1:
        hint = "Export them one by one, each with its own --out."
        raise BenchError(f"--to {to} takes one id, not {len(ids)}.", hint, USAGE)


def check(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A Python file with a method (it is run), or a method's name.",
            autocompletion=completion.method_names,
        ),
    ],
) -> Iterator[str]:
    """Check a method of your own against each contract that the benchmark relies on, and report what fails and why."""
    from lora_bench import methods

    method = methods.include(paths.expand_home(Path(what))).name if what.endswith(".py") else methods.get(what).name
    from lora_bench.contracts import suite

    broken = 0
    for verdict in suite.check(method):
        yield f"{'pass' if verdict.fault is None else 'FAIL'}: {verdict.contract}"
        if verdict.fault is not None:
            broken += 1
            yield f"- {verdict.fault}"
    yield f"{method}: {len(suite.CONTRACTS) - broken} of {counted(len(suite.CONTRACTS), 'contract')} are kept."
    if broken:
        raise typer.Exit(SOME_FAILED)
