"""From what the trainer knows of a cell to its record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from lora_bench.cell import Cell
from lora_bench.engine.checkpoint import stored_bytes
from lora_bench.engine.pack import Pack
from lora_bench.engine.trainer import Progress
from lora_bench.store import Counts, DataInfo, Epoch, Protocol, Record, Timing
from lora_bench.tasks import Task
from lora_bench.tasks import get as get_task


def finished(
    pack: Pack,
    place: int,
    progress: Progress,
    task: Task,
    info: DataInfo,
    timing: Timing,
    notes: Sequence[str],
    environment: Mapping[str, str],
) -> Record:
    """The record of a cell that trained to the end, or diverged on the way."""
    main = task.main_metric
    values = [metrics[main] for metrics in progress.metrics]
    best = _argmax(values)
    selected = progress.selected
    state = progress.state if progress.state is not None else pack.state(place)
    return Record(
        id=progress.cell.id, cell=progress.cell, metric=main, epochs=_epochs(progress),
        status="diverged" if progress.diverged else "done", reason=progress.diverged,
        best=None if best is None else _number(values[best]), best_epoch=None if best is None else best + 1,
        last=_number(values[-1]), score=None if selected is None else _number(values[selected - 1]),
        score_epoch=selected,
        predictions=() if progress.predictions is None else tuple(round(float(p), 6) for p in progress.predictions),
        counts=Counts(
            adapter_params=pack.adapter_params(place), head_params=pack.head_params(),
            adapter_bytes=stored_bytes(state.adapter), modules=pack.modules(place),
            adapter_bytes_fp16=stored_bytes(state.adapter, torch.float16), head_bytes=stored_bytes(state.head),
            head_bytes_fp16=stored_bytes(state.head, torch.float16),
        ),
        timing=timing, protocol=_protocol(progress.cell, task, notes), data=info, environment=dict(environment),
    )  # fmt: skip


def failure(cell: Cell, reason: str, notes: Sequence[str], environment: Mapping[str, str]) -> Record:
    """The record of a cell that could not be trained."""
    task = get_task(cell.task)
    return Record(
        id=cell.id, cell=cell, status="failed", reason=reason, metric=task.main_metric,
        protocol=_protocol(cell, task, notes), environment=dict(environment),
    )  # fmt: skip


def _protocol(cell: Cell, task: Task, notes: Sequence[str]) -> Protocol:
    split = "+".join(name for name, _ in task.eval_splits)
    return Protocol(split=split, select=cell.select, notes=tuple(notes))


def _epochs(progress: Progress) -> tuple[Epoch, ...]:
    held: Sequence[Mapping[str, float] | None] = progress.held_out or [None] * len(progress.metrics)
    return tuple(
        Epoch(
            epoch=number, loss=_number(loss), metrics=_numbers(metrics),
            held_out=None if kept is None else _numbers(kept),
        )
        for number, (loss, metrics, kept) in enumerate(
            zip(progress.epoch_losses, progress.metrics, held, strict=True), 1
        )
    )  # fmt: skip


def _argmax(values: Sequence[float]) -> int | None:
    """The first place of the largest value that is a number."""
    numbers = [index for index, value in enumerate(values) if not math.isnan(value)]
    return max(numbers, key=lambda index: values[index]) if numbers else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}
