"""The command line: parse, call, print, exit code. A command imports what it needs, `--help` next to nothing."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_bench import __version__
from lora_bench.cli import caches, export, output, paths, records, tables
from lora_bench.cli.options import Running, Selection, including, selecting
from lora_bench.errors import DONE, INTERRUPTED, SOME_FAILED, BenchError, of_the_system, unknown
from lora_bench.run import signals
from lora_bench.text import clean

app = typer.Typer(
    name="lora-bench", no_args_is_help=True, add_completion=False, rich_markup_mode="rich",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False)


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """End a command as documented: an error is two lines and an exit code, Ctrl-C is 130. `~` is expanded in paths."""

    @functools.wraps(command)
    def guarded(*args: Any, **values: Any) -> None:
        note = caches.settle()
        if note:
            _console(stderr=True).print(Text(note), soft_wrap=True)
        try:
            command(*args, **{name: paths.expanded(value) for name, value in values.items()})
        except KeyboardInterrupt:
            _console(stderr=True).print(
                "Interrupted. What has ended and what was in training is kept; the same command goes on from there.",
                soft_wrap=True,
            )
            raise typer.Exit(INTERRUPTED) from None
        except BaseException as error:
            explained = _explained(error)
            if explained is None or values.get("debug"):
                raise
            complain(explained)
            raise typer.Exit(explained.code) from None

    return guarded


def _explained(error: BaseException) -> BenchError | None:
    """An error in the words of a user; None for an exit that was asked for, and for a fault of this program."""
    if isinstance(error, BenchError):
        return error
    from lora_bench import plugins

    blamed = plugins.blamed(error)  # whatever it is, and also where it would end the process without a word
    return of_the_system(error) if blamed is None and isinstance(error, OSError) else blamed


def complain(error: BenchError) -> None:
    """Print an error: what, and how to fix it."""
    console = _console(stderr=True)
    console.print(Text.assemble(("Error: ", "bold red"), error.what), soft_wrap=True)
    console.print(Text(error.hint), soft_wrap=True)


def printed(command: Callable[..., Iterator[str]]) -> Callable[..., None]:
    """Print the lines that a command yields, as they come."""

    @functools.wraps(command)
    def printing(*args: Any, **values: Any) -> None:
        for line in command(*args, **values):
            _console().print(Text(clean(line)), soft_wrap=True)

    return printing


def writing(command: Callable[..., None]) -> Callable[..., None]:
    """A command that writes files: it ends as it would although nobody can read what it prints."""

    @functools.wraps(command)
    def going_on(*args: Any, **values: Any) -> None:
        with output.going_on("the command goes on without it."):
            command(*args, **values)

    return going_on


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lora-bench {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train a whole grid of LoRA-family adapters over one frozen encoder at once, on GLUE.

    \b
    lora-bench run --preset smoke          a grid on the bundled encoder and data, no network
    lora-bench run --task sst2 --method mini --rank 16
    lora-bench report --results results/smoke
    """


@app.command()
@reported
@selecting
def run(
    selection: Selection,
    running: Running,
) -> None:
    """Train the cells that have no record yet, and write metrics.csv.

    Options narrow or override a preset or a config. LoRA-Mini's -a and -b default to 64; its update has rank
    min(r, a, b) at most.
    """
    grid = selection.grid()  # before torch is imported: what is wrong with a selection shows at once
    limit, folder = selection.limit(), selection.folder()
    from lora_bench.cli import progress, tables
    from lora_bench.records import store
    from lora_bench.run import environment, interfaces, runner
    from lora_bench.run import plan as plans
    from lora_bench.run.device import choose_device

    device = choose_device(running.device)
    name = environment.device_name(device)
    plan = plans.make(grid, folder, limit, selection.statuses(), name, caches.calibration())
    console = _console()
    with output.going_on(f"the run goes on without it; its results are in {folder}."):
        console.print(tables.opening(plan, str(folder), device), soft_wrap=True)
        _warn_broken(plan.broken)
        store.prepare(folder)
        options = interfaces.Options(folder, device, running.offline, running.save, caches.folder(), running.debug)
        with progress.ProgressView(console, plan) as view:
            grid_run = runner.Runner(plan, options, view, signals.current())
            records = grid_run.run()
        tables.show(console, tables.closing(records), tables.RESULTS_DROPPED)
        console.print(tables.elsewhere(grid_run.held), soft_wrap=True, end="")
        console.print(Text(clean(f"{folder / 'metrics.csv'}")), soft_wrap=True)
        bad = [record for record in records if record.status != "done"]
        for record in bad:
            line = f"{record.status}: {record.id} {record.cell.task} {record.reason}"
            console.print(Text(clean(line)), soft_wrap=True)
    if output.failed():
        _console(stderr=True).print(Text(tables.ended(records, folder)), soft_wrap=True)
    if bad or plan.broken or grid_run.store.broken:
        raise typer.Exit(SOME_FAILED)


@app.command()
@reported
@selecting
def plan(
    selection: Selection,
    running: Running,
) -> None:
    """Show what would run, what it will cost, and what is there already; nothing is trained."""
    from lora_bench.cli import tables
    from lora_bench.run import environment
    from lora_bench.run import plan as plans

    name = environment.named_device(running.device)
    limit, folder = selection.limit(), selection.folder()
    plan = plans.make(selection.grid(), folder, limit, selection.statuses(), name, caches.calibration())
    console = _console()
    console.print(tables.opening(plan, str(folder), name), soft_wrap=True)
    tables.show(console, tables.planned(plan), tables.PLAN_DROPPED)
    tables.show(console, tables.standings_table(plan), tables.STANDINGS_DROPPED)
    _warn_broken(plan.broken)


@app.command()
@reported
@writing
def report(
    results: Annotated[Path, typer.Option(help="The results folder.")] = Path("results/smoke"),
    out: Annotated[Path | None, typer.Option(help="Where to write [the results folder].")] = None,
    vs_paper: Annotated[bool, typer.Option("--vs-paper", help="Compare with the published numbers.")] = False,
) -> None:
    """Rebuild tables, figures, statistics and the page from the records; the page's path is the last line."""
    from lora_bench import report as reports

    built = reports.build(results, out or results, _console(), _console(stderr=True), vs_paper)
    if built.code:
        raise typer.Exit(built.code)


@app.command(name="list")
@reported
def list_(
    what: Annotated[str, typer.Argument(help="methods, tasks or runs")],
    results: Annotated[Path, typer.Option(help="The results folder, for runs.")] = Path("results/smoke"),
    include: export.Included = None,
) -> None:
    """List the methods, the tasks, or the runs of a results folder."""
    including(include)
    from lora_bench.cli import tables

    kinds: dict[str, tuple[Callable[[], Table], tuple[str, ...]]] = {
        "methods": (tables.methods_table, tables.METHODS_DROPPED),
        "tasks": (tables.tasks_table, tables.TASKS_DROPPED),
        "runs": (lambda: _runs(results), tables.RUNS_DROPPED),
    }
    if what not in kinds:
        raise unknown("list", what, kinds)
    table, dropped = kinds[what]
    tables.show(_console(), table(), dropped)


@app.command()
@reported
def show(
    cell_id: Annotated[str, typer.Argument(metavar="ID", help="The cell's id, or its beginning.")],
    results: Annotated[Path, typer.Option(help="The results folder.")] = Path("results/smoke"),
) -> None:
    """Print the record of a cell as JSON; of one that diverged, its last steps and what they show."""
    from lora_bench.cli.record_json import record_as_json
    from lora_bench.records.store import find_record

    print(record_as_json(find_record(results, cell_id)))


@app.command()
@reported
def doctor(
    results: Annotated[Path, typer.Option(help="The results folder to check.")] = Path("results"),
) -> None:
    """Check versions, device, the bundled sample, the Hub and the results folder."""
    from lora_bench.cli import doctor

    table, sound = doctor.examine(results)
    tables.show(_console(), table)
    if not sound:
        raise typer.Exit(3)


@app.command()
@reported
@writing
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A minute: SST-2, 1 and 8 cells, the bundled sample.")] = False,
    model: Annotated[str | None, typer.Option(help="Hub id, directory (weights or not), or `sample`.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder <task>/train.parquet, .jsonl or .tsv.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Task, repeatable (default: sst2, cola, mrpc, rte).")] = None,
    targets: Annotated[list[str] | None, typer.Option(help="Repeatable (default: qv, attention+dense).")] = None,
    mix: Annotated[list[str] | None, typer.Option(help="lora, mixed, full; repeatable (default: not full).")] = None,
    pack: Annotated[list[str] | None, typer.Option(help="Cells at once, repeatable (default: 1 to 64, auto).")] = None,
    peers: Annotated[str | None, typer.Option(help="Of trainer,loop,processes; or none (default: all).")] = None,
    precision: Annotated[str | None, typer.Option(help="bf16 or float32 (default: bf16 on a GPU).")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences a batch.")] = 32,
    seconds: Annotated[float | None, typer.Option(help="Timed seconds a measurement (default: 6).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[Path, typer.Option(help="Where to write <name>.json and <name>.md.")] = Path("results/bench"),
    name: Annotated[str | None, typer.Option(help="(default: bench, or quick).")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Keep what `plan` needs to know this device.")] = False,
) -> None:
    """Measure training speed beside Trainer + peft, a bare peft loop and several processes, in one run."""
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
    settings = resolve_options(options)  # before torch is imported, so that a wrong option shows at once
    from lora_bench.bench import show, suite
    from lora_bench.bench.calibrate import fit_and_store

    log, console = _console(stderr=True), _console()
    bench_report = suite.run(
        settings,
        log=lambda text: log.print(Text(clean(text)), soft_wrap=True),
        save=lambda unfinished: show.write_report(unfinished, out, settings.name),
    )
    show.print_report(bench_report, console)
    if calibrate:
        console.print(Text(fit_and_store(bench_report.as_json(), caches.calibration())))
    console.print(Text(f"{out / settings.name}.json\n{out / settings.name}.md"), soft_wrap=True)
    if bench_report.failed:
        raise typer.Exit(SOME_FAILED)


for lasting, further in (
    (False, export.check),
    (False, records.choose),
    (True, export.export),
    (True, records.archive),
):
    lines = printed(further)
    app.command()(reported(writing(lines) if lasting else lines))


def _runs(results: Path) -> Table:
    from lora_bench.cli import tables
    from lora_bench.records import store

    loaded = store.read_records(results)
    _warn_broken(loaded.broken)
    return tables.runs_table(loaded.records, results)


def _warn_broken(broken: tuple[tuple[Path, str], ...]) -> None:
    for path, reason in broken:
        _console(stderr=True).print(Text(clean(f"Left out: {path} ({reason})"), "yellow"), soft_wrap=True)


def main() -> None:
    """The program."""
    output.protect()
    code: int | str | None = DONE
    stopper = signals.Stopper()
    stopper.__enter__()  # and never left: until the process is gone a repeated signal changes nothing
    atexit.register(signals.ignore)  # before all others, so that it comes last
    try:
        app(prog_name="lora-bench")
    except SystemExit as ended:
        code = ended.code
    stopper.end()
    lost = output.closing()
    if lost is not None:
        complain(lost)
    raise SystemExit(output.exit_code(code, lost))
