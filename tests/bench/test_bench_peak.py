"""Operations per token compared with a count of those that run, and the matmul peak."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from lora_bench.bench import peak
from lora_bench.testing import make_config


def encoder() -> hf.RobertaModel:
    """Without a pooler, whose product is no part of a token's."""
    return hf.RobertaModel(
        hf.RobertaConfig(**make_config("roberta", hidden_dropout_prob=0.0).to_dict()), add_pooling_layer=False
    )


@pytest.mark.parametrize("trains_backbone", [False, True])
def test_operations_of_a_token_are_those_of_the_linear_layers(trains_backbone: bool) -> None:
    """Counted by torch in a forward and a backward pass; attention's own products are left out."""
    model = encoder().train()
    model.requires_grad_(trains_backbone)
    inputs = torch.randn(2, 11, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=inputs).last_hidden_state.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(value for kind, value in counts.items() if str(kind) in ("aten.addmm", "aten.mm"))
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert counted == 2 * 11 * peak.operations_per_token(peak.linear_weights(linears), trains_backbone)


def test_linear_weights_by_hand() -> None:
    """Four square weights and two of the feed-forward part in each layer; no bias, no embedding."""
    linears = [module for module in encoder().modules() if isinstance(module, torch.nn.Linear)]
    assert peak.linear_weights(linears) == 2 * (4 * 32 * 32 + 2 * 32 * 48)


def test_the_peak_is_the_median_of_its_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "SECONDS", 0.01)
    found: Any = peak.measure(torch.device("cpu"), "bf16")
    assert (found["dtype"], found["size"]) == ("float32", 1024)
    assert found["tflops"] == median(found["repeats"])
    assert len(found["repeats"]) == peak.REPEATS
    assert min(found["repeats"]) > 0
