"""The command line: parse the options, call the package, print, and end with a documented exit code.

This module, `options`, `completion`, `export`, `records`, `report` and `verdict` are loaded by every `--help` and at
every press of Tab. Therefore they import at their top only the standard library, typer, rich and the light modules of
this package, and each command imports what it needs inside its function. `tables`, `progress` and `doctor` are imported
by commands only.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lora_bench import __version__
from lora_bench.cli import caches, completion, export, output, paths, records, report, verdict
from lora_bench.cli.options import ExecutionOptions, Selection, including, selection_options
from lora_bench.errors import DONE, INTERRUPTED, MISSING, SOME_FAILED, BenchError, of_the_system, unknown
from lora_bench.run import signals

if TYPE_CHECKING:
    from rich.table import Table

    from lora_bench.run.interfaces import Executor
    from lora_bench.run.plan import Plan

app = typer.Typer(
    name="lora-bench",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _flag(name: str, text: str) -> Any:
    """Return a flag without a `--no-` form."""
    return typer.Option(name, help=text)


def _unset(text: str) -> Any:
    """Return an option that is unset by default; its help text says what that means."""
    return typer.Option(help=text, show_default=False)


def handle_errors(command: Callable[..., None], interrupted: str = "Interrupted.") -> Callable[..., None]:
    """Decorate a command so that it ends as documented, and expand `~` in the paths that it is given.

    An error that the user can fix is printed in two lines and sets the exit code; Ctrl-C ends with 130. Anything else
    is a fault of this program and is raised, as everything is under `--debug`.

    Args:
        command: The command.
        interrupted: What is printed after Ctrl-C.
    """

    @wraps(command)
    def guarded(*args: Any, **values: Any) -> None:
        note = caches.ensure_cache_home()
        if note:
            output.print_line(note, stderr=True)
        try:
            command(*args, **{name: paths.expand_home(value) for name, value in values.items()})
        except KeyboardInterrupt:
            output.print_line(interrupted, stderr=True)
            raise typer.Exit(INTERRUPTED) from None
        except BaseException as error:
            user_error = _as_user_error(error)
            if user_error is None or values.get("debug"):
                raise
            print_error(user_error)
            raise typer.Exit(user_error.code) from None

    return guarded


def _as_user_error(error: BaseException) -> BenchError | None:
    """Return an error in the user's terms; None for a requested exit and for a fault of this program."""
    if isinstance(error, BenchError):
        return error
    from lora_bench import plugins

    # First: a user's code may raise anything, SystemExit included, which would end the process without a message.
    plugin_error = plugins.blamed(error)
    return of_the_system(error) if plugin_error is None and isinstance(error, OSError) else plugin_error


def print_error(error: BenchError) -> None:
    """Print an error on standard error: one line that says what, one line that says how to fix it."""
    console = output.plain_console(stderr=True)
    console.print(Text.assemble(("Error: ", "bold red"), error.what), soft_wrap=True)
    console.print(Text(error.hint), soft_wrap=True)


def print_lines(command: Callable[..., Iterator[str]]) -> Callable[..., None]:
    """Decorate a generator command: print each line as soon as it is yielded."""

    @wraps(command)
    def printing(*args: Any, **values: Any) -> None:
        for line in command(*args, **values):
            output.print_line(line)

    return printing


def outlive_output(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command that writes files: it finishes its work even if standard output can no longer be written."""

    @wraps(command)
    def shielded(*args: Any, **values: Any) -> None:
        with output.optional("the command continues without it."):
            command(*args, **values)

    return shielded


def _print_version(requested: bool) -> None:
    if requested:
        print(f"lora-bench {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train a whole grid of LoRA-family adapters over one frozen encoder at once, on GLUE.

    \b
    lora-bench run --preset smoke          a small grid, without a network
    lora-bench run --task sst2 --method mini --rank 16
    lora-bench report --results results/smoke
    """


@app.command()
@partial(
    handle_errors,
    interrupted="Interrupted. Finished cells are recorded and unfinished ones are saved; the same command resumes.",
)
@selection_options
def run(selection: Selection, execution: ExecutionOptions) -> None:
    """Train the cells that have no record yet, and write metrics.csv.

    Options narrow or override a preset or a config. Models and data come from the Hub, unless folders are given.
    """
    execution.check_engine()
    grid = selection.grid()  # before torch or Ray is started, so that a mistake in the selection is reported at once
    pack_size, folder = selection.pack_size(), selection.results_folder()
    from lora_bench.run import owner
    from lora_bench.run import plan as plans

    owner.refuse_if_in_use(folder)
    with closing(execution.executor(len(grid.entries))) as executor:
        device, name = executor.find_device()
        plan = plans.make(grid, folder, pack_size, selection.states_to_retry(), name, caches.calibration_file())
        _run(plan, selection, execution, device, executor)


def _run(plan: Plan, selection: Selection, execution: ExecutionOptions, device: str, executor: Executor) -> None:
    """Run a plan, and print what is known before and what has come of it."""
    from lora_bench.cli import progress, tables
    from lora_bench.grid.config import keep_comparisons
    from lora_bench.records import store
    from lora_bench.run import interfaces, runner, tracking

    folder = plan.store.results
    console = output.plain_console()
    with output.optional(f"the run continues without it; its results are in {folder}."):
        summary = tables.plan_summary(plan, str(folder), execution.planned_gpus(), execution.save)
        console.print(summary, soft_wrap=True)
        _warn_broken(plan.broken)
        store.prepare(folder)
        keep_comparisons(folder, selection.load_config().compare)
        options = interfaces.Options(
            folder, device, execution.offline, execution.save, caches.cache_folder(), execution.debug
        )
        with (
            progress.ProgressView(console, plan, execution.debug) as shown,
            tracking.tracked(shown, execution.track or (), folder, execution.offline) as view,
        ):
            grid_run = runner.Runner(plan, options, view, signals.current(), executor)
            cell_records = grid_run.run()
        results = tables.results_table([record for record in cell_records if not record.is_search])
        tables.print_table(console, results, tables.RESULTS_DROPPED)
        output.print_line(f"{folder / 'metrics.csv'}")
        unsuccessful = [record for record in cell_records if record.status != "done"]
        for record in unsuccessful:
            output.print_line(f"{record.status}: {record.id} {record.cell.task} {record.reason}")
        untrained = tables.untrained_lines(grid_run.plan)
        for line in untrained:
            output.print_line(line)
    if output.failed():
        output.print_line(tables.run_summary(cell_records, folder), stderr=True)
    failed = any(record.is_failure for record in cell_records)
    if failed or untrained or plan.broken or grid_run.store.broken:
        raise typer.Exit(SOME_FAILED)


@app.command()
@handle_errors
@selection_options
def plan(selection: Selection, execution: ExecutionOptions) -> None:
    """Show which cells would run, their predicted cost, and which are recorded already; nothing is trained."""
    from lora_bench.cli import tables
    from lora_bench.run import environment
    from lora_bench.run import plan as plans

    execution.check_engine(planning=True)
    name = environment.named_device(execution.device)
    pack_size, folder = selection.pack_size(), selection.results_folder()
    plan = plans.make(selection.grid(), folder, pack_size, selection.states_to_retry(), name, caches.calibration_file())
    console = output.plain_console()
    summary = tables.plan_summary(plan, str(folder), execution.planned_gpus(), execution.save)
    console.print(summary, soft_wrap=True)
    if plan.grid.is_staged:
        tables.print_table(console, tables.stages_table(plan), tables.STAGES_DROPPED)
    tables.print_table(console, tables.packs_table(plan), tables.PACKS_DROPPED)
    tables.print_table(console, tables.status_table(plan), tables.STATUS_DROPPED)
    _warn_broken(plan.broken)


app.command()(handle_errors(outlive_output(report.report)))


@app.command(name="list")
@handle_errors
def list_(
    what: Annotated[
        str, typer.Argument(help="methods, tasks or runs", autocompletion=completion.one_of("methods", "tasks", "runs"))
    ],
    results: paths.ResultsOption = None,
    include: export.IncludeOption = None,
) -> None:
    """List the methods, the tasks, or the runs of a results folder."""
    including(include)
    from lora_bench.cli import tables

    kinds: dict[str, tuple[Callable[[], Table], tuple[str, ...]]] = {
        "methods": (tables.methods_table, tables.METHODS_DROPPED),
        "tasks": (tables.tasks_table, tables.TASKS_DROPPED),
        "runs": (lambda: _runs_table(paths.results_folder(results)), tables.RUNS_DROPPED),
    }
    if what not in kinds:
        raise unknown("list", what, kinds)
    build_table, dropped = kinds[what]
    tables.print_table(output.plain_console(), build_table(), dropped)


@app.command()
@handle_errors
def show(
    cell_id: Annotated[str, typer.Argument(metavar="ID", help="A cell's id, or the beginning of it.")],
    results: paths.ResultsOption = None,
    command: Annotated[bool, _flag("--command", "Print the command that trains the cell again instead.")] = False,
    include: export.IncludeOption = None,
) -> None:
    """Print the record of a cell as JSON; for a diverged cell also its last steps and what they show."""
    from lora_bench.records.store import find_record

    record = find_record(paths.results_folder(results), cell_id)
    if command:
        records.print_command(record, include)
        return
    from lora_bench.cli.record_json import record_as_json

    print(record_as_json(record))


@app.command()
@handle_errors
def doctor(
    results: Annotated[Path, typer.Option(help="The results folder to check.")] = paths.RESULTS,
) -> None:
    """Check versions, device, the bundled sample, the Hub and the results folder."""
    from lora_bench.cli import doctor, tables

    checks = doctor.run_checks(results)
    tables.print_table(output.plain_console(), doctor.checks_table(checks))
    if any(check.passed is False for check in checks):
        raise typer.Exit(MISSING)


@app.command()
@handle_errors
@outlive_output
def bench(
    quick: Annotated[bool, _flag("--quick", "One minute: SST-2, 1 and 8 cells, the bundled sample.")] = False,
    model: Annotated[str | None, _unset("Hub id, directory (with or without weights), or `sample`.")] = None,
    data_dir: Annotated[Path | None, _unset("Folder with <task>/train.parquet, .jsonl, .csv or .tsv.")] = None,
    task: Annotated[list[str] | None, _unset("Task, repeatable (default: sst2, cola, mrpc, rte).")] = None,
    targets: Annotated[list[str] | None, _unset("Repeatable (default: qv, attention+dense).")] = None,
    mix: Annotated[list[str] | None, _unset("lora, mixed or full; repeatable (default: lora, mixed).")] = None,
    pack: Annotated[list[str] | None, _unset("Cells trained at once, repeatable (default: 1 to 64, auto).")] = None,
    peers: Annotated[str | None, _unset("Any of trainer,loop,processes; or none (default: all three).")] = None,
    precision: Annotated[str | None, _unset("bf16 or float32 (default: bf16 on a GPU, else float32).")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences in a batch.")] = 32,
    seconds: Annotated[float | None, _unset("Seconds timed for each measurement (default: 6).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for <name>.json and <name>.md.")] = Path("results/bench"),
    name: Annotated[str | None, _unset("Name of the two files (default: bench, or quick).")] = None,
    calibrate: Annotated[bool, _flag("--calibrate", "Store the device coefficients that `plan` uses.")] = False,
) -> None:
    """Measure training speed against Trainer + peft, a bare peft loop and several processes, in one run."""
    from lora_bench.bench.settings import BenchOptions, resolve_options

    options = BenchOptions(
        quick=quick,
        model=model,
        data_dir=data_dir,
        task=task,
        targets=targets,
        mix=mix,
        pack=pack,
        peers=peers,
        precision=precision,
        batch_size=batch_size,
        seconds=seconds,
        device=device,
        name=name,
    )
    settings = resolve_options(options)  # before torch is imported, so that a wrong option is reported at once
    from lora_bench.bench import show, suite
    from lora_bench.bench.calibrate import fit_and_store

    show.prepare_folder(out)
    bench_report = suite.run(
        settings,
        log=partial(output.print_line, stderr=True),
        save=lambda unfinished: show.write_report(unfinished, out, settings.name),
    )
    show.print_report(bench_report, output.plain_console())
    if calibrate:
        output.print_line(fit_and_store(bench_report.as_json(), caches.calibration_file()))
    output.print_line(f"{out / settings.name}.json")
    output.print_line(f"{out / settings.name}.md")
    if bench_report.failed:
        raise typer.Exit(SOME_FAILED)


app.command()(handle_errors(outlive_output(verdict.command(run))))
app.command()(handle_errors(print_lines(export.check)))
app.command()(handle_errors(print_lines(records.choose)))
app.command()(handle_errors(outlive_output(print_lines(export.export))))
app.command()(handle_errors(outlive_output(print_lines(records.archive))))


def _runs_table(results: Path) -> Table:
    from lora_bench.cli import tables
    from lora_bench.records import store

    loaded = store.read_records(results)
    _warn_broken(loaded.broken)
    return tables.runs_table(loaded.records, results)


def _warn_broken(broken: tuple[tuple[Path, str], ...]) -> None:
    for path, reason in broken:
        output.print_line(f"Left out: {path} ({reason})", "yellow", stderr=True)


def main() -> None:
    """Run the program and exit the process."""
    output.shield_streams()
    code: int | str | None = DONE
    stopper = signals.Stopper()
    stopper.__enter__()  # never left: a repeated signal must change nothing until the process is gone
    atexit.register(signals.ignore)  # registered first, so that it runs last
    try:
        app(prog_name="lora-bench")
    except SystemExit as ended:
        code = ended.code
    stopper.end()
    lost_output = output.final_flush()
    if lost_output is not None:
        print_error(lost_output)
    raise SystemExit(output.exit_code(code, lost_output))
