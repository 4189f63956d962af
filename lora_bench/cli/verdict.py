"""The command `verdict`: from a method to a tested answer whether it is better than another one at the same size."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lora_bench.cli import caches, completion, output, paths
from lora_bench.cli.options import (
    DATA_DIR_HELP,
    EXECUTION_PANEL,
    MODEL_HELP,
    PACK_HELP,
    PATHS_PANEL,
    RETRY_HELP,
    ExecutionOptions,
    Selection,
    including,
    options_of,
    split,
)
from lora_bench.errors import DONE, SOME_FAILED, BenchError
from lora_bench.text import clean, counted

if TYPE_CHECKING:
    from lora_bench.grid.cells import Sources
    from lora_bench.verdict.budget import Planner
    from lora_bench.verdict.folder import Ready
    from lora_bench.verdict.question import Question

QUESTION_PANEL, SETTINGS_PANEL = "Question", "Settings of all cells"
_OVER = ("seeds", "seeds+examples")  # as in `compare.Over`, which is not imported for --help
# The options that --more need not repeat, and those settings that a verdict decides.
_SETTINGS = frozenset(
    {"task", "targets", "sizes", "seeds", "minutes", "margin", "over", "search_lr", "search_seeds", "head_lr", "epochs"}
    | {"precision", "set_"}
)
_DECIDED = frozenset(
    {"model", "task", "method", "rank", "a", "b", "targets", "seed", "lr", "epochs", "select", "start"}
)


def _option(text: str, panel: str = QUESTION_PANEL, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **settings)


@dataclass
class VerdictOptions:
    """What is asked, and where the results are."""

    what: Annotated[
        str,
        typer.Argument(
            metavar="METHOD|FILE.py",
            help="The method in question, or a Python file that defines it (it is run).",
            autocompletion=completion.method_names,
        ),
    ]
    against: Annotated[
        str,
        _option(
            "The method that it is compared with, or its file (default: lora).", autocompletion=completion.method_names
        ),
    ] = "lora"
    model: Annotated[str | None, _option(MODEL_HELP)] = None
    data_dir: Annotated[Path | None, _option(DATA_DIR_HELP)] = None
    task: Annotated[
        list[str] | None,
        _option("Task, repeatable (default: cola, mrpc, stsb, rte).", autocompletion=completion.task_names),
    ] = None
    targets: Annotated[str | None, _option("What both methods adapt (default: as METHOD does).")] = None
    sizes: Annotated[int, _option("At how many numbers of trained values (default: 2).")] = 2
    seeds: Annotated[int | None, _option("Seeds of each setting (default: 20).")] = None
    minutes: Annotated[float | None, _option("Time: as many seeds as fit are trained, and if need be fewer tasks.")] = (
        None
    )
    margin: Annotated[float, _option("Points below which two methods count as equivalent (default: 1).")] = 1.0
    over: Annotated[
        str,
        _option(
            "seeds, or seeds+examples: then the verdict is on other examples of the tasks too (default: seeds).",
            autocompletion=completion.one_of(*_OVER),
        ),
    ] = "seeds"
    more: Annotated[
        bool, _option("Add as many seeds as the first look had, and test again.", QUESTION_PANEL, "--more")
    ] = False
    dry_run: Annotated[
        bool, _option("Show sizes, cost and the expected interval; train nothing.", QUESTION_PANEL, "--dry-run")
    ] = False
    search_lr: Annotated[
        str | None,
        _option(
            "Learning rates to search for both, joined by commas (default: around each default).",
            SETTINGS_PANEL,
        ),
    ] = None
    search_seeds: Annotated[
        str | None, _option("Seeds of the search, joined by commas (default: 100,101).", SETTINGS_PANEL)
    ] = None
    head_lr: Annotated[
        float | None, _option("The head's learning rate, the same for both (default: 1e-3).", SETTINGS_PANEL)
    ] = None
    epochs: Annotated[int | None, _option("Epochs of every task (default: by task).", SETTINGS_PANEL, min=1)] = None
    precision: Annotated[
        str | None, _option("float32, bf16 or float64 (default: bf16 on a GPU, else float32).", SETTINGS_PANEL)
    ] = None
    include: Annotated[
        list[Path] | None,
        _option("Python file with another method or task; it is run.", SETTINGS_PANEL, metavar="FILE"),
    ] = None
    set_: Annotated[
        list[str] | None,
        _option(
            "key=value for any other setting.",
            SETTINGS_PANEL,
            "--set",
            metavar="KEY=VALUE",
            autocompletion=completion.settings,
        ),
    ] = None
    results: Annotated[
        Path | None, _option("Results folder (default: results/verdict-<METHOD>-<against>).", PATHS_PANEL)
    ] = None
    pack: Annotated[str, _option(PACK_HELP, PATHS_PANEL)] = "auto"
    retry: Annotated[list[str] | None, _option(RETRY_HELP, PATHS_PANEL, autocompletion=completion.retried_states)] = (
        None
    )


@dataclass
class VerdictExecution(ExecutionOptions):
    """How cells are trained. Adapters are not saved unless that is asked for."""

    save: Annotated[bool, typer.Option(help="Save the trained adapters.", rich_help_panel=EXECUTION_PANEL)] = False


def command(train: Callable[..., None]) -> Callable[..., None]:
    """Return the command.

    Args:
        train: The command `run`.
    """

    @options_of(VerdictOptions, VerdictExecution)
    def verdict(options: VerdictOptions, execution: VerdictExecution) -> None:
        """Decide whether a method is better than another at the same size: search rates, train seeds, test, report.

        It says the cost first. The same command continues after any interruption; --more adds seeds and tests again.
        """
        selection = _prepare(options, execution)
        if options.dry_run:
            return
        trained = DONE
        try:
            train(**vars(selection), **vars(execution))
        except typer.Exit as ended:
            if ended.exit_code != SOME_FAILED:
                raise
            trained = SOME_FAILED
        code = _report(selection.results_folder()) or trained
        if code:
            raise typer.Exit(code)

    return verdict


def _prepare(options: VerdictOptions, execution: VerdictExecution) -> Selection:
    """Print what a verdict will cost, write its config, and return what `run` has to be given to train it.

    Args:
        options: What is asked. With `dry_run` nothing is checked against the contracts, and nothing is written.
        execution: How cells will be trained.

    Raises:
        BenchError: Exit code 2 or 3 if there can be no verdict.
    """
    from lora_bench.records import store
    from lora_bench.verdict import folder

    execution.check_engine(planning=options.dry_run)
    if options.more and (options.seeds is not None or options.minutes is not None):
        what = "--more adds as many seeds as the first look had: the number must not depend on what was seen."
        raise BenchError(what, "Leave --seeds and --minutes out.")
    question, planner, selection = _parse(options, execution)
    results = planner.results
    if not options.dry_run and not options.more and not folder.is_begun(results):
        _require_sound(question.subject, options.what)
        _require_sound(question.reference, options.against)
    if options.more:
        ready = folder.look_again(question, planner, unchanged=not _gives_settings(options))
    else:
        ready = folder.begin(question, planner, options.seeds, options.minutes)
    costs = Text("\n  ".join(map(clean, _cost_lines(ready, planner))))
    output.plain_console().print(costs, soft_wrap=True)
    if not options.dry_run:
        store.prepare(results)
        ready.write(results, partial(output.print_line, stderr=True))
    return selection


def _report(results: Path) -> int:
    """Report on a results folder, print the verdict, and return the exit code."""
    from lora_bench import report as reports
    from lora_bench.grid.config import load_comparisons

    console, errors = output.plain_console(), output.plain_console(stderr=True)
    return reports.build(results, results, console, errors, compare=load_comparisons(results), verdict_only=True).code


def _parse(options: VerdictOptions, execution: ExecutionOptions) -> tuple[Question, Planner, Selection]:
    """Return the question, what plans configs for it on the device, and what `run` has to be given to train it."""
    from lora_bench.grid.cells import Sources
    from lora_bench.run import environment
    from lora_bench.run import plan as plans
    from lora_bench.verdict.budget import Planner
    from lora_bench.verdict.question import FILE, config_name

    including(options.include)
    subject, reference = _load_method(options.what), _load_method(options.against)
    looked_up = plans.sources()
    sources = Sources(cache(looked_up.model), cache(looked_up.data))
    device = environment.named_device(execution.device)
    question = _question(options, subject, reference, sources, device)
    results = options.results or paths.RESULTS / config_name(subject, reference)
    selection = Selection(
        config=results / FILE, results=results, data_dir=options.data_dir, pack=options.pack, retry=options.retry
    )
    planner = Planner(
        results,
        sources,
        options.data_dir,
        device,
        execution.planned_gpus(),
        selection.pack_size(),
        selection.states_to_retry(),
        caches.calibration_file(),
    )
    return question, planner, selection


def _load_method(what: str) -> str:
    """Return the name of a method that is given by its name or by its file, which is loaded."""
    from lora_bench import methods

    if not what.endswith(".py"):
        return methods.get(what).name
    path = paths.expand_home(Path(what))
    ((recipe, _),) = including([path])
    if recipe is None:
        raise BenchError(f"'{path}' defines no RECIPE.", "End it with `RECIPE = YourMethod()`, a Recipe.")
    return recipe.name


def _question(options: VerdictOptions, subject: str, reference: str, sources: Sources, device: str) -> Question:
    """Return the question of a command.

    Raises:
        BenchError: Exit code 2 for a value that is not allowed; 3 for a model that is not there.
    """
    from lora_bench import methods, tasks
    from lora_bench.grid.config import parse_alternatives, parse_search
    from lora_bench.models import DEFAULT_MODEL
    from lora_bench.verdict.question import (
        EPOCHS,
        OTHER_EPOCHS,
        SEARCH_SEEDS,
        TASKS,
        Question,
        check_numbers,
        check_over,
    )

    check_numbers(options.sizes, options.margin, options.seeds, options.minutes)
    if reference == subject:
        raise BenchError(f"'{subject}' cannot be compared with itself.", "Give another method to --against.")
    names = tuple(tasks.get(name).name for name in dict.fromkeys(options.task or TASKS))
    check_over(options.over, names)
    epochs = {name: options.epochs or EPOCHS.get(name, OTHER_EPOCHS) for name in names}
    rates: tuple[float, ...] | None = None
    search_seeds: tuple[int, ...] = SEARCH_SEEDS
    if options.search_seeds is not None:
        given_seeds = parse_alternatives("seed", split(options.search_seeds))
        search_seeds = tuple(dict.fromkeys(int(str(seed)) for seed in given_seeds))
    if options.search_lr is not None:
        rates = parse_search("lr", {"search": split(options.search_lr)}).rates
    model = options.model or DEFAULT_MODEL
    targets = options.targets or str(methods.get(subject).defaults.get("targets", ""))
    return Question(
        subject=subject,
        reference=reference,
        model=model,
        identity=sources.model(model).identity,
        tasks=names,
        targets=targets,
        sizes=options.sizes,
        margin=options.margin,
        over=options.over,
        epochs=epochs,
        settings=_settings(options, device),
        rates=rates,
        search_seeds=search_seeds,
    )


def _settings(options: VerdictOptions, device: str) -> dict[str, Any]:
    """Return the settings that all cells of a verdict share."""
    from lora_bench.grid.config import parse_alternatives, parse_set
    from lora_bench.verdict.question import HEAD_LR

    given = {"head_lr": options.head_lr, "precision": options.precision}
    settings: dict[str, Any] = {"head_lr": HEAD_LR, "precision": "float32" if device.startswith("cpu") else "bf16"}
    settings |= {name: parse_alternatives(name, value)[0] for name, value in given.items() if value is not None}
    for text in options.set_ or ():
        name, values = parse_set(text)
        if name in _DECIDED or len(values) > 1:
            what = f"--set {name}: " + ("a verdict has one value." if name not in _DECIDED else "a verdict decides it.")
            raise BenchError(what, "Give the option of that name, or leave it out.")
        settings[name] = values[0]
    return settings


def _gives_settings(options: VerdictOptions) -> bool:
    """Whether a command gives any setting of the question besides the two methods and the model."""
    return any(getattr(options, field.name) != field.default for field in fields(options) if field.name in _SETTINGS)


def _cost_lines(ready: Ready, planner: Planner) -> Iterator[str]:
    """Yield what a verdict will cost and how narrow it will be: a line with all of it first, then the notes."""
    from lora_bench.cli.tables import duration_text
    from lora_bench.run.totals import totals

    compare, plan = ready.config.compare, ready.plan
    total, seconds = totals(plan), planner.seconds(plan)
    packs = "" if not total.packs else f" in {counted(len(plan.stages), 'stage')}"
    unknown_time = "time unknown (`lora-bench bench --calibrate` measures this device, with --quick in a minute)"
    simulated = "" if planner.gpus is None else ", simulated,"
    time = unknown_time if seconds is None else f"about {duration_text(seconds)}{simulated} until the page is there"
    where = planner.device if planner.gpus is None else f"{counted(planner.gpus, 'GPU')} ({planner.device})"
    yield (
        f"{compare.subject} against {compare.reference}: {counted(len(compare.pairs), 'size')}, "
        f"{counted(len(compare.average), 'task')}, {counted(compare.looks[-1], 'seed')}: "
        f"{counted(total.cells, 'cell')} to train{packs} on {where}, {time}; "
        f"the interval on the average: about ±{ready.half_width:.2g} points over seeds (by {ready.deviations.origin})"
    )
    yield from (*ready.notes, *total.guesses)


def _require_sound(method: str, what: str) -> None:
    """Check a method that is not of this package against the contracts.

    Raises:
        BenchError: Exit code 2 if it breaks one.
    """
    from lora_bench import methods

    if methods.origin(method) is None:
        return
    from lora_bench.contracts import suite

    output.print_line(f"Checking the contracts of {method} …")
    broken = [result for result in suite.check(method) if result.fault is not None]
    if broken:
        first = broken[0]
        which = f"{len(broken)} of {counted(len(suite.CONTRACTS), 'contract')}"
        hint = f"`lora-bench check {what}` shows all of them."
        # A fault may name every weight of the encoder.
        fault = textwrap.shorten(f"{first.contract}: {first.fault}", 400, placeholder=" …")
        raise BenchError(f"'{method}' breaks {which}. {fault}", hint)
