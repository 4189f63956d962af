"""From what the trainer knows of a cell to its record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.adapters.saved import stored_bytes
from lora_bench.engine.progress import Progress
from lora_bench.records.schema import AnyFloat, Counts, DataInfo, Epoch, Record, Timing, TrainingStep
from lora_bench.run.outcome import protocol
from lora_bench.tasks import Task


@dataclass(frozen=True)
class Ended:
    """A cell that needs its pack no more."""

    progress: Progress
    counts: Counts


def ended(pack: Pack, place: int, progress: Progress) -> Ended:
    """What a record needs of the pack."""
    state = progress.state if progress.state is not None else pack.state(place)
    counts = Counts(
        adapter_params=pack.adapter_params(place), head_params=pack.head_params(),
        adapter_bytes=stored_bytes(state.adapter), modules=pack.modules(place),
        adapter_bytes_fp16=stored_bytes(state.adapter, torch.float16), head_bytes=stored_bytes(state.head),
        head_bytes_fp16=stored_bytes(state.head, torch.float16),
    )  # fmt: skip
    return Ended(progress, counts)


def finished(
    cell: Ended, task: Task, info: DataInfo, timing: Timing, notes: Sequence[str], environment: Mapping[str, str]
) -> Record:
    """The record of a cell that trained to the end, or diverged on the way."""
    main, progress = task.main_metric, cell.progress
    values = [metrics[main] for metrics in progress.metrics]
    best = _argmax(values)
    selected = progress.selected
    return Record(
        id=progress.cell.id, cell=progress.cell, metric=main, epochs=_epochs(progress),
        status="diverged" if progress.diverged else "done", reason=progress.diverged,
        best=None if best is None else _number(values[best]), best_epoch=None if best is None else best + 1,
        last=_number(values[-1]), score=None if selected is None else _number(values[selected - 1]),
        score_epoch=selected,
        predictions=() if progress.predictions is None else tuple(round(float(p), 6) for p in progress.predictions),
        counts=cell.counts, timing=timing, protocol=protocol(progress.cell, task, notes), data=info,
        environment=dict(environment), last_steps=_last_steps(progress) if progress.diverged else None,
    )  # fmt: skip


def _last_steps(progress: Progress) -> tuple[TrainingStep, ...]:
    return tuple(
        TrainingStep(step=int(step), loss=_any_float(loss), grad_norm=_any_float(norm), lr=_any_float(lr))
        for step, loss, norm, lr in progress.recent_steps.tolist()
    )


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


def _any_float(value: float) -> AnyFloat:
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}
