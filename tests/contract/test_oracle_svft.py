"""SVFT against its definition: transformers' classifier with weights U (S + M) Vᵀ, M within its band, by autograd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_bench import tasks
from lora_bench.contracts.kit import cell_of
from lora_bench.methods import RECIPES
from lora_bench.methods.recipe import Shape
from tests.contract.test_oracle_peft import SETTINGS, assert_same, classifier, our_run

COLA = tasks.get("cola")


class Singular(nn.Module):
    """A weight as U (S + M) Vᵀ, where M trains within `band` diagonals of the main one."""

    def __init__(self, weight: Tensor, band: int) -> None:
        super().__init__()
        left, values, right = np.linalg.svd(weight.detach().numpy(), full_matrices=False)
        size = len(values)
        inside = np.abs(np.subtract.outer(np.arange(size), np.arange(size))) <= band
        self.places = tuple(torch.from_numpy(axis) for axis in np.nonzero(inside))
        self.left, self.right = torch.from_numpy(left), torch.from_numpy(right)
        self.values = torch.from_numpy(np.diag(values))
        self.entries = nn.Parameter(torch.zeros(int(inside.sum()), dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight; what was there is not used."""
        core = torch.zeros_like(self.values).index_put(self.places, self.entries)
        return self.left @ (self.values + core) @ self.right


@pytest.mark.parametrize(("method", "band"), [("svft", 0), ("svft-banded", 5), ("svft-banded", 31)])
def test_svft_is_its_definition(method: str, band: int, calm_folder: Path) -> None:
    cell = cell_of(method, b=band or None, precision="float64", **SETTINGS | {"targets": "attention+dense"})
    pack, start, ours = our_run(cell, calm_folder, COLA)
    model = classifier(calm_folder, COLA, start.head, "float64")
    for name, value in model.named_parameters():
        value.requires_grad_("classifier" in name)
    modules = pack.bank.groups[0].modules
    for name in modules:
        layer = model.get_submodule(f"roberta.{name}")
        assert isinstance(layer, nn.Linear)
        parametrize.register_parametrization(layer, "weight", Singular(layer.weight, band))
    trained = [value.numel() for name, value in model.named_parameters() if name.endswith("entries")]
    assert sum(trained) == pack.adapter_params(0)
    assert_same(pack, ours, model, COLA)


def test_the_count_is_the_codes() -> None:
    """n (2 d + 1) − d (d + 1) entries, as in the authors' file; 768 for a square matrix of RoBERTa-base when plain."""
    counts = [RECIPES["svft-banded"].trainable(cell_of("svft-banded", b=d), Shape(3072, 768)) for d in (1, 16)]
    assert counts == [768 * 3 - 2, 768 * 33 - 16 * 17]
    assert RECIPES["svft"].trainable(cell_of("svft"), Shape(768, 768)) == 768
