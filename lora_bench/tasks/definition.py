"""Checks of the definition of a task, made before a user's task is added to the registry."""

from __future__ import annotations

import ast
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_bench.errors import BenchError, nearest
from lora_bench.tasks.task import CLASS_METRICS, VALUE_METRICS, Files, Hub, Task, metric_of_split

_WORD = re.compile(r"[A-Za-z0-9_][\w.+-]{0,99}")
_RESERVED = frozenset({"default", "all"})  # reserved in configs, where they stand for all tasks
_METRICS = CLASS_METRICS | VALUE_METRICS


def _is_word(value: object) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None and value not in _RESERVED


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and 0 < value < math.inf


def _is_metric(value: object) -> bool:
    """Whether it is the name of a metric, or a function with a name and with a line for messages."""
    return isinstance(value, str) or (hasattr(value, "__code__") and _is_word(getattr(value, "__name__", None)))


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a word", _is_word),
    "title": ("a text", _is_text),
    "columns": (
        "a tuple of one or two names of text columns",
        lambda value: _are_texts(value) and len(value) in (1, 2),
    ),
    "labels": ("a tuple of two names of classes or more, or ()", lambda value: _are_texts(value) and len(value) != 1),
    "metrics": (
        "a tuple of names and of named functions",
        lambda value: isinstance(value, tuple) and bool(value) and all(map(_is_metric, value)),
    ),
    "source": ("Files, Hub or None", lambda value: value is None or isinstance(value, Files | Hub)),
    "eval_splits": (
        "a tuple of names that are 'validation' or begin with 'validation_'",
        lambda value: (
            _are_texts(value) and bool(value) and all(re.fullmatch(r"validation(_\w+)?", name) for name in value)
        ),
    ),
    "bounds": (
        "the lowest and the highest label",
        lambda value: (
            isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]
        ),
    ),
    "rows": (
        "the number of rows of each split, or ()",
        lambda value: isinstance(value, tuple) and all(type(count) is int and count > 0 for count in value),
    ),
    "mean_tokens": ("a positive number or None", lambda value: value is None or _is_positive(value)),
    "eval_mean_tokens": ("a positive number or None", lambda value: value is None or _is_positive(value)),
    "token_spread": ("a number from 0 on", lambda value: _is_number(value) and 0 <= value < math.inf),
}


def validated(task: Task, where: str, file: Path) -> Task:
    """Return the definition with tuples instead of lists.

    Args:
        task: The definition.
        where: What messages call its file.
        file: Its file, from which messages take the line of an error.

    Raises:
        BenchError: Exit code 2 if something is missing, or if parts contradict each other.
    """
    lists: dict[str, Any] = {field: tuple(value) for field in _KINDS if isinstance(value := getattr(task, field), list)}
    task = replace(task, **lists)
    for field, (kind, is_sound) in _KINDS.items():
        value = getattr(task, field)
        if not is_sound(value):
            shown = " ".join(reprlib.repr(value).split())
            raise _error(where, file, field, f"{field} is {shown}, not {kind}", f"Write {field} as {kind}.")
    faults = (("metrics", _metrics_fault(task)), ("source", _source_fault(task)), ("rows", _rows_fault(task)))
    for field, fault in faults:
        if fault is not None:
            raise _error(where, file, field, *fault)
    return task


def _error(where: str, file: Path, field: str, what: str, hint: str) -> BenchError:
    return BenchError(f"'{where}', line {_line_of(file, field)}: {what}.", hint)


Fault = tuple[str, str] | None  # what is wrong, without a full stop, and how to fix it; None for nothing


def _metrics_fault(task: Task) -> Fault:
    names = task.metric_names
    if len(set(names)) < len(names):
        return f"metrics names {max(names, key=names.count)} twice", "Name each metric once."
    fitting = VALUE_METRICS if task.is_regression else CLASS_METRICS
    for metric in task.metrics:
        if not isinstance(metric, str):
            if metric.__name__ in _METRICS:
                return f"the function {metric.__name__} has the name of another metric", "Give it another name."
            continue
        kind, split = (metric, None) if metric in _METRICS else metric_of_split(metric)
        if kind not in _METRICS or split not in (None, *task.eval_splits):
            return f"there is no metric '{metric}'", nearest(metric, _METRICS)
        if kind not in fitting:
            what = "a regression" if task.is_regression else "classes"
            return f"'{metric}' is not a metric of {what}", f"Those are: {', '.join(sorted(fitting))}."
        if kind == "f1" and len(task.labels) != 2:
            hint = "Use macro_f1, the mean over the classes, or give two labels: F1 is that of the second."
            return f"'{metric}' is a metric of two classes, and there are {len(task.labels)}", hint
    return None


def _source_fault(task: Task) -> Fault:
    source = task.source
    if source is None:
        return _columns_fault(task.columns, "label")
    if not isinstance(source.columns, Mapping) or not isinstance(source.splits, Mapping):
        return "the source's splits and columns are not both mappings", "Write them as {'name': 'name in the data'}."
    names = [*source.columns.values(), source.label]
    if not all(map(_is_text, names)) or len(set(names)) < len(names):
        return "the source's names of columns and of the label are not different texts", "Name each column once."
    for kind, names_by_task, known in (
        ("columns", source.columns, task.columns),
        ("splits", source.splits, task.splits),
    ):
        unknown = next((name for name in names_by_task if name not in known), None)
        if unknown is not None:
            return f"the source's {kind} name '{unknown}', which the task does not have", nearest(str(unknown), known)
    fault = _columns_fault([source.columns.get(column, column) for column in task.columns], source.label)
    return fault or (_hub_fault(source) if isinstance(source, Hub) else _files_fault(task, source))


def _columns_fault(texts: Sequence[str], label: str) -> Fault:
    """Refuse that one column of the data is read as two: a text that is the label would be learnt at once."""
    if label in texts:
        return f"the column '{label}' is both a text and the label", "Name another column for one of them."
    if len(set(texts)) < len(texts):
        return f"two texts are read from the column '{texts[0]}'", "Name another column for one of them."
    return None


def _hub_fault(source: Hub) -> Fault:
    if not isinstance(source.revision, str) or not re.fullmatch("[0-9a-f]{40}", source.revision):
        hint = "Give the whole commit, 40 hexadecimal digits: the Hub shows it under 'Files and versions', 'History'."
        return "the source's revision is not a commit", hint
    texts = [source.id, *source.splits.values(), *([] if source.config is None else [source.config])]
    return None if all(map(_is_text, texts)) else ("a name in the source is not a text", "Write names as texts.")


def _files_fault(task: Task, source: Files) -> Fault:
    missing = next((split for split in task.splits if split not in source.splits), None)
    if missing is not None:
        return f"the source has no files of the split '{missing}'", f"It needs {', '.join(task.splits)}."
    for split, paths in source.splits.items():
        parts = [paths] if isinstance(paths, str) else paths
        if not isinstance(parts, list | tuple) or not parts or not all(map(_is_text, parts)):
            return (
                f"the files of '{split}' are neither a path nor a list of paths",
                "Write a path, a pattern or a list.",
            )
    return None


def _rows_fault(task: Task) -> Fault:
    if task.rows and len(task.rows) != len(task.splits):
        return f"rows has {len(task.rows)} numbers", f"Give one for each of {', '.join(task.splits)}, or leave it out."
    return None


def _line_of(file: Path, field: str) -> int:
    """The line of the file that sets a field of a task, or where the task begins; 1 if neither is known."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return 1
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Task"]
    fields = [keyword.value.lineno for call in calls for keyword in call.keywords if keyword.arg == field]
    return next(iter([*fields, *(call.lineno for call in calls)]), 1)
