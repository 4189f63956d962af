"""Methods with factors that weights train together, against one parameter that all of them use, by autograd."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_bench import tasks
from lora_bench.contracts.kit import cell_of
from tests.contract.test_oracle_authors import frozen_classifier, trained_values
from tests.contract.test_oracle_peft import SETTINGS, assert_same, our_run


class Tied(nn.Module):
    """A weight plus `s diag(v) B diag(u) A`, with A and B that other weights have too."""

    def __init__(self, parts: Mapping[str, nn.Parameter], scale: float) -> None:
        super().__init__()
        self.parts = nn.ParameterDict(dict(parts))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """W + ΔW."""
        change: Tensor = (self.parts["v"] * self.parts["B"]) @ (self.parts["u"] * self.parts["A"])
        return weight + self.scale * change


@pytest.mark.parametrize("targets", ["qv", "attention+dense"])
@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_tied_lora_trains_one_a_and_one_b_for_all_weights(name: str, targets: str, calm_folder: Path) -> None:
    task = tasks.get(name)
    cell = cell_of("tied-lora", name, precision="float64", **SETTINGS | {"targets": targets})
    pack, start, ours = our_run(cell, calm_folder, task)
    model = frozen_classifier(calm_folder, name, start.head)
    shared: dict[tuple[str, tuple[int, ...]], nn.Parameter] = {}
    for module in pack.bank.groups[0].modules:
        values = {factor: start.adapter[f"{module}.{factor}"] for factor in ("A", "B", "u", "v")}
        parts = {
            factor: shared.setdefault((factor, tuple(value.shape)), nn.Parameter(value.clone()))
            if factor in "AB"
            else nn.Parameter(value.clone())
            for factor, value in values.items()
        }
        layer = model.get_submodule(f"roberta.{module}")
        parametrize.register_parametrization(layer, "weight", Tied(parts, 8 / 4))
    assert len(shared) == (2 if targets == "qv" else 4)
    assert trained_values(model) == pack.adapter_params(0) + pack.head_params()
    assert_same(pack, ours, model, task)
