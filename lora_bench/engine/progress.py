"""The progress of a cell while it trains: its losses and metrics so far, and its best epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lora_bench.cell import Cell
from lora_bench.engine.adapters.pack import State

RECENT_STEPS = 50  # chosen: enough to see how a divergence began, and a few kilobytes in a record
RECENT_COLUMNS = 4  # step (from 1), loss, gradient norm before clipping, learning rate


def _no_steps() -> NDArray[np.float64]:
    return np.empty((0, RECENT_COLUMNS))


@dataclass
class Progress:
    """The progress of one cell.

    A cell that diverges is recorded to the end of that epoch, so that its record does not depend on its pack.

    Attributes:
        cell: The cell.
        losses: The loss of each step.
        recent_steps: The last steps, at most `RECENT_STEPS`, up to the first at which the loss or the gradient norm is
            not finite: `[steps, 4]` with the columns step (from 1), loss, gradient norm before clipping, learning rate.
        epoch_losses: The mean loss of each epoch.
        metrics: The metrics on the evaluation split after each epoch; NaN stays NaN.
        held_out: The metrics on the held-out rows after each epoch, if there are such rows.
        calibration: The metrics of `engine.calibration` on the evaluation split after each epoch, for a classification.
        held_out_calibration: The same on the held-out rows.
        diverged: Why the cell has diverged; None if it has not.
        selected: The best epoch so far, from 1.
        state: What was trained after that epoch.
        predictions: The predictions for the evaluation split after that epoch.
    """

    cell: Cell
    losses: list[float] = field(default_factory=list)
    recent_steps: NDArray[np.float64] = field(default_factory=_no_steps)
    epoch_losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    held_out: list[dict[str, float]] = field(default_factory=list)
    calibration: list[dict[str, float]] = field(default_factory=list)
    held_out_calibration: list[dict[str, float]] = field(default_factory=list)
    diverged: str | None = None
    selected: int | None = None
    state: State | None = None
    predictions: NDArray[np.float64] | None = None

    def add_recent_steps(self, steps: NDArray[np.float64]) -> None:
        """Append rows to `recent_steps`, keep the last ones, and stop at the first that is not finite."""
        if not np.isfinite(self.recent_steps[-1:]).all():
            return
        is_bad = ~np.isfinite(steps).all(axis=1)
        if is_bad.any():
            steps = steps[: int(is_bad.argmax()) + 1]
        self.recent_steps = np.concatenate([self.recent_steps, steps])[-RECENT_STEPS:]

    def add_scores(self, metrics: dict[str, float], calibration: dict[str, float] | None) -> None:
        """Append what an epoch's evaluation gave on the evaluation split; a regression has no calibration."""
        self.metrics.append(metrics)
        self.calibration += [] if calibration is None else [calibration]

    def add_held_out_scores(self, metrics: dict[str, float], calibration: dict[str, float] | None) -> None:
        """Append the same of the held-out rows."""
        self.held_out.append(metrics)
        self.held_out_calibration += [] if calibration is None else [calibration]

    def records_epoch(self, epoch: int) -> bool:
        """Whether the metrics of this epoch (from 1) are recorded: until the epoch in which the cell diverges."""
        return self.diverged is None or len(self.metrics) == epoch - 1 < len(self.epoch_losses)

    def selection_metrics(self) -> list[dict[str, float]]:
        """The metrics by which the best epoch is selected."""
        return self.held_out if self.cell.select == "held-out" else self.metrics

    def improved(self, metric: str) -> bool:
        """Whether the newest epoch is to be selected."""
        values = [metrics[metric] for metrics in self.selection_metrics()]
        if self.cell.select == "last" or self.selected is None:
            return True
        previous = values[self.selected - 1]
        return values[-1] > previous or (math.isnan(previous) and not math.isnan(values[-1]))
