"""The registry of tasks: the nine of GLUE, those of installed packages and those of included files.

Users add tasks with a file that defines `TASK` (`--include`) or with an installed package that has an entry point in
the group `lora_bench.tasks`. A cell of such a task contains the file's name and hash (`task_origin`), so that its id
stands for one version of the definition.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

from lora_bench import plugins
from lora_bench.errors import BenchError
from lora_bench.plugins import Plugin
from lora_bench.tasks import glue, task
from lora_bench.tasks.definition import validated
from lora_bench.tasks.task import BROKEN, TASKS, Files, Hub, Submission, Task, Tsv, get, of, origin

__all__ = [
    "BROKEN",
    "GROUP",
    "TASKS",
    "Files",
    "Hub",
    "Submission",
    "Task",
    "Tsv",
    "add_from",
    "add_installed",
    "get",
    "include",
    "of",
    "origin",
    "registered",
]

GROUP = "lora_bench.tasks"


def include(path: Path) -> Task:
    """Add the task that a file defines as `TASK`. Including the same file again changes nothing.

    Raises:
        BenchError: Exit code 2 if the file does not exist, fails or defines no task, or if the task is incomplete or
            its name is taken.
    """
    added = add_from(plugins.load_file(path))
    if added is None:
        raise BenchError(f"'{path}' defines no TASK.", "End it with `TASK = Task(...)`.")
    return added


def add_from(plugin: Plugin) -> Task | None:
    """Add the task that a loaded file defines as `TASK`, and return it; None if the file defines none.

    Raises:
        BenchError: Exit code 2 if `TASK` is not a Task or is incomplete, or if its name is taken.
    """
    definition = getattr(plugin.module, "TASK", None)
    if definition is None:
        return None
    if not isinstance(definition, Task):
        raise BenchError(f"The TASK of '{plugin.path}' is not a Task.", "End the file with `TASK = Task(...)`.")
    return _add(definition, plugin.origin, str(plugin.path), Path(plugin.file))


def add_installed(points: Iterable[EntryPoint]) -> None:
    """Add the tasks of installed packages. Those that cannot be loaded are listed in `BROKEN`."""
    for point in points:
        with task.registry.note_failure(point.name):
            loaded = plugins.load_point(point)
            definition = getattr(loaded, "TASK", loaded)
            if not isinstance(definition, Task):
                raise TypeError(f"{point.value} is not a Task")
            file = Path(inspect.getfile(sys.modules[point.module])).absolute()
            _add(definition, plugins.register(file), point.value, file)


@contextmanager
def registered(*definitions: Task) -> Iterator[None]:
    """Have these tasks in the registry during a block of a test; at its end the registry is as it was before.

    Tasks that are included in the block are removed too, so that a block without tasks keeps tests apart.

    Args:
        definitions: The tasks. They are not checked as those of `include` are, and they have no origin; paths of
            `Files` are relative to their `root`, or to the working directory. One with the name of another task
            replaces it.
    """
    with task.registry.restored():
        for definition in definitions:
            root = getattr(definition.source, "root", None) or Path.cwd()
            task.registry.put(definition.name, _with_root(definition, root))
        yield


def _with_root(definition: Task, folder: Path) -> Task:
    """The task, with `folder` as the root of its files if it has any."""
    if not isinstance(definition.source, Files):
        return definition
    return replace(definition, source=replace(definition.source, root=folder))


def _add(definition: Task, origin: str, where: str, file: Path) -> Task:
    """Check a definition and add it.

    Args:
        definition: The task.
        origin: Its origin.
        where: What messages call its file.
        file: Its file, to whose folder the paths of data files are relative.
    """
    added = _with_root(validated(definition, where, file), file.parent)
    present = TASKS.get(added.name)
    if present is not None and (task.origin(added.name), present.source) == (origin, added.source):
        return present
    if present is not None:
        raise BenchError(f"'{where}' defines '{added.name}', which exists already.", "Give it another name.")
    task.registry.put(added.name, added, origin)
    return added


for record in glue.RECORDS:
    task.registry.put(record.name, record)
add_installed(plugins.points(GROUP))
