"""Handing cells to other tools, and checking methods and tasks from elsewhere."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_bench.cli import paths
from lora_bench.cli.options import including
from lora_bench.errors import SOME_FAILED
from lora_bench.text import counted

if TYPE_CHECKING:
    from lora_bench.contracts.suite import Verdict

Included = Annotated[
    list[Path] | None, typer.Option("--include", help="A Python file with a method or a task of your own; it is run.")
]


def export(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The cell's id, or its beginning.")],
    to: Annotated[str, typer.Option(help="peft, merged or glue (glue takes several ids, one a task).")],
    out: Annotated[Path, typer.Option(help="A new folder to write to.")],
    results: Annotated[Path, typer.Option(help="The results folder.")] = Path("results/smoke"),
    model: Annotated[Path | None, typer.Option(help="The model's directory, where it is not the Hub's.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="glue: folder <task>/test.parquet, .jsonl or .tsv.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16; not for glue.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Ask no network.")] = False,
    include: Included = None,
) -> Iterator[str]:
    """Hand a trained cell to other tools: a peft LoRA, a transformers model, or GLUE's leaderboard.

    peft and merged are checked against the cell before they are written; each folder has a model card.
    """
    from lora_bench.export import command

    including(include)
    command.refuse_early(ids, to, dtype)
    yield from command.run(command.Wish(tuple(ids), to, out, results, model, data_dir, dtype, device, offline))
    yield str(out)


def check(
    what: Annotated[
        str, typer.Argument(metavar="FILE", help="A Python file with a method or a task (it is run), or a name.")
    ],
) -> Iterator[str]:
    """Check a method or a task of your own: each contract that the benchmark relies on, kept or not, and why."""
    method, task = _named(what)
    from lora_bench.contracts import suite

    broken = 0
    checks = ((method, suite.check, len(suite.CONTRACTS)), (task, suite.check_task, len(suite.TASK_CONTRACTS)))
    for name, verdicts, count in checks:
        if name is not None:
            faults = yield from _checked(verdicts(name))
            yield f"{name}: {count - faults} of {counted(count, 'contract')} are kept."
            broken += faults
    if broken:
        raise typer.Exit(SOME_FAILED)


def _named(what: str) -> tuple[str | None, str | None]:
    """The names of the method and of the task that a file defines, or of the one that has this name."""
    from lora_bench import methods, tasks

    if what.endswith(".py"):
        ((recipe, task),) = including([paths.expanded(Path(what))])
        return None if recipe is None else recipe.name, None if task is None else task.name
    if what in tasks.TASKS and what not in methods.RECIPES:
        return None, what
    return methods.get(what).name, None


def _checked(verdicts: Iterable[Verdict]) -> Generator[str, None, int]:
    """Lines that say what is kept and what is not; returns how many contracts are not."""
    broken = 0
    for verdict in verdicts:
        yield f"{'pass' if verdict.fault is None else 'FAIL'}: {verdict.contract}"
        if verdict.fault is not None:
            broken += 1
            yield f"- {verdict.fault}"
    return broken
