"""Evaluation: from logits to predictions, the task's metrics and the calibration of each cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_bench.data.windows import EVAL_SLOTS
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.calibration import calibration, row_values
from lora_bench.engine.encoder.windows import Table

if TYPE_CHECKING:
    import evaluate  # type: ignore[import-untyped, unused-ignore]


@dataclass(frozen=True)
class Split:
    """The rows to evaluate on.

    Attributes:
        table: The rows.
        parts: For a task with several evaluation splits (MNLI), the rows of each by name.
    """

    table: Table
    parts: dict[str, slice] | None = None


class PausedError(Exception):
    """An evaluation was interrupted by a pause, and has to be done again."""


class Scores(NamedTuple):
    """What an evaluation gives a cell.

    Attributes:
        metrics: The task's metrics.
        calibration: The metrics of `engine.calibration`; None for a regression.
    """

    metrics: dict[str, float]
    calibration: dict[str, float] | None


def decide(logits: Tensor) -> Tensor:
    """The predictions `[K, B]`: the value of a regression (one output), else the number of the most likely class.

    NaN if a logit is not finite.
    """
    if logits.shape[-1] == 1:
        return logits[..., 0].double()
    classes = logits.argmax(-1).double()
    return classes.masked_fill(~torch.isfinite(logits).all(-1), float("nan"))


def evaluated_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """All that scores need of each row, in float64: `[1, K, B]` for a regression, else `[1 + ROW_VALUES, K, B]`.

    The predictions come first, then the values of `engine.calibration.row_values`.
    """
    predictions = decide(logits)[None]
    return predictions if logits.shape[-1] == 1 else torch.cat([predictions, row_values(logits, labels)])


@torch.no_grad()
def reduce_rows(
    pack: Pack, table: Table, reduce: Callable[[Tensor, Tensor], Tensor], should_pause: Callable[[], bool]
) -> NDArray[np.float64]:
    """Apply `reduce` to the logits of all rows; `[values, K, rows]` in the table's order.

    Args:
        pack: The cells.
        table: The rows.
        reduce: Turns logits `[K, B, outputs]` and labels `[B]` into values `[values, K, B]` on the device.
        should_pause: Called after each batch.

    Raises:
        PausedError: `should_pause` returned True.
    """
    pack.draw_noise()
    pack.compose()
    budget = max(1, EVAL_SLOTS[table.device.type] // len(pack.cells))
    parts = []
    for batch in table.evaluated(budget):
        parts.append((batch.rows, reduce(pack.logits(batch), batch.labels)))
        if should_pause():
            raise PausedError
    values = np.empty((*parts[0][1].shape[:2], len(table)))
    for rows, part in parts:  # after all batches are issued, since each copy waits for the device
        values[:, :, rows] = part.cpu().numpy()
    return values


def score_cells(
    metric: evaluate.Metric,
    rows: NDArray[np.float64],
    labels: NDArray[np.generic],
    parts: Mapping[str, slice] | None,
) -> list[Scores]:
    """The scores of each cell, in one call of `metric` for all cells, as each has an overhead of milliseconds.

    Args:
        metric: The task's metrics.
        rows: `evaluated_rows` of all rows, `[values, K, N]`.
        labels: `[N]`, shared by all cells.
        parts: The rows of each evaluation split.
    """
    predictions, row_values = rows[0], rows[1:]
    if not len(predictions):
        return []
    references = np.broadcast_to(labels, predictions.shape)
    columns = metric.compute(predictions=predictions, references=references, splits=parts)
    metrics = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if not len(row_values):
        return [Scores(values, None) for values in metrics]
    return list(map(Scores, metrics, calibration(row_values, predictions == labels)))
