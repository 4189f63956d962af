"""The command that trains a recorded cell again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence

from lora_bench import methods, models, tasks
from lora_bench.cell import Cell
from lora_bench.data import DataSource
from lora_bench.errors import MISSING, NOTHING, BenchError
from lora_bench.grid.config import SETTINGS, parse_set
from lora_bench.grid.selection import default_settings
from lora_bench.models import SAMPLE

MODEL_DIR, DATA_DIR = "MODEL_DIR", "DATA_DIR"  # stand for folders, of which records hold no paths
_NAMED = ("model", "task", "method", "start")  # settings that are not given by --set


def training_command(cell: Cell, include: Sequence[str] = ()) -> str:
    """Return the `lora-bench run` that trains a cell, with the settings in which it differs from the defaults.

    A directory of a model stands in it as MODEL_DIR, a folder of data as DATA_DIR. Where the cell continues from
    another one, it is the command of a cell that does not.

    Args:
        cell: The cell.
        include: The files that define its method or its task.

    Raises:
        BenchError: Exit code 2 or 3 if the method or the task is not here, or is another one of that name; 4 if no
            command trains the cell, since this version has other data or other settings of the method.
    """
    require_same_definitions(cell)
    words = ["lora-bench", "run", "--model", _model_word(cell), *_data_words(cell)]
    for file in include:
        words += ["--include", file]
    words += ["--task", cell.task, "--method", cell.method]
    for setting, value in _changed_settings(cell):
        words += ["--set", f"{setting}={_as_yaml(setting, value)}"]
    return shlex.join(words)


def is_bundled(cell: Cell) -> bool:
    """Return whether the cell was trained over the bundled encoder; a directory may have the same name."""
    return cell.model == models.identity(SAMPLE)


def require_same_definitions(cell: Cell) -> None:
    """Refuse a method or a task that has the name but is not the one that the cell was trained with.

    Raises:
        BenchError: Exit code 2 if there is none of the name, 3 if it is another one.
    """
    definitions = (
        (cell.method, cell.origin, methods.origin(methods.of(cell).name)),
        (cell.task, cell.task_origin, tasks.origin(tasks.of(cell).name)),
    )
    for name, origin, present in definitions:
        if present != origin:
            raise BenchError(
                f"The cell was trained with {origin or 'this package'}'s '{name}', "
                f"here it is {present or 'this package'}'s.",
                "Include the file as it was: --include FILE.",
                MISSING,
            )


def _model_word(cell: Cell) -> str:
    if is_bundled(cell):
        return SAMPLE
    return MODEL_DIR if "@" in cell.model else cell.model


def _data_words(cell: Cell) -> list[str]:
    """The option for the cell's data; none if they are those that `run` takes by itself."""
    bundled = is_bundled(cell) and cell.task_origin is None
    try:
        default = DataSource.parse(sample=bundled).identity(tasks.of(cell))
    except BenchError:  # the task's own files are not here, or it has none
        default = None
    if cell.data == default:
        return []
    if cell.data.startswith("files:"):
        return ["--data-dir", DATA_DIR]
    raise _no_command(f"it was trained on {cell.data}, this version has {default}")


def _changed_settings(cell: Cell) -> Iterator[tuple[str, object]]:
    """The settings in which a cell differs from the defaults of its method."""
    defaults = default_settings(cell.method)
    for setting in SETTINGS:
        value, default = getattr(cell, setting), defaults.get(setting)
        if setting in _NAMED or value == default:
            continue
        if value is None or setting not in defaults:
            raise _no_command(f"its {setting} is {value}, and {cell.method} of this version has {default}")
        yield setting, value


def _no_command(reason: str) -> BenchError:
    hint = "Install the version that trained it: the record's environment names it."
    return BenchError(f"No command of this version trains the cell: {reason}.", hint, NOTHING)


def _as_yaml(setting: str, value: object) -> str:
    """A value as `--set` reads it: a text is quoted where YAML would read something else."""
    try:
        is_read = parse_set(f"{setting}={value}") == (setting, (value,))
    except BenchError:
        is_read = False
    return str(value) if is_read else json.dumps(value)
