"""The one trainer: epochs of a pack, evaluated each, with everything that could tie cells together kept per cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_bench.data.windows import EVAL_SLOTS
from lora_bench.engine import randomness
from lora_bench.engine.adapters import first_step
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.windows import Batch, Form, Ints, Table, slices
from lora_bench.engine.graphs import SMALL, Replays, choose
from lora_bench.engine.losses import batch_losses
from lora_bench.engine.masks import Masks
from lora_bench.engine.optimiser import PackedAdamW
from lora_bench.engine.progress import Progress
from lora_bench.metrics import score
from lora_bench.tasks import Task


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


class Keeper(Protocol):
    """Who keeps what has been trained, so that it can go on from there."""

    def pausing(self) -> bool:
        """Whether to pause after this step, to be kept."""

    def keep(self, trainer: Trainer) -> None:
        """The trainer is between two steps: keep it if it is time to. May raise to stop it."""


class PausedError(Exception):
    """An evaluation was left to be done again."""


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
        self.replays = Replays()
        self.steps = self.epoch = 0  # taken; evaluated
        self.progress = [Progress(cell) for cell in pack.cells]
        self._rooms: dict[int, tuple[Form, Masks]] = {}
        self._keeper: Keeper | None = None
        on_gpu = self.device.type == "cuda"
        self._stream = _stream(torch.empty(0, device=self.device).get_device()) if on_gpu else None
        if any(first_step.starts_from_it(group) for group in pack.bank.groups):
            (batch,) = table.batches([self.groups(1)[0]])
            with self._on_stream():
                first_step.begin(pack, batch, self.steps_an_epoch * self.epochs)

    def run(self, watch: Watch | None = None, keeper: Keeper | None = None) -> list[Progress]:
        """All epochs that are left, each evaluated; what became of every cell, in the pack's order.

        Ends early when more than half of the cells have diverged (`finished` is False while others have not).
        """
        self._keeper = keeper
        with self.pack:
            self.prepare()
            while not self.finished and not self.thin:
                self._run_epoch(self.epoch + 1, watch)
        return self.progress

    @property
    def finished(self) -> bool:
        """Whether no cell has an epoch left."""
        return self.epoch == self.epochs or all(progress.diverged for progress in self.progress)

    @property
    def thin(self) -> bool:
        """Whether more than half of the cells have diverged."""
        return 2 * sum(progress.diverged is not None for progress in self.progress) > len(self.progress)

    def _run_epoch(self, epoch: int, watch: Watch | None) -> None:
        """What is left of an epoch, and its evaluation."""

        def pausing(step: int) -> bool:
            if watch is not None:
                watch.step(epoch, begun + step)
            return self._pausing()

        while (begun := self.steps - (epoch - 1) * self.steps_an_epoch) < self.steps_an_epoch:
            self._note_losses(epoch, self.train(self.groups(epoch)[begun:], pausing))
            self._keep()
        while self.epoch < epoch:
            with suppress(PausedError):
                self._evaluate_epoch(epoch, watch)
            self._keep()

    def _pausing(self) -> bool:
        return self._keeper is not None and self._keeper.pausing()

    def _keep(self) -> None:
        if self._keeper is not None:
            self._keeper.keep(self)

    def groups(self, epoch: int) -> list[Ints]:
        """The rows of each batch of an epoch."""
        return slices(randomness.permutation(len(self.table), self.seed, "order", epoch), self.batch_size)

    def prepare(self, steps: int | None = None) -> None:
        """Choose which shapes of batches to record as CUDA graphs, for that many steps (default: all).

        Only the family that is written out is recorded: another encoder's code may do what a graph cannot hold.
        """
        groups = self.groups(1)
        forms = Counter(self.table.layout(group).form for group in groups)
        mean = sum(form.slots * count for form, count in forms.items()) / len(groups)
        work = mean * len(self.pack.cells) * sum(m.weight.numel() for m in self.pack.backbone.linears().values())
        if self._stream is not None and self.pack.backbone.fused is not None and work <= SMALL:
            share = (steps or self.steps_an_epoch * self.epochs) / len(groups)
            self.replays.forms = choose({form: round(count * share) for form, count in forms.items()})

    def train(self, groups: Sequence[Ints], pausing: Callable[[int], bool] | None = None) -> Tensor:
        """A step for each group of rows, issued without waiting for the device; losses `[steps, K]`.

        `pausing` is asked after each step, counted from 1, whether to leave the rest.
        """
        losses: list[Tensor] = []
        with self._on_stream():
            for step, batch in enumerate(self.table.batches(groups, self.replays.fit), 1):
                losses.append(self.train_step(batch))
                if pausing is not None and pausing(step):
                    break
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

        def draw(masks: Masks) -> None:
            masks.draw(self.generator, batch.windows, len(batch.rows))

        return self.replays.step(batch, self._advance, self._room, draw)

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
        lived = self.optimiser.lived.tolist()
        for progress, own, steps in zip(self.progress, losses.T.tolist(), lived, strict=True):
            if progress.diverged is None:
                progress.losses += own
            if progress.diverged is None and self.steps == epoch * self.steps_an_epoch:
                progress.epoch_losses.append(float(np.mean(progress.losses[-self.steps_an_epoch :])))
                if steps < self.steps:
                    progress.diverged = f"loss or gradient not finite in epoch {epoch}, step {steps + 1}"

    def _evaluate_epoch(self, epoch: int, watch: Watch | None) -> None:
        predictions = self.predict(self.evaluation.table)
        held = None if self.held_out is None else self.predict(self.held_out)
        better: list[int] = []
        for k, progress in enumerate(self.progress):
            if not progress.follows(epoch):
                continue
            progress.metrics.append(self._score(predictions[k], self.evaluation.table, self.evaluation.parts))
            if held is not None and self.held_out is not None:
                progress.held_out.append(self._score(held[k], self.held_out))
            if progress.diverged is None and not np.isfinite(predictions[k]).all():
                progress.diverged = f"outputs not finite after epoch {epoch}"
            if progress.diverged is None and progress.improved(self.task.main_metric):
                better.append(k)
        for k, state in zip(better, self.pack.states(better), strict=True):
            progress = self.progress[k]
            progress.selected, progress.state, progress.predictions = epoch, state, predictions[k].copy()
        self.epoch = epoch
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
        budget = max(1, EVAL_SLOTS[table.device.type] // len(self.pack.cells))
        found = np.empty((len(self.pack.cells), len(table)))
        parts = []
        for batch in table.evaluated(budget):
            parts.append((batch.rows, _decide(self.pack.logits(batch), self.task.is_regression)))
            if self._pausing():
                raise PausedError
        for rows, decided in parts:
            found[:, rows] = decided.cpu().numpy()
        return found


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """The one that all trainers of a process use: cuBLAS keeps 64 MiB for every stream that it has seen, for good."""
    return torch.cuda.Stream(device)


def _decide(logits: Tensor, regression: bool) -> Tensor:
    if regression:
        return logits[..., 0].double()
    classes = logits.argmax(-1).double()
    return classes.masked_fill(~torch.isfinite(logits).all(-1), float("nan"))
