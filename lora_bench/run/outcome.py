"""The outcome of a cell: its record, and the files of its adapter. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.records.schema import Protocol, Record
from lora_bench.tasks import Task
from lora_bench.text import discreet


@dataclass(frozen=True)
class Outcome:
    """A cell that has ended.

    Attributes:
        record: Its record.
        adapter: The files of its adapter by name; none if no adapter is kept.
    """

    record: Record
    adapter: Mapping[str, bytes] = field(default_factory=dict)


def failed_outcome(
    cell: Cell, status: Literal["failed", "oom"], reason: str, notes: Sequence[str], environment: Mapping[str, str]
) -> Outcome:
    """Return the outcome of a cell that could not be trained."""
    task = tasks.of(cell)
    record = Record(
        id=cell.id,
        cell=cell,
        status=status,
        reason=discreet(reason),
        metric=task.main_metric,
        protocol=protocol(cell, task, notes),
        environment=dict(environment),
    )
    return Outcome(record)


def protocol(cell: Cell, task: Task, notes: Sequence[str]) -> Protocol:
    """Return how the number of a cell of a task is made; `notes` say what deviates from the paper in it."""
    return Protocol(split="+".join(task.eval_splits), select=cell.select, notes=tuple(notes))
