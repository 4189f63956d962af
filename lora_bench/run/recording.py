"""Builds the record of a cell from its training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.adapters.saved import compacted, stored_bytes
from lora_bench.engine.posterior import PosteriorScores
from lora_bench.engine.progress import Progress
from lora_bench.records.schema import AnyFloat, Counts, DataInfo, Epoch, PosteriorInfo, Record, Timing, TrainingStep
from lora_bench.run.outcome import protocol
from lora_bench.tasks import Task


@dataclass(frozen=True)
class EndedCell:
    """What remains of a cell when its training has ended, without its pack.

    Attributes:
        progress: Its losses, metrics and predictions.
        counts: The numbers of its trained parameters.
        posterior: What its posterior gives, if it has one.
    """

    progress: Progress
    counts: Counts
    posterior: PosteriorScores | None = None


def collect(pack: Pack, index: int, progress: Progress, posterior: PosteriorScores | None = None) -> EndedCell:
    """Return what a record needs of the cell at a position of a pack, which can be freed afterwards."""
    state = progress.state if progress.state is not None else pack.state(index)
    stored = compacted(progress.cell, state.adapter)
    counts = Counts(
        adapter_params=pack.adapter_params(index),
        head_params=pack.head_params(),
        adapter_bytes=stored_bytes(stored),
        modules=pack.modules(index),
        adapter_bytes_fp16=stored_bytes(stored, torch.float16),
        head_bytes=stored_bytes(state.head),
        head_bytes_fp16=stored_bytes(state.head, torch.float16),
    )
    return EndedCell(progress, counts, posterior)


def build_record(
    ended: EndedCell, task: Task, info: DataInfo, timing: Timing, notes: Sequence[str], environment: Mapping[str, str]
) -> Record:
    """Return the record of a cell that has trained to the end or diverged.

    Args:
        ended: The cell.
        task: Its task.
        info: The data that it was trained on.
        timing: The times of its pack.
        notes: What deviates from the paper in this cell.
        environment: The versions of libraries, the device and the fingerprint of the code.
    """
    progress = ended.progress
    values = [metrics[task.main_metric] for metrics in progress.metrics]
    best = _argmax(values)
    selected = progress.selected
    predictions = () if progress.predictions is None else progress.predictions
    return Record(
        id=progress.cell.id,
        cell=progress.cell,
        status="diverged" if progress.diverged else "done",
        reason=progress.diverged,
        metric=task.main_metric,
        epochs=_epochs(progress),
        best=None if best is None else _finite(values[best]),
        best_epoch=None if best is None else best + 1,
        last=_finite(values[-1]),
        score=None if selected is None else _finite(values[selected - 1]),
        score_epoch=selected,
        predictions=tuple(round(float(prediction), 6) for prediction in predictions),
        counts=ended.counts,
        timing=timing,
        protocol=protocol(progress.cell, task, notes),
        data=info,
        environment=dict(environment),
        last_steps=_last_steps(progress) if progress.diverged else None,
        posterior=_posterior(ended),
    )


def _posterior(ended: EndedCell) -> PosteriorInfo | None:
    """The part of the record on the posterior, with the calibration before it at the same epoch."""
    averaged, progress = ended.posterior, ended.progress
    if averaged is None or progress.selected is None:
        return None
    held_out = averaged.held_out
    return PosteriorInfo(
        metrics=_finite_values(averaged.scores.metrics),
        calibration=_finite_values(averaged.scores.calibration or {}),
        before=_finite_values(progress.calibration[progress.selected - 1]),
        held_out=None if held_out is None else _finite_values(held_out.metrics),
        held_out_calibration=None if held_out is None else _optional_values(held_out.calibration),
        prior_precision=None if averaged.prior_precision is None else _finite(averaged.prior_precision),
        seconds=averaged.seconds,
    )


def _last_steps(progress: Progress) -> tuple[TrainingStep, ...]:
    return tuple(
        TrainingStep(step=int(step), loss=_any_float(loss), grad_norm=_any_float(norm), lr=_any_float(lr))
        for step, loss, norm, lr in progress.recent_steps.tolist()
    )


def _epochs(progress: Progress) -> tuple[Epoch, ...]:
    missing = [None] * len(progress.metrics)
    columns = zip(
        progress.epoch_losses,
        progress.metrics,
        progress.held_out or missing,
        progress.calibration or missing,
        progress.held_out_calibration or missing,
        strict=True,
    )
    return tuple(
        Epoch(
            epoch=number,
            loss=_finite(loss),
            metrics=_finite_values(metrics),
            held_out=_optional_values(held_out),
            calibration=_optional_values(calibration),
            held_out_calibration=_optional_values(held_out_calibration),
        )
        for number, (loss, metrics, held_out, calibration, held_out_calibration) in enumerate(columns, start=1)
    )


def _argmax(values: Sequence[float]) -> int | None:
    """The first index of the largest value, without NaN; None if all are NaN."""
    indices = [index for index, value in enumerate(values) if not math.isnan(value)]
    return max(indices, key=lambda index: values[index]) if indices else None


def _finite(value: float) -> float | None:
    """The value, or None (null in JSON) for NaN and infinities."""
    return float(value) if math.isfinite(value) else None


def _finite_values(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}


def _optional_values(values: Mapping[str, float] | None) -> dict[str, float | None] | None:
    return None if values is None else _finite_values(values)


def _any_float(value: float) -> AnyFloat:
    """The value, or the word that stands for it where JSON has no number."""
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
