"""Methods that peft does not have, against the formulas of their authors' code, trained by autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_bench import tasks
from lora_bench.contracts.kit import cell_of
from tests.contract.test_oracle_peft import SETTINGS, assert_same, classifier, our_run

SIZES = {"rank": 4, "a": 2, "alpha": 8.0}
Factors = dict[str, Tensor]


class Changed(nn.Module):
    """A weight plus a low-rank change, whose factors train."""

    def __init__(self, parts: Factors, change: Callable[[Factors], Tensor]) -> None:
        super().__init__()
        self.parts = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in parts.items()})
        self.change = change

    def forward(self, weight: Tensor) -> Tensor:
        """W + ΔW."""
        return weight + self.change(dict(self.parts.items()))


def mixed(parts: Factors) -> Tensor:
    """MoSLoRA: the mixer stands between the two projections, `lora_B(lora_AB(lora_A(x)))`."""
    return SIZES["alpha"] / SIZES["rank"] * parts["B"] @ parts["M"] @ parts["A"]


def ensemble(parts: Factors) -> Tensor:
    """MELoRA: LoRA i reads slice i of the inputs, and their outputs are concatenated."""
    count = int(SIZES["a"])
    pairs = zip(parts["A"].chunk(count, dim=1), parts["B"].chunk(count, dim=0), strict=True)
    change: Tensor = torch.block_diag(*(b @ a for a, b in pairs))  # torch leaves it untyped
    return SIZES["alpha"] / SIZES["rank"] * change


@pytest.mark.parametrize("name", ["cola", "stsb"])
@pytest.mark.parametrize(
    ("method", "trained", "change"), [("moslora", "ABM", mixed), ("melora", "AB", ensemble)], ids=["moslora", "melora"]
)
def test_a_change_of_the_weight_is_the_authors(
    method: str, trained: str, change: Callable[[Factors], Tensor], name: str, calm_folder: Path
) -> None:
    task = tasks.get(name)
    cell = cell_of(method, name, precision="float64", **SETTINGS | SIZES | {"targets": "attention+dense"})
    pack, start, ours = our_run(cell, calm_folder, task)
    model = frozen_classifier(calm_folder, name, start.head)
    for module in pack.bank.groups[0].modules:
        parts = {factor: start.adapter[f"{module}.{factor}"] for factor in trained}
        layer = model.get_submodule(f"roberta.{module}")
        parametrize.register_parametrization(layer, "weight", Changed(parts, change))
    assert trained_values(model) == pack.adapter_params(0) + pack.head_params()
    assert_same(pack, ours, model, task)


@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_red_scales_and_shifts_the_feed_forward_outputs(name: str, calm_folder: Path) -> None:
    task = tasks.get(name)
    cell = cell_of("red", name, precision="float64", **SETTINGS | {"targets": "ffn-output"})
    pack, start, ours = our_run(cell, calm_folder, task)
    model = frozen_classifier(calm_folder, name, start.head)
    for layer in model.get_submodule("roberta.encoder.layer").children():
        dense = layer.get_submodule("output.dense")
        assert isinstance(dense, nn.Linear)
        # The test's optimiser exempts names that end with "bias" from decay, as RED's are here.
        dense.register_parameter("scale_bias", nn.Parameter(torch.ones_like(dense.bias)))
        dense.register_parameter("shift_bias", nn.Parameter(torch.zeros_like(dense.bias)))
        dense.register_forward_hook(lambda module, _, output: output * module.scale_bias + module.shift_bias)
    assert trained_values(model) == pack.adapter_params(0) + pack.head_params()
    assert sorted(pack.bank.groups[0].modules) == [f"encoder.layer.{number}.output.dense" for number in range(2)]
    assert_same(pack, ours, model, task)


def frozen_classifier(folder: Path, task: str, head: Factors) -> nn.Module:
    """transformers' classifier over the frozen encoder, with our head's start."""
    model = classifier(folder, tasks.get(task), head, "float64")
    for name, value in model.named_parameters():
        value.requires_grad_("classifier" in name)
    return model


def trained_values(model: nn.Module) -> int:
    """How many values of a model train."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)
