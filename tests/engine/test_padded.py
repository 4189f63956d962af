"""Encoders on padded rows: packs of several cells train right; what cannot be trained right is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.errors import BenchError
from lora_bench.testing import PADDING, make_cell, make_config, make_encoder
from tests.engine.engine_factory import CPU, difference, loaded, trained, values


@pytest.mark.parametrize("kind", ["xlm", "megatron-bert"])
def test_cells_on_padded_rows_train_as_each_alone(kind: str) -> None:
    """XLM's layers write to a cache that they are called with, so they cannot be called twice."""
    backbone = Backbone(make_encoder(kind), CPU, "float64")
    assert backbone.padded is not None
    cells = [make_cell("lora", rank=rank, lr=lr, epochs=1) for rank, lr in ((4, 1e-2), (2, 2e-2), (3, 5e-3))]
    together, alone = trained(cells, backbone), trained(cells[1:2], backbone)
    assert difference(values(together[cells[1]]), values(alone[cells[1]])) < 1e-8


def test_layers_may_be_shared() -> None:
    """A layer that stands in the list twice has one set of weights, and one adapter of each."""
    model: Any = make_encoder("megatron-bert")
    model.encoder.layer[1] = model.encoder.layer[0]
    backbone = Backbone(model, CPU, "float64")
    cells = [make_cell("lora", rank=rank, lr=lr, epochs=1) for rank, lr in ((4, 1e-2), (2, 2e-2))]
    together, alone = trained(cells, backbone), trained(cells[1:], backbone)
    assert difference(values(together[cells[1]]), values(alone[cells[1]])) < 1e-8


@pytest.mark.parametrize("error", [KeyError("no such entry"), AssertionError("not so")])
def test_a_model_whose_code_fails_is_refused_in_one_line(error: Exception) -> None:
    def fail(*_: Any) -> None:
        raise error

    model: Any = make_encoder("megatron-bert")
    model.encoder.register_forward_pre_hook(fail)
    with pytest.raises(BenchError, match=str(error.args[0])):
        Backbone(model, CPU, "float32")


def test_a_model_that_does_not_run_under_autocast_is_refused_where_it_would() -> None:
    """DeBERTa's code fills scores in bfloat16 with the lowest number of float32 there."""
    Backbone(make_encoder("deberta", talking_head=True), CPU, "bf16")
    Backbone(make_encoder("deberta", talking_head=True), CPU, "float32", trains=True)
    with pytest.raises(BenchError, match="fully trained in bf16"):
        Backbone(make_encoder("deberta", talking_head=True), CPU, "bf16", trains=True)


class Stateful(torch.nn.Module):
    """A layer that computes something else in every other call with gradients on."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.calls = 0

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.layer(hidden * (1 + self.calls % 2) if torch.is_grad_enabled() else hidden, *args, **kwargs)


def test_layers_that_cannot_be_computed_again_are_refused() -> None:
    model: Any = make_encoder("megatron-bert")
    model.encoder.layer[1] = Stateful(model.encoder.layer[1])
    with pytest.raises(BenchError, match="computed again"):
        Backbone(model, CPU, "float32")


def test_gradients_that_are_not_finite_are_refused() -> None:
    """Longformer's are not in float64: two lowest numbers of its masks add up to infinity."""
    sizes = {name: getattr(make_config("roberta"), name) for name in ("vocab_size", "max_position_embeddings")}
    config = AutoConfig.for_model(
        "longformer", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        attention_window=64, pad_token_id=PADDING, **sizes,
    )  # fmt: skip
    Backbone(AutoModel.from_config(config), CPU, "float32")
    with pytest.raises(BenchError, match="gradients are not finite in float64"):
        Backbone(AutoModel.from_config(config), CPU, "float64")


def test_a_pooler_that_is_always_called_is_no_hindrance(tmp_path: Path) -> None:
    """LayoutLM's is; a head reads the first token's state, so no pooler is computed."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = AutoConfig.for_model("layoutlm", **{name: getattr(make_config("roberta"), name) for name in names})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    backbone = loaded(tmp_path)
    assert not [name for name, _ in backbone.model.named_parameters() if "pooler" in name]
