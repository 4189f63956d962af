"""The commands `export`, which hands trained cells to other tools, and `check`, which tests methods and tasks."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_bench.cli import completion, paths
from lora_bench.cli.options import including
from lora_bench.errors import SOME_FAILED, USAGE, BenchError, unknown
from lora_bench.text import counted

if TYPE_CHECKING:
    from lora_bench.contracts.suite import Verdict
    from lora_bench.data import DataSource
    from lora_bench.export.trained import Trained

FORMS = ("peft", "merged", "glue")
DTYPES = ("float32", "float16", "bfloat16")

IncludeOption = Annotated[
    list[Path] | None,
    typer.Option("--include", help="Python file with your own method or task; it is run.", metavar="FILE"),
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
    results: paths.ResultsOption = None,
    model: Annotated[Path | None, typer.Option(help="The model's directory, if it is not from the Hub.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="glue: folder with <task>/test.parquet, .jsonl, .csv or .tsv.")
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

    folder = paths.results_folder(results)
    load = partial(trained.load, results=folder, model=model, device=choose_device(device), offline=offline)

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
            help="A Python file with a method or a task (it is run), or the name of one.",
            autocompletion=completion.method_and_task_names,
        ),
    ],
) -> Iterator[str]:
    """Check your own method or task against the benchmark's contracts, and report what fails and why."""
    method, task = _names_to_check(what)
    from lora_bench.contracts import suite

    broken = 0
    checks = ((method, suite.check, len(suite.CONTRACTS)), (task, suite.check_task, len(suite.TASK_CONTRACTS)))
    for name, verdicts, count in checks:
        if name is not None:
            faults = yield from _verdict_lines(verdicts(name))
            yield f"{name}: {count - faults} of {counted(count, 'contract')} are kept."
            broken += faults
    if broken:
        raise typer.Exit(SOME_FAILED)


def _names_to_check(what: str) -> tuple[str | None, str | None]:
    """Return the names of the method and the task that a file defines, or the name given as one of the two."""
    from lora_bench import methods, tasks

    if what.endswith(".py"):
        ((recipe, task),) = including([paths.expand_home(Path(what))])
        return None if recipe is None else recipe.name, None if task is None else task.name
    if what in tasks.TASKS and what not in methods.RECIPES:
        return None, what
    return methods.get(what).name, None


def _verdict_lines(verdicts: Iterable[Verdict]) -> Generator[str, None, int]:
    """Yield lines that say which contracts are kept and how the others are broken; return how many are broken."""
    broken = 0
    for verdict in verdicts:
        yield f"{'pass' if verdict.fault is None else 'FAIL'}: {verdict.contract}"
        if verdict.fault is not None:
            broken += 1
            yield f"- {verdict.fault}"
    return broken
