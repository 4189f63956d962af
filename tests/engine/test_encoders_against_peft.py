"""On every encoder, whichever way it runs, LoRA is what peft trains on transformers' own padded forward."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from lora_bench.data.tokens import TokenTable
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.targets import resolve
from lora_bench.testing import FAMILIES, PADDING, make_cell, make_encoder, make_tokens
from tests.engine.engine_factory import CPU, trainer

DROPOUTS: dict[str, Any] = dict.fromkeys((
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "embedding_dropout",
    "mlp_dropout", "classifier_dropout", "seq_classif_dropout", "pooler_dropout",
), 0.0)  # fmt: skip
STEPS, WARM = 24, 3
CELL = make_cell("lora", epochs=4, batch_size=8, warmup=WARM / STEPS, targets="attention", weight_decay=0.05, lr=5e-3)


class Classifier(nn.Module):
    """An encoder and the head of the benchmark on its first token."""

    def __init__(self, encoder: nn.Module, head: dict[str, Tensor]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.ParameterDict({name.replace(".", "_"): value.clone() for name, value in head.items()})

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        first = self.encoder(**inputs).last_hidden_state[:, 0]
        hidden = nn.functional.linear(first, self.head["dense_weight"], self.head["dense_bias"]).tanh()
        return nn.functional.linear(hidden, self.head["out_proj_weight"], self.head["out_proj_bias"])


def padded(table: TokenTable, chosen: list[int], typed: bool) -> dict[str, Tensor]:
    """The rows as transformers takes them."""
    spans = [slice(table.offsets[row], table.offsets[row + 1]) for row in chosen]

    def pad(values: np.ndarray, fill: int) -> Tensor:
        parts = [torch.from_numpy(values[span].astype(np.int64)) for span in spans]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)

    assert table.types is not None
    inputs = {"input_ids": pad(table.ids, PADDING), "attention_mask": pad(np.ones_like(table.ids), 0)}
    return inputs | ({"token_type_ids": pad(table.types, 0)} if typed else {})


def their_model(kind: str, pack: Pack, start: State) -> Classifier:
    """The same encoder in peft's form with our start; A and B of every weight that the cell adapts."""
    names = list(resolve(pack.backbone.linears(), "attention"))
    model = make_encoder(kind, **DROPOUTS).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names)).double()
    with torch.no_grad():
        for name in names:
            layer = wrapped.get_submodule(f"base_model.model.{name}")
            for part in ("A", "B"):
                factor = layer.get_submodule(f"lora_{part}.default").get_parameter("weight")
                factor.copy_(start.adapter[f"{name}.{part}"])
    return Classifier(wrapped, start.head)


def their_losses(model: Classifier, batches: list[list[int]], typed: bool, by_row: bool) -> list[float]:
    """The loss of every step of a plain loop; `by_row` without padding, each sequence by itself."""
    head, factors = list(model.head.values()), [each for each in model.encoder.parameters() if each.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": factors, "lr": CELL.lr},
        {"params": [each for each in head if each.ndim > 1], "lr": CELL.head_lr},
        {"params": [each for each in head if each.ndim == 1], "lr": CELL.head_lr, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=CELL.weight_decay)
    schedule = get_linear_schedule_with_warmup(optimiser, WARM, STEPS)
    table, losses = make_tokens(48, 1), []
    for chosen in batches:
        parts = [[row] for row in chosen] if by_row else [chosen]
        logits = torch.cat([model(padded(table, part, typed)) for part in parts])
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(table.labels)[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*factors, *head], CELL.clip)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", FAMILIES)
def test_lora_is_pefts_on_every_encoder(kind: str) -> None:
    backbone = Backbone(make_encoder(kind, **DROPOUTS), CPU, "float64")
    ours = trainer([CELL], backbone)
    typed, start = backbone.takes_types, ours.pack.state(0)
    batches = [group.tolist() for epoch in range(1, 5) for group in ours.batch_rows(epoch)]
    model = their_model(kind, ours.pack, start)
    (progress,) = ours.run()
    # ModernBERT's sliding window leaves padding nothing to attend to: transformers' own gradient of that is NaN.
    theirs = their_losses(model, batches, typed, by_row=kind == "modernbert")
    assert len(theirs) == STEPS
    assert theirs[-1] < 0.9 * theirs[0]
    rotated = kind == "modernbert"  # its rotary positions are computed in float32
    np.testing.assert_allclose(progress.losses, theirs, rtol=0, atol=1e-4 if rotated else 1e-9)
    end = ours.pack.state(0)
    for name, value in model.encoder.named_parameters():
        if value.requires_grad:
            ours_name = name.removeprefix("base_model.model.").replace(".lora_", ".").replace(".default.weight", "")
            moved = end.adapter[ours_name] - start.adapter[ours_name]
            assert float(moved.abs().max()) > 1e-4
            torch.testing.assert_close(end.adapter[ours_name], value.detach(), rtol=0, atol=1e-4 if rotated else 1e-7)
