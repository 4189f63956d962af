"""Methods with factors that weights train together, against one parameter that all of them use, by autograd."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import UniLoraConfig, VBLoRAConfig
from peft.tuners.unilora.layer import UniLoraLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_bench import tasks
from lora_bench.contracts.kit import Workbench, cell_of
from lora_bench.engine import randomness
from lora_bench.engine.adapters import saved
from lora_bench.methods.vb_lora import VbLora
from tests.contract.test_oracle_authors import frozen_classifier, trained_values
from tests.contract.test_oracle_peft import LINEARS, SETTINGS, Extra, Peer, assert_same, our_run, wrapped_by_peft


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


@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_vb_lora_mixes_vectors_of_one_bank_as_peft(name: str, calm_folder: Path) -> None:
    """With the two rates of its authors, and no decay."""
    task = tasks.get(name)
    sizes = {"rank": 3, "a": 9, "b": 16, "targets": "attention+dense", "lr": 4e-3, "weight_decay": 0.0}
    cell = cell_of("vb-lora", name, precision="float64", **SETTINGS | sizes)
    pack, start, ours = our_run(cell, calm_folder, task)
    peer = Peer(VBLoRAConfig, {"r": 3, "num_vectors": 9, "vector_length": 16, "topk": 2}, modules=LINEARS)
    model = wrapped_by_peft(frozen_classifier(calm_folder, name, start.head), peer).double()
    theirs = dict(model.named_parameters())
    modules, bank = pack.bank.groups[0].modules, model.get_parameter("base_model.vblora_vector_bank.default")

    def their_form(ours: Tensor, like: Tensor) -> Tensor:
        return ours.reshape(like.shape)  # the logits of A are in the order (r, piece, h), those of B in (piece, r, h)

    with torch.no_grad():
        bank.copy_(start.adapter[f"{modules[0]}.bank"])
        for module, letter in itertools.product(modules, "AB"):
            value = theirs[f"base_model.model.roberta.{module}.vblora_logits_{letter}.default"]
            value.copy_(their_form(start.adapter[f"{module}.{letter}_logits"], value))
    assert trained_values(model) == pack.adapter_params(0) + pack.head_params()
    assert_same(pack, ours, model, task, Extra({p: cell.lr * 10 for n, p in theirs.items() if "logits" in n}))
    state = pack.state(0).adapter
    torch.testing.assert_close(state["shared.9x16.bank"], bank.detach(), rtol=0, atol=1e-9)
    for module, letter in itertools.product(modules, "AB"):
        logits = theirs[f"base_model.model.roberta.{module}.vblora_logits_{letter}.default"].detach()
        torch.testing.assert_close(their_form(state[f"{module}.{letter}_logits"], logits), logits, rtol=0, atol=1e-9)


def test_vb_lora_stores_the_bank_and_two_numbers_and_logits_of_each_piece(bench: Workbench) -> None:
    run = bench.trained("vb-lora", "cola", "float32")
    _, count, length = VbLora().sizes(run.cell)
    assert run.cell.rank is not None
    stored = saved.compacted(run.cell, run.pack.state(0).adapter)
    pieces = sum(
        run.cell.rank * (family.shape.inputs + family.shape.outputs) // length * len(modules)
        for family, modules in run.pack.bank.groups[0].families.items()
    )
    assert sum(value.numel() * value.element_size() for value in stored.values()) == 4 * count * length + 10 * pieces
    trained = sum(value.numel() for value in run.pack.state(0).adapter.values())
    assert trained == count * length + count * pieces == run.pack.adapter_params(0)


@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_uni_lora_uses_each_value_equally_often_as_peft(name: str, calm_folder: Path) -> None:
    """With our assignment in peft's buffers: entry n of all, weight by weight, is value (permuted n) modulo d."""
    task = tasks.get(name)
    sizes = {"rank": 3, "a": 500, "targets": "attention+dense", "lr": 5e-2}
    cell = cell_of("uni-lora", name, precision="float64", **SETTINGS | sizes)
    pack, start, ours = our_run(cell, calm_folder, task)
    peer = Peer(UniLoraConfig, {"r": 3, "theta_d_length": 500}, modules=LINEARS)
    model = wrapped_by_peft(frozen_classifier(calm_folder, name, start.head), peer).double()
    layers = {
        module_name.removeprefix("base_model.model.roberta."): module
        for module_name, module in model.named_modules()
        if isinstance(module, UniLoraLayer)
    }
    count = sum(3 * (layer.in_features + layer.out_features) for layer in layers.values())
    numbers = torch.from_numpy(randomness.permutation(count, cell.seed, "assigned", "theta")) % 500
    uses = torch.bincount(numbers)
    assert {count // 500, count // 500 + 1} == set(uses.tolist())
    begin = 0
    for layer in layers.values():
        scales = []
        for indices, shape in (
            (layer.unilora_indices_A, (3, layer.in_features)),
            (layer.unilora_indices_B, (layer.out_features, 3)),
        ):
            end = begin + shape[0] * shape[1]
            indices["default"] = numbers[begin:end].view(shape)
            scales.append(uses[indices["default"]].double().rsqrt())
            begin = end
        layer.update_scaling("default", *scales)
    theta = model.get_parameter("base_model.unilora_theta_d.default")
    with torch.no_grad():
        theta.copy_(start.adapter[f"{pack.bank.groups[0].modules[0]}.theta"][0])
    assert trained_values(model) == pack.adapter_params(0) + pack.head_params()
    assert_same(pack, ours, model, task)
    state = pack.state(0).adapter
    assert list(state) == ["shared.1x500.theta"]
    torch.testing.assert_close(state["shared.1x500.theta"][0], theta.detach(), rtol=0, atol=1e-9)
