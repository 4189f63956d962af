"""The trainer of a pack: all cells share the batches and the dropout masks, and everything else is kept per cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_bench import methods
from lora_bench.callbacks import Callback, EpochMetrics, PackEnd, PackStart, StepBlock
from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.engine.adapters import first_step
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder.windows import Batch, Form, Ints, Table, slices
from lora_bench.engine.evaluation import PausedError, Scores, Split, decide, evaluated_rows, reduce_rows, score_cells
from lora_bench.engine.graphs import MAX_WORK, StepGraphs, choose_shapes, training_stream
from lora_bench.engine.losses import batch_losses
from lora_bench.engine.masks import Masks
from lora_bench.engine.progress import Progress
from lora_bench.engine.ruled_optimiser import optimiser_of
from lora_bench.engine.schedule import lr_multipliers
from lora_bench.engine.step_rules import StepRules
from lora_bench.methods.rules import Step
from lora_bench.tasks.metrics import task_metric
from lora_bench.tasks.task import Task

if TYPE_CHECKING:
    import evaluate  # type: ignore[import-untyped, unused-ignore]

MASK_WINDOWS = 8  # mask buffers grow by multiples of this many windows (chosen), so that they are seldom replaced


class Trainer:
    """Trains a pack on a task.

    The values of each step (loss, gradient norm) stay on the device, `[2, K]` for each step, until the epoch ends or a
    callback asks for a pause. They are then copied to the host at once, so that no step waits for the device.

    Args:
        pack: The cells; they have one seed, number of epochs and batch size.
        task: The task.
        table: The rows to train on.
        evaluate: The rows to evaluate on after each epoch.
        held_out: Rows of the training split that select the best epoch, if any.
        starts: The states of the cells from which cells of the pack continue, by id (`Cell.start`).

    Attributes:
        steps: How many steps have been taken.
        epoch: How many epochs have been evaluated.
        progress: The progress of each cell, in the pack's order.
    """

    def __init__(
        self,
        pack: Pack,
        task: Task,
        table: Table,
        evaluate: Split,
        held_out: Table | None = None,
        starts: Mapping[str, State] = MappingProxyType({}),
    ) -> None:
        self.pack, self.task = pack, task
        self.table, self.evaluation, self.held_out = table, evaluate, held_out
        cell = pack.cells[0]
        self.seed, self.epochs, self.batch_size = cell.seed, cell.epochs, cell.batch_size
        self.steps_per_epoch = math.ceil(len(table) / cell.batch_size)
        self.blocks = pack.blocks()
        self.optimiser = optimiser_of(pack, self.total_steps, lambda: table.batches(self.batch_rows(1)))
        self.rules = StepRules(pack.bank.groups, self.total_steps, len(table))
        is_recordable = self.optimiser.is_recordable
        self._kept_gradients = [] if is_recordable else [torch.zeros_like(block.matrix) for block in self.blocks]
        self.device = pack.backbone.device
        self.generator = torch.Generator(self.device)
        self.graphs = StepGraphs(pack.fused)
        self.steps = self.epoch = 0
        self.progress = [Progress(cell) for cell in pack.cells]
        self._mask_buffers: dict[int, tuple[Form, Masks]] = {}
        self._callbacks: tuple[Callback, ...] = ()
        on_gpu = self.device.type == "cuda"
        self._stream = training_stream(torch.empty(0, device=self.device).get_device()) if on_gpu else None
        if any(first_step.starts_from_first_step(group) for group in pack.bank.groups):
            (batch,) = table.batches([self.batch_rows(1)[0]])
            with self._on_stream():
                first_step.initialise(pack, batch, self.total_steps)
        for position, member in enumerate(pack.cells):
            if member.start is not None:
                pack.continue_from(position, starts[member.start])

    def run(self, callbacks: Sequence[Callback] = ()) -> list[Progress]:
        """Train and evaluate all epochs that are left.

        Ends early when more than half of the cells have diverged (`finished` is False if others have not): the rest
        is better trained as a smaller pack.

        Args:
            callbacks: What is informed of the progress, in this order; may pause and stop the training.

        Returns:
            The progress of every cell, in the pack's order.
        """
        self._callbacks = tuple(callbacks)
        try:
            start = PackStart(tuple(self.pack.cells), self.steps_per_epoch, self.epochs, self.steps)
            for callback in callbacks:
                callback.on_pack_start(start)
            with self.pack:
                self.prepare()
                while not self.finished and not self.mostly_diverged:
                    self._run_epoch(self.epoch + 1)
            end = PackEnd(self.finished, tuple(progress.diverged for progress in self.progress))
            for callback in callbacks:
                callback.on_pack_end(end)
        finally:
            # A callback may refer to the trainer. Such a cycle would hold a pack's memory until Python's garbage
            # collector runs.
            self._callbacks = ()
        return self.progress

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole training."""
        return self.steps_per_epoch * self.epochs

    @property
    def last_step(self) -> Step:
        """The step that was taken last, as methods see it."""
        return Step(self.steps, self.total_steps, len(self.table))

    @property
    def finished(self) -> bool:
        """Whether no cell has an epoch left."""
        return self.epoch == self.epochs or all(progress.diverged for progress in self.progress)

    @property
    def mostly_diverged(self) -> bool:
        """Whether more than half of the cells have diverged."""
        return 2 * sum(progress.diverged is not None for progress in self.progress) > len(self.progress)

    def _run_epoch(self, epoch: int) -> None:
        """Train what is left of an epoch, and evaluate it. Goes on after a pause until both are done."""

        def should_pause(step: int) -> bool:
            for callback in self._callbacks:
                callback.on_step_issued(epoch, begun + step)
            return self._should_pause()

        while (begun := self.steps - (epoch - 1) * self.steps_per_epoch) < self.steps_per_epoch:
            self._record_steps(epoch, self.train(self.batch_rows(epoch)[begun:], should_pause))
            self._reach_safe_point()
        while self.epoch < epoch:
            with suppress(PausedError):
                self._evaluate_epoch(epoch)
            self._reach_safe_point()

    def _should_pause(self) -> bool:
        """Whether a callback asks for a pause. Each is asked: it may raise to stop the training."""
        answers = [callback.should_pause() for callback in self._callbacks]
        return any(answers)

    def _reach_safe_point(self) -> None:
        for callback in self._callbacks:
            callback.on_safe_point()

    def batch_rows(self, epoch: int) -> list[Ints]:
        """The table's rows in each batch of an epoch (from 1), a function of the seed and the epoch alone."""
        return slices(randomness.permutation(len(self.table), self.seed, "order", epoch), self.batch_size)

    def prepare(self, steps: int | None = None) -> None:
        """Choose which batch shapes to record as CUDA graphs.

        Only encoders that have a hand-written form are recorded: the code of others may do what a graph cannot hold.
        Full fine-tuning of these runs transformers' code too, and is recorded if that can be (`StepGraphs`).

        Args:
            steps: How many steps are to be taken; by default all.
        """
        batches = self.batch_rows(1)
        forms = Counter(self.table.layout(rows).form for rows in batches)
        mean = sum(form.slots * count for form, count in forms.items()) / len(batches)
        work = mean * len(self.pack.cells) * sum(m.weight.numel() for m in self.pack.backbone.linears().values())
        if self._stream is not None and self.pack.backbone.fused is not None and work <= MAX_WORK:
            share = (steps or self.total_steps) / len(batches)
            self.graphs.forms = choose_shapes({form: round(count * share) for form, count in forms.items()})

    def train(self, batches: Sequence[Ints], should_pause: Callable[[int], bool] | None = None) -> Tensor:
        """Take a step for each batch, issued without waiting for the device.

        Args:
            batches: The table's rows in each batch.
            should_pause: Called after each step with its number (from 1); True ends the call.

        Returns:
            `[steps, 2, K]`: the losses and the gradient norms of the steps taken, as `train_step` returns them.
        """
        values: list[Tensor] = []
        with self._on_stream():
            for step, batch in enumerate(self.table.batches(batches, self.graphs.padded_form), 1):
                values.append(self.train_step(batch))
                if should_pause is not None and should_pause(step):
                    break
            return torch.stack(values)

    def memory(self, position: int) -> dict[str, Tensor]:
        """What a cell's next step depends on besides values, moments and counts, by name; empty for most methods."""
        return self.rules.memory(position) | self.optimiser.memory()

    def load_memory(self, position: int, memory: Mapping[str, Tensor]) -> None:
        """Restore what `memory` has returned."""
        self.rules.load_memory(position, memory)
        self.optimiser.load_memory(memory)

    def probe_memory(self) -> None:
        """Run forward and backward on the largest batch of the first epoch, without an update, to measure memory."""
        largest = max(self.batch_rows(1), key=lambda rows: self.table.layout(rows).form.slots)
        (batch,) = self.table.batches([largest])
        with self.pack, self._on_stream():
            self._gradients(batch, self._masks_for(batch.shape))

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Issue on the training stream: recording a graph needs one that is not the default stream."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def train_step(self, batch: Batch) -> Tensor:
        """Forward, backward and update.

        Returns:
            `[2, K]`: the losses before the update, and the norms of the gradients before clipping.
        """
        self.generator.manual_seed(randomness.seed_of(self.seed, "dropout", self.steps))
        self.pack.draw_noise("step", self.steps)
        self.steps += 1

        def draw_masks(masks: Masks) -> None:
            masks.draw(self.generator, batch.windows, len(batch.rows))

        values = self.graphs.step(batch, self._device_step, self._masks_for, draw_masks)
        return values if self.optimiser.is_recordable else self._update(values, self._kept_gradients)

    def _device_step(self, batch: Batch, masks: Masks) -> Tensor:
        """The part of a step that a CUDA graph can record: all but the drawing of masks.

        If the optimiser's step cannot be recorded, the update is left out, and the gradients are kept for it.
        """
        losses, gradients = self._gradients(batch, masks)
        if self.optimiser.is_recordable:
            return self._update(losses, gradients)
        for kept, gradient in zip(self._kept_gradients, gradients, strict=True):
            kept.copy_(gradient)
        return losses

    def _update(self, losses: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Update what trains; `[2, K]`: the losses, and the norms of the gradients."""
        norms = self.optimiser.step(gradients, losses)
        self.rules.after_step(self.optimiser, gradients, norms)
        # One tensor, so that a replayed graph's output is copied by one kernel, and an epoch's by one transfer.
        return torch.stack([losses, norms])

    def _gradients(self, batch: Batch, masks: Masks) -> tuple[Tensor, Sequence[Tensor]]:
        """The losses `[K]` and the gradient of each block's matrix.

        One backward pass of the sum of all losses: a cell's values influence its own loss alone.
        """
        self.pack.compose()
        losses = batch_losses(self.pack.logits(batch, masks), batch.labels, batch.weights)
        losses = self.rules.penalised(losses, self.optimiser.count)
        gradients = torch.autograd.grad(losses.sum(), [block.matrix for block in self.blocks])
        return losses.detach(), gradients

    def _masks_for(self, form: Form) -> Masks:
        """Buffers for the masks of a batch of this shape: one per window width, replaced by a larger one if needed."""
        size, masks = self._mask_buffers.get(form.width, (Form(form.width, 0, 0), None))
        if masks is None or size.windows < form.windows or size.rows < form.rows:
            windows = -(-form.windows // MASK_WINDOWS) * MASK_WINDOWS
            size = Form(form.width, max(size.windows, windows), max(size.rows, form.rows))
            masks = self.pack.masks(size)
            self._mask_buffers[form.width] = size, masks
        return masks

    def _record_steps(self, epoch: int, values: Tensor) -> None:
        """Record steps of an epoch; at its end note the mean losses, and which cells have diverged.

        Here the host waits for the device: for one copy of all values of these steps.

        Args:
            epoch: The epoch.
            values: What `train` returned, `[steps, 2, K]`.
        """
        losses, norms = values.cpu().double().numpy().transpose(1, 0, 2)
        steps_taken = self.optimiser.steps_taken.tolist()
        numbers = torch.arange(self.steps - len(losses), self.steps)
        base_lrs = np.array([cell.lr for cell in self.pack.cells])
        lrs = base_lrs * lr_multipliers(self.pack.cells, numbers, self.total_steps).numpy()
        from_one = np.broadcast_to(numbers.numpy()[:, None] + 1.0, losses.shape)
        rows = np.stack([from_one, losses, norms, lrs], axis=2)  # [steps, K, RECENT_COLUMNS]
        for k, progress in enumerate(self.progress):
            if progress.diverged is not None:
                continue
            progress.losses += losses[:, k].tolist()
            progress.add_recent_steps(rows[:, k])
            if self.steps == epoch * self.steps_per_epoch:
                progress.epoch_losses.append(float(np.mean(progress.losses[-self.steps_per_epoch :])))
                if steps_taken[k] < self.steps:
                    progress.diverged = f"loss or gradient not finite in epoch {epoch}, step {steps_taken[k] + 1}"
        block = StepBlock(epoch, int(numbers[0]) + 1, losses, norms, lrs)
        for callback in self._callbacks:
            callback.on_steps_recorded(block)

    def _evaluate_epoch(self, epoch: int) -> None:
        """Score all cells after an epoch, and copy what the improved ones have trained.

        Raises:
            PausedError: The evaluation was interrupted; nothing has been recorded.
        """
        recorded = [k for k, progress in enumerate(self.progress) if progress.records_epoch(epoch)]
        predictions, scores = self._evaluate(recorded, self.evaluation.table, self.evaluation.parts)
        held_out_scores = None if self.held_out is None else self._evaluate(recorded, self.held_out)[1]
        improved: list[int] = []
        for index, k in enumerate(recorded):
            progress = self.progress[k]
            progress.add_scores(*scores[index])
            if held_out_scores is not None:
                progress.add_held_out_scores(*held_out_scores[index])
            if progress.diverged is None and not np.isfinite(predictions[k]).all():
                progress.diverged = f"outputs not finite after epoch {epoch}"
            is_candidate = progress.diverged is None and self._meets_budget(progress.cell)
            if is_candidate and progress.improved(self.task.main_metric):
                improved.append(k)
        for k, state in zip(improved, self.pack.states(improved), strict=True):
            progress = self.progress[k]
            progress.selected, progress.state, progress.predictions = epoch, state, predictions[k].copy()
        self.epoch = epoch
        metrics = EpochMetrics(
            epoch,
            self.task.main_metric,
            *(
                # A cell that diverged in an earlier epoch has fewer entries.
                tuple(dict(values[-1]) if len(values) == epoch else None for values in by_cell)
                for by_cell in ([p.metrics for p in self.progress], [p.held_out for p in self.progress])
            ),
        )
        for callback in self._callbacks:
            callback.on_epoch_evaluated(metrics)

    def _meets_budget(self, cell: Cell) -> bool:
        """Whether the cell has its final size after the last step: an epoch that ends before must not be selected."""
        return methods.of(cell).meets_budget(cell, self.last_step)

    @cached_property
    def _metric(self) -> evaluate.Metric:
        """The task's metrics. `evaluate` takes seconds to import, so only what is evaluated waits for it."""
        return task_metric(self.task)

    def _evaluate(
        self, cells: Sequence[int], table: Table, parts: dict[str, slice] | None = None
    ) -> tuple[NDArray[np.float64], list[Scores]]:
        """The predictions of all cells for a table, `[K, rows]`, and the scores of those at these positions.

        Raises:
            PausedError: A callback asked for a pause.
        """
        rows = reduce_rows(self.pack, table, evaluated_rows, self._should_pause)
        labels = table.labels.cpu().numpy()
        return rows[0], score_cells(self._metric, rows[:, cells], labels, parts)

    def predict(self, table: Table) -> NDArray[np.float64]:
        """The predictions of all cells for a table.

        Returns:
            `[K, rows]`, in the table's order: class numbers, or values for regression; NaN where a logit is not finite.

        Raises:
            PausedError: A callback asked for a pause.
        """
        rows = reduce_rows(self.pack, table, lambda logits, _: decide(logits)[None], self._should_pause)
        predictions: NDArray[np.float64] = rows[0]
        return predictions
