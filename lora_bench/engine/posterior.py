"""The evaluation of a cell's posterior, at the epoch that is selected: metrics of averaged probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.engine import fisher
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Table, slices
from lora_bench.engine.evaluation import Scores, Split, evaluated_rows, score_cells
from lora_bench.engine.progress import Progress
from lora_bench.engine.trainer import Trainer
from lora_bench.errors import BenchError
from lora_bench.methods.rules import FisherPosterior, SampledPosterior
from lora_bench.tasks.metrics import task_metric

Predict = Callable[[Table], Tensor]


@dataclass(frozen=True)
class PosteriorScores:
    """What the averaged probabilities of a cell give.

    Attributes:
        scores: On the evaluation split.
        held_out: On the held-out rows, if there are such rows.
        prior_precision: The precision of the prior that was fitted, if one was.
        seconds: The time of the fit and the evaluation.
    """

    scores: Scores
    held_out: Scores | None
    prior_precision: float | None
    seconds: float


def evaluate(trainer: Trainer, progress: Progress) -> PosteriorScores | None:
    """Fit the posterior of a cell that has ended, and score it; None for a cell without one.

    Args:
        trainer: The trainer of its pack.
        progress: What is known of the cell.
    """
    if methods.of(progress.cell).posterior is None or trainer.task.is_regression:
        return None
    if progress.diverged is not None or progress.state is None:
        return None
    begun = time.monotonic()
    pack = Pack([progress.cell], trainer.pack.backbone, trainer.task.num_outputs, hooked=True)
    pack.load(0, progress.state)
    predict, precision = predictor(pack, trainer.table)
    scores = _score(trainer, predict(trainer.evaluation.table), trainer.evaluation)
    held_out = None
    if trainer.held_out is not None:
        held_out = _score(trainer, predict(trainer.held_out), Split(trainer.held_out))
    return PosteriorScores(scores, held_out, precision, time.monotonic() - begun)


def refusals(cells: Iterable[Cell], backbone: Backbone, table: Table) -> dict[str, BenchError]:
    """Return, by the id of the cell, why cells cannot train: their posterior would be wrong for the weights they adapt.

    Args:
        cells: Cells of one task.
        backbone: Their encoder.
        table: Any rows of the task.
    """
    by_targets: dict[str | None, BenchError | None] = {}
    refused: dict[str, BenchError] = {}
    for cell in cells:
        task = tasks.of(cell)
        if methods.of(cell).posterior != FisherPosterior("factors") or task.is_regression:
            continue
        if cell.targets not in by_targets:
            pack = Pack([cell], backbone, task.num_outputs, hooked=True)
            by_targets[cell.targets] = fisher.refusal(pack, table)
        error = by_targets[cell.targets]
        if error is not None:
            refused[cell.id] = error
    return refused


def predictor(pack: Pack, table: Table) -> tuple[Predict, float | None]:
    """A function that gives a cell's averaged probabilities for a table, `[rows, classes]`, and the prior's precision.

    Args:
        pack: The trained cell as a pack of one, `hooked`.
        table: The rows that it was trained on.
    """
    recipe = methods.of(pack.cells[0])
    match recipe.posterior:
        case FisherPosterior(over):
            posterior = fisher.fit(pack, over, table)
            return lambda rows: fisher.probabilities(pack, over, posterior, rows), posterior.precision
        case SampledPosterior(draws):
            return lambda rows: _mean_of_draws(pack, draws, rows), None
    raise ValueError(f"{recipe.name} has no posterior")


@torch.no_grad()
def _mean_of_draws(pack: Pack, draws: int, table: Table) -> Tensor:
    """The mean probabilities of one cell over draws of its noise, `[rows, classes]` in float64."""
    groups = slices(np.arange(len(table)), pack.cells[0].batch_size)
    means: list[Tensor] = []
    with pack:
        for draw in range(draws):
            pack.draw_noise("prediction", draw)
            pack.compose()
            logits = [pack.logits(batch)[0, : len(batch.rows)] for batch in table.batches(groups)]
            means.append(torch.cat(logits).double().softmax(-1) / draws)
        pack.draw_noise()
    return torch.stack(means).sum(0)


def _score(trainer: Trainer, probabilities: Tensor, split: Split) -> Scores:
    """The scores of one cell's probabilities `[rows, classes]` for a table, in its order."""
    logits = probabilities.log().clamp(min=-700.0)[None]  # exp(-700) is about the smallest normal number
    rows = evaluated_rows(logits, split.table.labels).cpu().numpy()
    (scores,) = score_cells(task_metric(trainer.task), rows, split.table.labels.cpu().numpy(), split.parts)
    return scores
