"""Every task, with all methods that share a backbone in one pack: outputs, losses, metrics and common batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from lora_bench.contracts.kit import KINDS, ROWS, Run, cell_of, logits_of, table_of, train
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.losses import batch_losses
from lora_bench.tasks import TASKS
from tests.contract.contract_kit import PACKED, Load, starts_from_the_base_loss

over_tasks = pytest.mark.parametrize("name", TASKS)


@pytest.fixture(scope="module")
def mixed_run(load: Load) -> Callable[[str], Run]:
    """One epoch of a task with a cell of every method in one pack."""

    @cache
    def run(name: str) -> Run:
        return train([cell_of(method, name, epochs=1) for method in PACKED], load("float32"), TASKS[name])

    return run


@over_tasks
def test_every_method_trains_on_the_task(name: str, mixed_run: Callable[[str], Run]) -> None:
    run, task = mixed_run(name), TASKS[name]
    for place, progress in enumerate(run.progress):
        assert progress.diverged is None
        assert progress.selected == 1
        assert all(map(math.isfinite, progress.losses))
        assert [tuple(metrics) for metrics in progress.metrics] == [task.metrics]
        assert run.pack.state(place).head["out_proj.weight"].shape == (task.num_outputs, 32)
    alike = [progress for progress in run.progress if starts_from_the_base_loss(progress.cell.method)]
    first = [progress.losses[0] for progress in alike]
    assert max(first) - min(first) < 1e-4  # the same batch, the same dropout, the same head


@over_tasks
def test_predictions_are_of_the_task(name: str, mixed_run: Callable[[str], Run]) -> None:
    run, task = mixed_run(name), TASKS[name]
    logits = logits_of(run.pack, task).double().numpy()
    expected = logits[..., 0] if task.is_regression else logits.argmax(-1)
    for progress, rows in zip(run.progress, expected, strict=True):
        assert progress.predictions is not None
        assert progress.predictions.shape == (ROWS,)
        np.testing.assert_allclose(progress.predictions, rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_each_cell_of_a_mixed_pack_is_itself_alone(name: str, mixed_run: Callable[[str], Run], load: Load) -> None:
    run, task = mixed_run(name), TASKS[name]
    for place, (cell, among) in enumerate(zip(run.pack.cells, logits_of(run.pack, task), strict=True)):
        alone = Pack([cell], load("float32"), task.num_outputs)
        alone.load(0, run.pack.state(place))
        torch.testing.assert_close(among, logits_of(alone, task)[0], rtol=1e-5, atol=1e-5)


@over_tasks
def test_loss_is_the_mean_over_a_cells_own_rows(name: str, load: Load) -> None:
    task = TASKS[name]
    labels = table_of(load("float32"), task).labels
    logits = torch.randn(3, ROWS, task.num_outputs, generator=torch.Generator().manual_seed(0))
    weights = torch.full((ROWS,), 1 / ROWS)
    for cell, loss in zip(logits, batch_losses(logits, labels, weights), strict=True):
        alone = mse_loss(cell[:, 0], labels) if task.is_regression else cross_entropy(cell, labels)
        torch.testing.assert_close(loss, alone)
