"""What is known of a cell while it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lora_bench.cell import Cell
from lora_bench.engine.adapters.pack import State


@dataclass
class Progress:
    """What is known of one cell so far. Metrics are by epoch; NaN is kept as NaN.

    A cell that has diverged is followed to the end of that epoch, whatever pack it is in.
    """

    cell: Cell
    losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    held_out: list[dict[str, float]] = field(default_factory=list)
    diverged: str | None = None
    selected: int | None = None
    state: State | None = None
    predictions: NDArray[np.float64] | None = None

    def follows(self, epoch: int) -> bool:
        """Whether the cell is one that this epoch (from 1) says something of."""
        return self.diverged is None or len(self.metrics) == epoch - 1 < len(self.epoch_losses)

    def chosen_by(self) -> list[dict[str, float]]:
        """The metrics that choose the epoch."""
        return self.held_out if self.cell.select == "held-out" else self.metrics

    def improved(self, metric: str) -> bool:
        """Whether the newest epoch is the one to keep so far."""
        values = [metrics[metric] for metrics in self.chosen_by()]
        if self.cell.select == "last" or self.selected is None:
            return True
        previous = values[self.selected - 1]
        return values[-1] > previous or (math.isnan(previous) and not math.isnan(values[-1]))
