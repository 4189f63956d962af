"""Callbacks: what is informed of a training while it goes on, such as a progress display or a tracker of metrics.

Subclass `Callback` and override the methods that you need. `Trainer.run` takes any number of callbacks and calls them
in the order of its list. A pack with two epochs gives, in this order:

    on_pack_start
    on_step_issued, once for each step of epoch 1
    on_steps_recorded, on_safe_point
    on_epoch_evaluated, on_safe_point
    ... the same for epoch 2 ...
    on_pack_end

A pause (see `Callback.should_pause`) splits the steps of an epoch into several blocks, each of which ends with
`on_steps_recorded` and `on_safe_point`.

This module imports neither torch nor numpy, so that a callback can be defined before either is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_bench.cell import Cell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PackStart:
    """A pack that begins to train, or continues.

    Attributes:
        cells: The cells. All other events list cells in this order.
        steps_per_epoch: The number of steps in an epoch.
        epochs: The number of epochs.
        steps_taken: How many steps the cells have taken before: 0 unless they are resumed, or continue as a smaller
            pack because more than half of the pack diverged.
    """

    cells: tuple[Cell, ...]
    steps_per_epoch: int
    epochs: int
    steps_taken: int


@dataclass(frozen=True)
class StepBlock:
    """Consecutive steps of one epoch: n steps of K cells.

    A cell is not updated from the first step on whose loss or gradient norm is not finite. Its later values describe
    steps that were not taken.

    Attributes:
        epoch: The epoch, from 1.
        first_step: The number of the first step, from 1 and over all epochs.
        losses: `[n, K]`, the loss on the step's batch, before the update.
        grad_norms: `[n, K]`, the 2-norm of the gradient of all that the cell trains, before clipping.
        lrs: `[n, K]`, the learning rate `Cell.lr` times the schedule's multiplier. The head's rate and the rates of
            single factors have the same multiplier.
    """

    epoch: int
    first_step: int
    losses: Floats
    grad_norms: Floats
    lrs: Floats


@dataclass(frozen=True)
class EpochMetrics:
    """An epoch that has been evaluated.

    Attributes:
        epoch: The epoch, from 1.
        main_metric: The name of the task's main metric.
        metrics: The metrics of each cell on the evaluation split; None for a cell that diverged in an earlier epoch.
        held_out: The same on the held-out rows of the training split; None too if there are no such rows.
    """

    epoch: int
    main_metric: str
    metrics: tuple[Mapping[str, float] | None, ...]
    held_out: tuple[Mapping[str, float] | None, ...]


@dataclass(frozen=True)
class PackEnd:
    """A pack that ends.

    Attributes:
        finished: Whether all cells have ended. If not, those that have not diverged continue as a smaller pack.
        diverged: For each cell why it diverged; None if it has not.
    """

    finished: bool
    diverged: tuple[str | None, ...]


class Callback:
    """The base class of callbacks. Every method does nothing unless it is overridden.

    Any method may raise an exception to stop the training. `on_pack_end` is not called then.

    A callback sees numbers and cannot change them: results are the same with any callbacks.
    """

    def on_pack_start(self, start: PackStart) -> None:
        """A pack begins to train, or continues."""

    def on_step_issued(self, epoch: int, step: int) -> None:
        """A step has been handed to the device, which may not have computed it yet.

        Args:
            epoch: The epoch, from 1.
            step: The step within the epoch, from 1.
        """

    def on_steps_recorded(self, block: StepBlock) -> None:
        """The values of a block of steps are known.

        They are copied from the device once per block, since each copy waits for the device: at the end of an epoch,
        and before a pause within it.
        """

    def on_epoch_evaluated(self, metrics: EpochMetrics) -> None:
        """All cells have been evaluated after an epoch."""

    def on_safe_point(self) -> None:
        """The trainer is between two steps, and everything up to here is recorded: the pack can be saved now."""

    def on_pack_end(self, end: PackEnd) -> None:
        """A pack ends."""

    def should_pause(self) -> bool:
        """Whether to go to a safe point now.

        Asked after each step, and after each batch of an evaluation (which then starts anew). The training continues
        after the safe point.
        """
        return False
