"""The options that choose cells, declared once for every command that takes a selection."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

from lora_bench.errors import BenchError

if TYPE_CHECKING:
    from lora_bench.grid.cells import Grid
    from lora_bench.grid.config import Config
    from lora_bench.methods.recipe import Recipe
    from lora_bench.tasks import Task

GRID, WHERE = "Grid (each may be repeated: that makes a grid)", "Where from, where to"
HOW = "How to train"
ADHOC = "adhoc"


def _grid(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=GRID, show_default=False, metavar="VALUE")


@dataclass
class Selection:
    """Which cells, from which model and data, and where their results lie."""

    preset: Annotated[str | None, typer.Option(help="smoke, quick, paper, lora or xs.", rich_help_panel=WHERE)] = None
    config: Annotated[Path | None, typer.Option(help="A YAML file of cells.", rich_help_panel=WHERE)] = None
    task: Annotated[
        list[str] | None, _grid("Task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, or of --include.")
    ] = None
    method: Annotated[list[str] | None, _grid("Method; see `lora-bench list methods`.")] = None
    rank: Annotated[list[int] | None, _grid("Rank r (default: 16).", "--rank", "-r")] = None
    a: Annotated[
        list[int] | None,
        _grid("LoRA-Mini's inner input size (default: 64); ΔW has rank min(r, a, b). TinyLoRA's values.", "--a", "-a"),
    ] = None
    b: Annotated[
        list[int] | None, _grid("LoRA-Mini's inner output size (default: 64). SVFT's side diagonals.", "--b", "-b")
    ] = None
    targets: Annotated[
        list[str] | None,
        _grid("attention, attention+dense, qv, kv+ffn, or name endings by commas (default: by method)."),
    ] = None
    seed: Annotated[list[int] | None, _grid("Seed (default: 0).")] = None
    lr: Annotated[list[float] | None, _grid("Learning rate (default: by method).")] = None
    head_lr: Annotated[list[float] | None, _grid("The head's learning rate (default: that of the adapter).")] = None
    epochs: Annotated[list[int] | None, _grid("Epochs (default: 10).")] = None
    batch_size: Annotated[list[int] | None, _grid("Batch size (default: 32).")] = None
    max_length: Annotated[list[int] | None, _grid("Tokens a sequence at most (default: 128).")] = None
    alpha: Annotated[list[float] | None, _grid("The update is scaled by alpha / r (default: 16).")] = None
    precision: Annotated[list[str] | None, _grid("float32, bf16 (fast on a GPU) or float64 (default: float32).")] = None
    model: Annotated[
        list[str] | None, _grid("Hub id, directory, or `sample` (bundled) (default: FacebookAI/roberta-base).")
    ] = None
    include: Annotated[
        list[Path] | None,
        typer.Option(
            help="A Python file with a method or a task of your own; it is run.", rich_help_panel=GRID, metavar="FILE"
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value for any setting.", rich_help_panel=GRID, metavar="KEY=VALUE"),
    ] = None
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder <task>/{train,validation}.parquet, .jsonl, .csv or .tsv.", rich_help_panel=WHERE),
    ] = None
    results: Annotated[
        Path | None, typer.Option(help="Results folder (default: results/<config name>).", rich_help_panel=WHERE)
    ] = None
    pack: Annotated[str, typer.Option(help="Cells trained together: auto or a number.", rich_help_panel=WHERE)] = "auto"
    retry: Annotated[
        list[str] | None,
        typer.Option(help="Run again what is: failed, diverged, oom, stale (by commas, or repeated).",
                     rich_help_panel=WHERE),
    ] = None  # fmt: skip

    def chosen(self) -> Config:
        """The config of the selection: a preset, a file, or none but the options. Includes what is to be included."""
        from lora_bench.grid import config as configs

        including(self.include)
        if self.preset and self.config:
            raise BenchError("--preset and --config exclude each other.", "Give one of them.")
        if self.preset:
            return configs.load(configs.find_preset(self.preset))
        return configs.load(self.config) if self.config else configs.Config(name=ADHOC)

    def grid(self) -> Grid:
        """The cells, with their models and data found."""
        from lora_bench.grid import cells as grids
        from lora_bench.run import plan as plans

        chosen = self.chosen()
        data = str(self.data_dir) if self.data_dir else None
        return grids.expand(chosen, self.overrides(), plans.sources(), data)

    def overrides(self) -> dict[str, list[object]]:
        """The options given, by setting."""
        from lora_bench.grid.config import SETTINGS, parse_set

        given: dict[str, list[object]] = {}
        for name in SETTINGS:
            values = getattr(self, name, None)
            if values:
                given[name] = list(values)
        for text in self.set_ or ():
            key, values = parse_set(text)
            given[key] = list(values)
        return given

    def folder(self) -> Path:
        """Where the results lie."""
        return self.results or Path("results") / self.chosen().name

    def limit(self) -> int | None:
        """The most cells a pack may have; None: as many as fill the device."""
        if self.pack == "auto":
            return None
        if not self.pack.isdecimal() or int(self.pack) < 1:
            raise BenchError(f"--pack '{self.pack}' is no number of cells.", "Use --pack auto or a number from 1.")
        return int(self.pack)

    def statuses(self) -> tuple[str, ...]:
        """The states to run again."""
        return tuple(part.strip() for text in self.retry or () for part in text.split(",") if part.strip())


@dataclass
class Running:
    """How the cells are trained; nothing here changes a number."""

    device: Annotated[
        str,
        typer.Option(help="auto, cpu, cuda or cuda:N; for `plan` also a device's name as `doctor` says it.",
                     rich_help_panel=HOW),
    ] = "auto"  # fmt: skip
    offline: Annotated[bool, typer.Option("--offline", help="Ask no network.", rich_help_panel=HOW)] = False
    save: Annotated[bool, typer.Option(help="Keep the trained adapters (not whole models).", rich_help_panel=HOW)] = (
        True
    )
    debug: Annotated[
        bool, typer.Option("--debug", help="Stop at the first error with a traceback.", rich_help_panel=HOW)
    ] = False


class Included(NamedTuple):
    """What a file of a user has added."""

    recipe: Recipe | None
    task: Task | None


def including(files: Sequence[Path] | None) -> list[Included]:
    """Add the methods and tasks of these files.

    Raises:
        BenchError: a file fails or defines neither, or what it defines is not complete.
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


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `(selection, running)` the options of both."""
    parts = (Selection, Running)
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for part in parts
        for hints in [get_type_hints(part, include_extras=True)]
        for field in fields(part)
    ]

    def with_options(**values: Any) -> None:
        command(*(part(**{field.name: values[field.name] for field in fields(part)}) for part in parts))

    with_options.__doc__ = command.__doc__
    with_options.__name__ = command.__name__
    with_options.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in options}
    return with_options
