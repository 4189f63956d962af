"""The options that select cells and say how to train them, declared once for the commands that share them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

from lora_bench.cli import completion
from lora_bench.cli.paths import RESULTS
from lora_bench.errors import BenchError

if TYPE_CHECKING:
    from lora_bench.grid.cells import Grid
    from lora_bench.grid.config import Config
    from lora_bench.methods.recipe import Recipe
    from lora_bench.run.cluster import RayExecutor
    from lora_bench.run.executor import LocalExecutor
    from lora_bench.tasks import Task

# Headings of the help text.
GRID_PANEL = "Grid (an option that is repeated adds a value to the grid)"
PATHS_PANEL = "Presets, data and results"
EXECUTION_PANEL = "Execution (changes no result)"

# The help texts of options that several commands have.
MODEL_HELP = "Hub id, directory, or `sample`, the bundled one (default: FacebookAI/roberta-base)."
DATA_DIR_HELP = "Folder of data: <task>/train and <task>/validation as .parquet, .jsonl, .csv or .tsv."
PACK_HELP = "Cells trained together: auto or a number."
RETRY_HELP = "Train again the failed, diverged, oom or stale cells (joined by commas, or repeated)."

ENGINES = ("local", "ray")
ADHOC = "adhoc"  # the config's name where neither a preset nor a config is given


def _grid_option(text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=GRID_PANEL, show_default=False, metavar="VALUE", **settings)


def _path_option(text: str, **settings: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=PATHS_PANEL, **settings)


@dataclass
class Selection:
    """The cells to train, the model and data they use, and the folder of their results."""

    preset: Annotated[
        str | None,
        _path_option("smoke, quick, paper, lora, xs or methods.", autocompletion=completion.preset_names),
    ] = None
    config: Annotated[Path | None, _path_option("A YAML file that describes a grid.")] = None
    task: Annotated[
        list[str] | None,
        _grid_option(
            "Task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, or one of your own (--include).",
            autocompletion=completion.task_names,
        ),
    ] = None
    method: Annotated[
        list[str] | None,
        _grid_option("Method; see `lora-bench list methods`.", autocompletion=completion.method_names),
    ] = None
    rank: Annotated[list[int] | None, _grid_option("Rank r (default: 16).", "--rank", "-r")] = None
    a: Annotated[
        list[int] | None,
        _grid_option(
            "LoRA-Mini: inner input size (default: 64); ΔW has rank min(r, a, b). Others: docs/methods.md.",
            "--a",
            "-a",
        ),
    ] = None
    b: Annotated[
        list[int] | None,
        _grid_option("LoRA-Mini: inner output size (default: 64). Others: docs/methods.md.", "--b", "-b"),
    ] = None
    targets: Annotated[
        list[str] | None,
        _grid_option(
            "attention, attention+dense, qv, kv+ffn, ffn-output, or endings of names (default: by method).",
            autocompletion=completion.target_sets,
        ),
    ] = None
    seed: Annotated[list[int] | None, _grid_option("Seed (default: 0).")] = None
    lr: Annotated[list[float] | None, _grid_option("Learning rate (default: by method).")] = None
    head_lr: Annotated[list[float] | None, _grid_option("The head's learning rate (default: the adapter's).")] = None
    search_lr: Annotated[
        str | None,
        _grid_option("Learning rates to search, joined by commas: the best on held-out rows trains the grid."),
    ] = None
    search_seeds: Annotated[
        str | None, _grid_option("Seeds of the search, joined by commas (default: 100,101,102).")
    ] = None
    start: Annotated[
        list[str] | None,
        _grid_option(
            "Task whose cells the cells continue from (default: the pretrained model).",
            autocompletion=completion.task_names,
        ),
    ] = None
    epochs: Annotated[list[int] | None, _grid_option("Epochs (default: 10).")] = None
    batch_size: Annotated[list[int] | None, _grid_option("Batch size (default: 32).")] = None
    max_length: Annotated[list[int] | None, _grid_option("Longest sequence, in tokens (default: 128).")] = None
    alpha: Annotated[list[float] | None, _grid_option("The update is scaled by alpha / r (default: 16).")] = None
    precision: Annotated[
        list[str] | None,
        _grid_option(
            "float32, bf16 (fast on a GPU) or float64 (default: float32).", autocompletion=completion.precisions
        ),
    ] = None
    model: Annotated[
        list[str] | None,
        _grid_option(MODEL_HELP),
    ] = None
    include: Annotated[
        list[Path] | None,
        typer.Option(
            help="Python file with your own method or task; it is run.", rich_help_panel=GRID_PANEL, metavar="FILE"
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="key=value for any setting.",
            rich_help_panel=GRID_PANEL,
            metavar="KEY=VALUE",
            autocompletion=completion.settings,
        ),
    ] = None
    data_dir: Annotated[
        Path | None,
        _path_option(DATA_DIR_HELP),
    ] = None
    results: Annotated[Path | None, _path_option("Results folder (default: results/<config name>).")] = None
    pack: Annotated[str, _path_option(PACK_HELP)] = "auto"
    retry: Annotated[
        list[str] | None,
        _path_option(RETRY_HELP, autocompletion=completion.retried_states),
    ] = None

    def load_config(self) -> Config:
        """Load the files to include, then the preset or config file; an empty config if neither is given."""
        from lora_bench.grid.config import Config, load_config
        from lora_bench.grid.presets import find_preset

        including(self.include)
        if self.preset and self.config:
            raise BenchError("--preset and --config exclude each other.", "Give one of them.")
        if self.preset:
            return load_config(find_preset(self.preset))
        return load_config(self.config) if self.config else Config(name=ADHOC)

    def grid(self) -> Grid:
        """Return the selected cells, with the sources of their models and data."""
        from lora_bench.grid.cells import expand
        from lora_bench.run import plan as plans

        return expand(self.load_config(), self.overrides(), plans.sources(), self.data_dir)

    def overrides(self) -> dict[str, list[object]]:
        """Return the values that options give, by setting."""
        from lora_bench.grid.config import SETTINGS, parse_search, parse_set

        overrides: dict[str, list[object]] = {}
        for name in SETTINGS:
            values = getattr(self, name, None)
            if values:
                overrides[name] = list(values)
        for text in self.set_ or ():
            key, set_values = parse_set(text)
            overrides[key] = list(set_values)
        if self.search_lr is not None or self.search_seeds is not None:
            if "lr" in overrides or self.search_lr is None:
                other = "--lr" if self.search_lr else "--search-seeds"
                hint = "Give --search-lr the rates to search, as in --search-lr 1e-4,3e-4,1e-3, and no --lr."
                raise BenchError(f"{other} does not say which rates to search.", hint)
            raw = {"search": split(self.search_lr)}
            seeds = {} if self.search_seeds is None else {"seeds": split(self.search_seeds)}
            overrides["lr"] = [parse_search("lr", raw | seeds)]
        return overrides

    def results_folder(self) -> Path:
        """Return the results folder."""
        return self.results or RESULTS / self.load_config().name

    def pack_size(self) -> int | None:
        """Return the largest number of cells in a pack; None for as many as fill the device."""
        if self.pack == "auto":
            return None
        if not self.pack.isdecimal() or int(self.pack) < 1:
            raise BenchError(f"--pack '{self.pack}' is not a number of cells.", "Use --pack auto or a number from 1.")
        return int(self.pack)

    def states_to_retry(self) -> tuple[str, ...]:
        """Return the states of recorded cells that are to be trained again."""
        return tuple(part for text in self.retry or () for part in split(text))


@dataclass
class ExecutionOptions:
    """How cells are trained; no option here changes a result."""

    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, cuda or cuda:N; for `plan` also the name of another card: H100, A100, RTX 4090 …",
            rich_help_panel=EXECUTION_PANEL,
        ),
    ] = "auto"
    engine: Annotated[
        str,
        typer.Option(
            help="local: this process, one device. ray: all GPUs of this machine or of a Ray cluster.",
            rich_help_panel=EXECUTION_PANEL,
            autocompletion=completion.one_of(*ENGINES),
        ),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            help="With --engine ray: a cluster's address, or auto (default: Ray is started on this machine).",
            rich_help_panel=EXECUTION_PANEL,
            show_default=False,
        ),
    ] = None
    gpus: Annotated[
        int | None,
        typer.Option(
            help="With --engine ray: the number of GPUs (default: all); `plan` predicts the time on that many.",
            rich_help_panel=EXECUTION_PANEL,
            show_default=False,
            min=1,
            max=10**6,
        ),
    ] = None
    offline: Annotated[bool, typer.Option("--offline", help="Use no network.", rich_help_panel=EXECUTION_PANEL)] = False
    save: Annotated[
        bool, typer.Option(help="Save the trained adapters (whole models never are).", rich_help_panel=EXECUTION_PANEL)
    ] = True
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="Tracker for the series of each cell: tensorboard, wandb, trackio or mlflow; repeatable.",
            rich_help_panel=EXECUTION_PANEL,
            metavar="NAME",
            autocompletion=completion.one_of("tensorboard", "wandb", "trackio", "mlflow"),
        ),
    ] = None
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Stop at the first error, with a traceback.", rich_help_panel=EXECUTION_PANEL),
    ] = False

    def check_engine(self, planning: bool = False) -> bool:
        """Return whether packs run on Ray, and check the trackers.

        Args:
            planning: Whether nothing will run: then --gpus only asks for the time on that many.

        Raises:
            BenchError: Exit code 2 for an engine or a tracker that does not exist, or options that the engine does not
                have; 3 for a tracker that is not installed.
        """
        if self.track:
            from lora_bench.run.tracking import check_trackers

            check_trackers(self.track)
        if self.engine not in ENGINES:
            raise BenchError(f"There is no engine '{self.engine}'.", "Use --engine local or ray.")
        needs_ray = self.address is not None or (self.gpus is not None and not planning)
        if self.engine == "local" and needs_ray:
            raise BenchError("--address and --gpus are for --engine ray.", "Add --engine ray, or leave them out.")
        if self.device == "cpu" and self.gpus is not None:
            raise BenchError("--gpus and --device cpu exclude each other.", "Give one of them.")
        return self.engine == "ray"

    def planned_gpus(self) -> int | None:
        """Return how many GPUs a run on Ray will use, as far as this is known without Ray; None for one process."""
        if self.gpus is not None or self.engine != "ray":
            return self.gpus
        from lora_bench.run import environment

        known = self.address is None and self.device != "cpu"
        return (environment.count_gpus() or None) if known else None

    def executor(self, most: int) -> LocalExecutor | RayExecutor:
        """Return where packs run; Ray begins to start, if it is there.

        Args:
            most: The most packs that there can be.
        """
        if not self.check_engine():
            from lora_bench.run.executor import LocalExecutor

            return LocalExecutor(device=self.device)
        from lora_bench.run.cluster import RayExecutor

        executor = RayExecutor(self.address, self.gpus, self.device)
        executor.launch(most)
        return executor


def split(text: str) -> list[str]:
    """Return the parts of a text that are joined by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


class Included(NamedTuple):
    """What a user's file has added."""

    recipe: Recipe | None
    task: Task | None


def including(files: Sequence[Path] | None) -> list[Included]:
    """Run these files and add the methods and tasks that they define.

    Raises:
        BenchError: A file fails, defines neither, or defines something incomplete.
    """
    if not files:
        return []
    from lora_bench import methods, plugins, tasks

    included = []
    for path in files:
        plugin = plugins.load_file(path)
        included.append(Included(methods.add_from(plugin), tasks.add_from(plugin)))
        if included[-1] == (None, None):
            hint = "End it with `RECIPE = YourMethod()` or with `TASK = Task(...)`."
            raise BenchError(f"'{path}' defines no RECIPE and no TASK.", hint)
    return included


def options_of(*groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command every option of some dataclasses; the command takes an object of each."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=hints[field.name]
            )
            for group in groups
            for hints in [get_type_hints(group, include_extras=True)]
            for field in fields(group)
        ]

        def with_options(**values: Any) -> None:
            command(*(group(**{field.name: values[field.name] for field in fields(group)}) for group in groups))

        with_options.__doc__ = command.__doc__
        with_options.__name__ = command.__name__
        with_options.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in options}
        return with_options

    return decorate


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default


selection_options = options_of(Selection, ExecutionOptions)
