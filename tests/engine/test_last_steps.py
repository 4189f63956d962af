"""The last steps of a cell that diverged are in its record, also if it was resumed on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_bench.engine.trainer import Trainer
from lora_bench.records.store import read_records
from lora_bench.testing import Blocks, TinyBench, by_cell
from tests.engine.test_resume import equal, stopped

BLOCKS: Blocks = ({"method": "head"}, {"method": "lora", "rank": [4, 2]})


def not_finite_at(step: int, rank: int, loss: float) -> Callable[..., Any]:
    """A `Trainer._gradients` by which the loss of the LoRA cell of a rank is not finite at a step (from 1)."""
    proper = Trainer._gradients

    def gradients(self: Trainer, *rest: Any) -> Any:
        losses, slopes = proper(self, *rest)
        if self.steps == step:
            losses = losses.masked_fill(torch.tensor([cell.rank == rank for cell in self.pack.cells]), loss)
        return losses, slopes

    return gradients


@pytest.mark.parametrize(("loss", "word"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")])
def test_a_cell_that_is_resumed_before_it_diverges_has_all_of_its_last_steps(
    bench: TinyBench, tmp_path: Path, loss: float, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the fourth of five epochs of twenty steps, stopped ten steps before; the rest trains on."""
    settings: dict[str, Any] = {"precision": "float32", "batch_size": 2, "epochs": 5}
    monkeypatch.setattr(Trainer, "_gradients", not_finite_at(72, 4, loss))
    uninterrupted = TinyBench(bench.model, bench.rows, tmp_path / "uninterrupted")
    expected = uninterrupted.run(BLOCKS, **settings)
    stopped(bench, BLOCKS, 4, 2, **settings)
    found = bench.run(BLOCKS, **settings)
    assert equal(found, expected)
    assert [record.status for record in found] == ["done", "diverged", "done"]
    assert [record.last_steps is None for record in found] == [True, False, True]
    bad = found[1]
    assert bad.reason == "loss or gradient not finite in epoch 4, step 72"
    steps = bad.last_steps
    assert steps is not None
    assert [step.step for step in steps] == list(range(23, 73))
    assert steps[-1].loss == word
    assert all(np.isfinite([float(step.loss), float(step.grad_norm), float(step.lr)]).all() for step in steps[:-1])
    assert len({step.grad_norm for step in steps}) == len({step.lr for step in steps}) == 50
    assert by_cell(list(read_records(bench.results).records))[bad.cell] == bad  # the words survive the file


def test_a_cell_that_is_resumed_after_it_diverged_keeps_the_steps_up_to_then(
    bench: TinyBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the same epoch after the step that was not finite, when nothing is marked yet."""
    settings: dict[str, Any] = {"precision": "float32", "batch_size": 2, "epochs": 3}
    monkeypatch.setattr(Trainer, "_gradients", not_finite_at(23, 4, float("nan")))
    expected = TinyBench(bench.model, bench.rows, tmp_path / "uninterrupted").run(BLOCKS, **settings)
    stopped(bench, BLOCKS, 2, 9, **settings)
    found = bench.run(BLOCKS, **settings)
    assert equal(found, expected)
    assert [step.step for step in found[1].last_steps or ()] == list(range(1, 24))
