"""The one trainer: epochs of a pack, evaluated each, with everything that could tie cells together kept per cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine import first_step, randomness
from lora_bench.engine.graphs import SMALL, Replays, choose
from lora_bench.engine.losses import batch_losses
from lora_bench.engine.masks import Masks
from lora_bench.engine.optimiser import PackedAdamW
from lora_bench.engine.pack import Pack, State
from lora_bench.engine.windows import Batch, Form, Ints, Table, slices
from lora_bench.metrics import score
from lora_bench.tasks import Task

EVAL_TOKENS = {"cpu": 2**13, "cuda": 2**18}


class Watch(Protocol):
    """Who follows the training. `step` may raise to stop it."""

    def step(self, epoch: int, step: int) -> None:
        """A step of the epoch has been issued."""

    def epoch(self, epoch: int, scores: Sequence[float | None]) -> None:
        """An epoch is evaluated: the main metric of each cell."""


@dataclass(frozen=True)
class Split:
    """Rows to evaluate on: their table, and for MNLI which rows are which split."""

    table: Table
    parts: dict[str, slice] | None = None


@dataclass
class Progress:
    """What is known of one cell so far. Metrics are by epoch; NaN is kept as NaN."""

    cell: Cell
    losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    held_out: list[dict[str, float]] = field(default_factory=list)
    diverged: str | None = None
    selected: int | None = None
    state: State | None = None
    predictions: NDArray[np.float64] | None = None

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


class Trainer:
    """Trains a pack on a task. All cells see the same batches in the same order and the same dropout masks."""

    def __init__(self, pack: Pack, task: Task, table: Table, evaluate: Split, held_out: Table | None = None) -> None:
        self.pack, self.task = pack, task
        self.table, self.evaluation, self.held_out = table, evaluate, held_out
        cell = pack.cells[0]
        self.seed, self.epochs, self.batch_size = cell.seed, cell.epochs, cell.batch_size
        self.steps_an_epoch = math.ceil(len(table) / cell.batch_size)
        self.blocks = pack.blocks()
        self.optimiser = PackedAdamW(self.blocks, pack.cells, self.steps_an_epoch * cell.epochs)
        self.device = pack.backbone.device
        self.generator = torch.Generator(self.device)
        self.replays = Replays(self._advance, self._room)
        self.steps = 0
        self.progress = [Progress(cell) for cell in pack.cells]
        self._rooms: dict[int, tuple[Form, Masks]] = {}
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if any(first_step.starts_from_it(group) for group in pack.bank.groups):
            (batch,) = table.batches([self.groups(1)[0]])
            with self._on_stream():
                first_step.begin(pack, batch, self.steps_an_epoch * self.epochs)

    def run(self, watch: Watch | None = None) -> list[Progress]:
        """All epochs, each evaluated; what became of every cell, in the pack's order."""
        with self.pack:
            self.prepare()
            for epoch in range(1, self.epochs + 1):
                losses = self.train(self.groups(epoch), partial(watch.step, epoch) if watch else None)
                self._note_losses(epoch, losses)
                self._evaluate_epoch(epoch, watch)
        return self.progress

    def groups(self, epoch: int) -> list[Ints]:
        """The rows of each batch of an epoch."""
        return slices(randomness.permutation(len(self.table), self.seed, "order", epoch), self.batch_size)

    def prepare(self, steps: int | None = None) -> None:
        """Choose which shapes of batches to record as CUDA graphs, for that many steps (default: all).

        Only the written-out encoder is recorded: transformers' own code may do what a graph cannot hold.
        """
        groups = self.groups(1)
        forms = Counter(self.table.layout(group).form for group in groups)
        mean = sum(form.slots * count for form, count in forms.items()) / len(groups)
        work = mean * len(self.pack.cells) * sum(m.weight.numel() for m in self.pack.backbone.linears().values())
        if self._stream is not None and self.pack.fused and work <= SMALL:
            share = (steps or self.steps_an_epoch * self.epochs) / len(groups)
            self.replays.forms = choose({form: round(count * share) for form, count in forms.items()})

    def train(self, groups: Sequence[Ints], watch: Callable[[int], None] | None = None) -> Tensor:
        """A step for each group of rows, issued without waiting for the device; losses `[steps, K]`."""
        losses: list[Tensor] = []
        with self._on_stream():
            for step, batch in enumerate(self.table.batches(groups, self.replays.fit), 1):
                losses.append(self.train_step(batch))
                if watch is not None:
                    watch(step)
            return torch.stack(losses)

    def probe(self) -> None:
        """A step on the largest batch of the first epoch that updates nothing, for the memory that it takes."""
        largest = max(self.groups(1), key=lambda group: self.table.layout(group).form.slots)
        (batch,) = self.table.batches([largest])
        with self.pack, self._on_stream():
            self._gradients(batch, self._room(batch.shape))

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Recording needs a stream of its own; everything that trains is issued on it."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def train_step(self, batch: Batch) -> Tensor:
        """Forward, backward, update; the losses `[K]` before the update."""
        self.generator.manual_seed(randomness.seed_of(self.seed, "dropout", self.steps))
        self.steps += 1
        return self.replays.step(batch, lambda masks: masks.draw(self.generator, batch.windows, len(batch.rows)))

    def _advance(self, batch: Batch, masks: Masks) -> Tensor:
        """The part of a step that happens on the device."""
        losses, gradients = self._gradients(batch, masks)
        self.optimiser.step(gradients, losses)
        return losses

    def _gradients(self, batch: Batch, masks: Masks) -> tuple[Tensor, Sequence[Tensor]]:
        self.pack.compose()
        losses = batch_losses(self.pack.logits(batch, masks), batch.labels, batch.weights)
        gradients = torch.autograd.grad(losses.sum(), [block.matrix for block in self.blocks])
        return losses.detach(), gradients

    def _room(self, form: Form) -> Masks:
        """Room for the masks of a batch of this shape; one for each width, made larger when it must be."""
        held, masks = self._rooms.get(form.width, (Form(form.width, 0, 0), None))
        if masks is None or held.windows < form.windows or held.rows < form.rows:
            held = Form(form.width, max(held.windows, -(-form.windows // 8) * 8), max(held.rows, form.rows))
            masks = self.pack.backbone.masks(held)
            self._rooms[form.width] = held, masks
        return masks

    def _note_losses(self, epoch: int, losses: Tensor) -> None:
        alive = self.optimiser.alive.tolist()
        for progress, own, lives in zip(self.progress, losses.T.tolist(), alive, strict=True):
            progress.losses += own
            progress.epoch_losses.append(float(np.mean(own)))
            if not lives and progress.diverged is None:
                progress.diverged = f"loss or gradient not finite in epoch {epoch}"

    def _evaluate_epoch(self, epoch: int, watch: Watch | None) -> None:
        predictions = self.predict(self.evaluation.table)
        held = None if self.held_out is None else self.predict(self.held_out)
        for k, progress in enumerate(self.progress):
            progress.metrics.append(self._score(predictions[k], self.evaluation.table, self.evaluation.parts))
            if held is not None and self.held_out is not None:
                progress.held_out.append(self._score(held[k], self.held_out))
            if progress.diverged is None and not np.isfinite(predictions[k]).all():
                progress.diverged = f"outputs not finite after epoch {epoch}"
            if progress.diverged is None and progress.improved(self.task.main_metric):
                progress.selected = epoch
                progress.state = self.pack.state(k)
                progress.predictions = predictions[k]
        if watch is not None:
            watch.epoch(epoch, [progress.metrics[-1][self.task.main_metric] for progress in self.progress])

    def _score(
        self, predictions: NDArray[np.float64], table: Table, parts: dict[str, slice] | None = None
    ) -> dict[str, float]:
        return score(self.task, predictions, table.labels.cpu().numpy(), parts)

    @torch.no_grad()
    def predict(self, table: Table) -> NDArray[np.float64]:
        """`[K, rows]`, in the table's order: class numbers, or values for regression; NaN where a logit is none."""
        self.pack.compose()
        budget = max(1, EVAL_TOKENS.get(table.device.type, 2**13) // len(self.pack.cells))
        found = np.empty((len(self.pack.cells), len(table)))
        parts = [
            (batch.rows, _decide(self.pack.logits(batch), self.task.is_regression))
            for batch in table.batches(table.by_length(budget))
        ]
        for rows, decided in parts:
            found[:, rows] = decided.cpu().numpy()
        return found


def _decide(logits: Tensor, regression: bool) -> Tensor:
    if regression:
        return logits[..., 0].double()
    classes = logits.argmax(-1).double()
    return classes.masked_fill(~torch.isfinite(logits).all(-1), float("nan"))
