"""The commands `export`, which hands trained cells to other tools, and `check`, which tests methods and tasks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_bench.cli import completion, paths
from lora_bench.cli.options import including
from lora_bench.errors import SOME_FAILED, USAGE, BenchError, unknown
from lora_bench.text import counted

if TYPE_CHECKING:
    from lora_bench.contracts.suite import ContractResult
    from lora_bench.data import DataSource
    from lora_bench.export.trained import Trained

FORMS = ("peft", "merged", "glue", "eee")
DTYPES = ("float32", "float16", "bfloat16")

IncludeOption = Annotated[
    list[Path] | None,
    typer.Option("--include", help="Python file with your own method or task; it is run.", metavar="FILE"),
]
PushOption = Annotated[
    str | None,
    typer.Option("--push", help="Push it to this repository of the Hub as well: owner/name.", metavar="REPO"),
]
PublicOption = Annotated[
    bool, typer.Option("--public", help="With --push: a new repository is public (default: private).")
]


def export(
    to: Annotated[
        str,
        typer.Option(
            help="peft, merged, glue (takes several ids, one for each task) or eee (several ids, or none for all).",
            autocompletion=completion.one_of(*FORMS),
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder to write to.")],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="A cell's id, or the beginning of it.")
    ] = None,
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
    push: PushOption = None,
    public: PublicOption = False,
) -> Iterator[str]:
    """Export trained cells to other tools: as a peft LoRA, a transformers model, a submission to GLUE, or as scores.

    peft and merged exports are compared with the cell before they are written; every folder has a model card.

    eee is the JSON of Every Eval Ever, a common format of evaluation results.
    """
    including(include)
    ids, folder = ids or [], paths.results_folder(results)
    # Before torch is imported, so that a wrong option is reported at once.
    _require_valid_options(ids, to, dtype, push, public, offline)
    if to == "eee":
        yield _write_evaluations(ids, folder, out)
    else:
        from lora_bench.export import trained
        from lora_bench.run.environment import choose_device

        load = partial(trained.load, results=folder, model=model, device=choose_device(device), offline=offline)
        if to == "glue":
            yield from _write_submission([partial(load, cell_id) for cell_id in ids], out, data_dir)
        else:
            yield from _write_model(load(ids[0]), to, out, dtype, push, public)
    yield str(out)


def _write_submission(cells: Sequence[Callable[[], Trained]], out: Path, data_dir: Path | None) -> Iterator[str]:
    """Write predictions of test splits."""
    from lora_bench.data import DataSource
    from lora_bench.export import glue

    def test_data(cell: Trained) -> DataSource:
        return DataSource.parse(data_dir, sample=cell.has_bundled_data)

    yield from glue.write(cells, out, test_data)


def _write_model(cell: Trained, to: str, out: Path, dtype: str, push: str | None, public: bool) -> Iterator[str]:
    """Write an adapter or a merged model, and push it if that is asked for."""
    from lora_bench.export import folders

    yield folders.WRITERS[to](cell, out, dtype)
    if push is not None:
        yield _push_folder(push, out, cell, public)


def _write_evaluations(ids: Sequence[str], results: Path, out: Path) -> str:
    """Write the scores of the cells, or of all cells that were not trained for a search."""
    import time

    from lora_bench.export import every_eval_ever
    from lora_bench.records.store import find_record, read_records

    if ids:
        records = list({(record := find_record(results, cell_id)).id: record for cell_id in ids}.values())
    else:
        loaded = read_records(results)
        loaded.require_sound()
        records = [record for record in loaded.records if not record.is_search]
    return every_eval_ever.write(records, out, int(time.time()))


def _push_folder(repo: str, folder: Path, trained: Trained, public: bool) -> str:
    """Push an export; if that fails, say how the folder, which is whole, is pushed without another export."""
    from lora_bench import push

    try:
        message = f"{trained.cell.method} on {trained.task.title}, cell {trained.record.id} of lora-bench"
        return push.push(repo, push.files_of(folder), "model", message, public)
    except push.OtherFilesError as error:
        raise BenchError(error.what, f"{error.hint} The export is in '{folder}'.", error.code) from error
    except BenchError as error:
        words = ["hf", "upload", *([] if public else ["--private"]), "--", repo, str(folder), "."]
        raise BenchError(
            error.what, f"{error.hint} The export is in '{folder}': {shlex.join(words)}", error.code
        ) from error


def _require_valid_options(
    ids: Sequence[str], to: str, dtype: str, push: str | None, public: bool, offline: bool
) -> None:
    if to not in FORMS:
        raise unknown("form", to, FORMS)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if not ids and to != "eee":
        raise BenchError(f"--to {to} needs the id of a cell.", "See `lora-bench list runs --results DIR`.", USAGE)
    if to not in ("glue", "eee") and len(ids) > 1:
        hint = "Export them one by one, each with its own --out."
        raise BenchError(f"--to {to} takes one id, not {len(ids)}.", hint, USAGE)
    if push is not None and to not in ("peft", "merged"):
        raise BenchError(f"--push takes no export --to {to}.", "Push peft or merged, or leave --push out.", USAGE)
    from lora_bench.push import check_options

    check_options(push, public, offline)


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
    for name, run, count in checks:
        if name is not None:
            faults = yield from _result_lines(run(name))
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
    if what in methods.RECIPES or what in methods.BROKEN:
        return methods.get(what).name, None
    if what in tasks.TASKS or what in tasks.BROKEN:
        return None, tasks.get(what).name
    error = unknown("method or task", what, [*methods.RECIPES, *tasks.TASKS])
    raise BenchError(error.what, f"{error.hint} A file of your own ends with .py.", error.code)


def _result_lines(results: Iterable[ContractResult]) -> Generator[str, None, int]:
    """Yield lines that say which contracts are kept and how the others are broken; return how many are broken.

    A fault that breaks several contracts, as an error of a method does, is written once.
    """
    broken, seen = 0, set[str]()
    for result in results:
        yield f"{'pass' if result.fault is None else 'FAIL'}: {result.contract}"
        if result.fault is not None:
            broken += 1
            yield "- the same" if result.fault in seen else f"- {result.fault}"
            seen.add(result.fault)
    return broken
