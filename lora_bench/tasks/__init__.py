"""The tasks: GLUE's nine, those of installed packages and those of included files.

A user's task is a file that defines `TASK` and is included (`--include`), or what an installed package offers in the
entry-point group `lora_bench.tasks`. A cell of such a task names the file and its hash (`task_origin`), so that an id
means one text of the definition.
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
from lora_bench.tasks.definition import normalised
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
    "adopt",
    "get",
    "include",
    "of",
    "origin",
    "registered",
]

GROUP = "lora_bench.tasks"


def include(path: Path) -> Task:
    """Add the task that a file defines as `TASK`; the same file again changes nothing.

    Raises:
        BenchError: the file is not there, fails, defines no task, or one that is not complete or whose name is taken.
    """
    added = add_from(plugins.load_file(path))
    if added is None:
        raise BenchError(f"'{path}' defines no TASK.", "End it with `TASK = Task(...)`.")
    return added


def add_from(plugin: Plugin) -> Task | None:
    """Add the task that a loaded file defines as `TASK`; None if it defines none.

    Raises:
        BenchError: the task is none, is not complete, or its name is taken.
    """
    definition = getattr(plugin.module, "TASK", None)
    if definition is None:
        return None
    if not isinstance(definition, Task):
        raise BenchError(f"The TASK of '{plugin.path}' is no Task.", "End the file with `TASK = Task(...)`.")
    return _add(definition, plugin.origin, str(plugin.path), Path(plugin.file))


def adopt(points: Iterable[EntryPoint]) -> None:
    """Add the tasks of installed packages; one that cannot be loaded is kept in `BROKEN` and stops nothing."""
    for point in points:
        with plugins.note_failure(point.name, task._broken):
            loaded = plugins.load_point(point)
            definition = getattr(loaded, "TASK", loaded)
            if not isinstance(definition, Task):
                raise TypeError(f"{point.value} is no Task")
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
    with plugins.restored(task._tasks, task._origins, task._broken):
        for definition in definitions:
            task._origins.pop(definition.name, None)
            root = getattr(definition.source, "root", None) or Path.cwd()
            task.add(_with_root(definition, root))
        yield


def _with_root(definition: Task, folder: Path) -> Task:
    """The task, with `folder` as the root of its files if it has any."""
    if not isinstance(definition.source, Files):
        return definition
    return replace(definition, source=replace(definition.source, root=folder))


def _add(definition: Task, origin: str, where: str, file: Path) -> Task:
    """Check a definition and add it. Paths of its files are relative to the folder of `file`."""
    added = _with_root(normalised(definition, where, file), file.parent)
    present = TASKS.get(added.name)
    if present is not None and (task.origin(added.name), present.source) == (origin, added.source):
        return present
    if present is not None:
        raise BenchError(f"'{where}' defines '{added.name}', which there is already.", "Give it another name.")
    task.add(added, origin)
    return added


for record in glue.RECORDS:
    task.add(record)
adopt(plugins.points(GROUP))
