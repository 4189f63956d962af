"""LoRA-SB against transformers: its start is the first step of full fine-tuning, and it trains as B R A by autograd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_bench import tasks
from lora_bench.contracts.kit import cell_of, logits_of, tokens, trainer_of
from lora_bench.engine.adapters.pack import Pack
from lora_bench.errors import BenchError
from tests.contract.contract_kit import Load
from tests.contract.test_oracle_peft import (
    ROWS,
    SETTINGS,
    STEPS,
    WARM,
    assert_same,
    batches,
    classifier,
    inputs,
    our_run,
)

COLA = tasks.get("cola")
CELL = cell_of("lora-sb", precision="float64", **SETTINGS | {"targets": "attention+dense", "lr": 5e-2})


class Between(nn.Module):
    """A weight plus B R A, R trained."""

    def __init__(self, a: Tensor, r: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a, self.b, self.r = a, b, nn.Parameter(r)

    def forward(self, weight: Tensor) -> Tensor:
        """The sum."""
        return weight + self.b @ self.r @ self.a


def test_the_start_is_a_step_of_full_fine_tuning(calm_folder: Path) -> None:
    pack, start, _ = our_run(CELL, calm_folder, COLA)
    model = classifier(calm_folder, COLA, start.head, "float64")
    rows = next(batches(CELL, ROWS))
    model(**inputs(tokens(COLA, ROWS), rows, torch.float64)).loss.backward()
    for name in pack.bank.groups[0].modules:
        slope = model.get_parameter(f"roberta.{name}.weight").grad
        assert slope is not None
        left, values, right = np.linalg.svd(-CELL.lr / WARM * np.sign(slope.numpy()))
        a, r, b = (start.adapter[f"{name}.{part}"].numpy() for part in "ARB")
        np.testing.assert_allclose(b @ r @ a, (left[:, :4] * values[:4]) @ right[:4], atol=1e-9)
        np.testing.assert_allclose(r, np.diag(values[:4]), atol=1e-9)
        for basis in (a, b.T):
            np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-12)
    assert STEPS * CELL.warmup < WARM


@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_it_trains_as_a_matrix_between_two(name: str, calm_folder: Path) -> None:
    task = tasks.get(name)
    pack, start, ours = our_run(CELL.model_copy(update={"task": name}), calm_folder, task)
    model = classifier(calm_folder, task, start.head, "float64")
    for parameter, value in model.named_parameters():
        value.requires_grad_("classifier" in parameter)
    for module in pack.bank.groups[0].modules:
        a, r, b = (start.adapter[f"{module}.{part}"] for part in "ARB")
        parametrize.register_parametrization(model.get_submodule(f"roberta.{module}"), "weight", Between(a, r, b))
    assert_same(pack, ours, model, task)


def test_before_there_are_data_it_is_the_base_model(load: Load) -> None:
    pack, base = (Pack([cell_of(method, precision="float64")], load("float64"), 2) for method in ("lora-sb", "head"))
    torch.testing.assert_close(logits_of(pack, COLA), logits_of(base, COLA), rtol=0, atol=1e-12)
    trainer_of(pack, COLA)
    moved = (logits_of(pack, COLA) - logits_of(base, COLA)).abs().max()
    assert float(moved) > 1e-6


def test_more_directions_than_a_weight_has_are_refused(load: Load) -> None:
    trainer_of(Pack([cell_of("lora-sb", rank=32)], load("float32"), 2), COLA)
    with pytest.raises(BenchError, match=r"33 directions .*\(32\)"):
        trainer_of(Pack([cell_of("lora-sb", rank=33)], load("float32"), 2), COLA)
