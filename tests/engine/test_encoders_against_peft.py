"""On every encoder, whichever way it runs, LoRA is what peft trains on transformers' own padded forward."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, get_linear_schedule_with_warmup

from lora_bench.cell import Head
from lora_bench.data.tokens import TokenTable
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder import head_forms
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.targets import resolve
from lora_bench.testing import FAMILIES, NO_DROPOUT, PADDING, make_cell, make_config, make_encoder, make_tokens
from tests.engine.engine_factory import CPU, trainer

STEPS, WARM = 24, 3
CELL = make_cell("lora", epochs=4, batch_size=8, warmup=WARM / STEPS, targets="attention", weight_decay=0.05, lr=5e-3)


WITH_HEADS = [kind for kind in FAMILIES if head_forms.of(make_config(kind)) is not None]


class BenchmarkClassifier(nn.Module):
    """An encoder and the benchmark's head on its first token."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.base_model = encoder
        size, dtype = int(encoder.config.hidden_size), encoder.dtype
        self.classifier = nn.ModuleDict({
            "dense": nn.Linear(size, size, dtype=dtype), "out_proj": nn.Linear(size, 2, dtype=dtype),
        })  # fmt: skip

    def forward(self, **inputs: Tensor) -> Tensor:
        first = self.base_model(**inputs).last_hidden_state[:, 0]
        logits: Tensor = self.classifier["out_proj"](self.classifier["dense"](first).tanh())
        return logits


class Theirs(NamedTuple):
    """A classifier in peft's form, and what trains in it by our names."""

    model: nn.Module
    factors: dict[str, nn.Parameter]
    head: dict[str, nn.Parameter]


def padded(table: TokenTable, chosen: list[int], typed: bool) -> dict[str, Tensor]:
    """The rows as transformers takes them."""
    spans = [slice(table.offsets[row], table.offsets[row + 1]) for row in chosen]

    def pad(values: np.ndarray, fill: int) -> Tensor:
        parts = [torch.from_numpy(values[span].astype(np.int64)) for span in spans]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)

    assert table.types is not None
    inputs = {"input_ids": pad(table.ids, PADDING), "attention_mask": pad(np.ones_like(table.ids), 0)}
    return inputs | ({"token_type_ids": pad(table.types, 0)} if typed else {})


def their_model(kind: str, pack: Pack, start: State) -> Theirs:
    """The same encoder and head with our start; A and B of every weight that the cell adapts are peft's."""
    encoder, form = make_encoder(kind, **NO_DROPOUT), pack.heads.form
    if form is head_forms.BENCHMARK:
        model: nn.Module = BenchmarkClassifier(encoder)
        prefix = "base_model"
    else:
        with torch.random.fork_rng():
            model = AutoModelForSequenceClassification.from_config(encoder.config, attn_implementation="eager")
        prefix = encoder.base_model_prefix
        model.get_submodule(prefix).load_state_dict(encoder.state_dict(), strict=False)
    names = list(resolve(pack.backbone.linears(), "attention"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        targets = [f"{prefix}.{name}" for name in names]
        wrapped: Any = get_peft_model(model.eval(), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    model.double()
    inner = wrapped.base_model.model
    factors = {
        f"{name}.{part}": inner.get_parameter(f"{prefix}.{name}.lora_{part}.default.weight")
        for name in names
        for part in ("A", "B")
    }
    head = {name: inner.get_parameter(full) for name, full in form.parameters(prefix).items()}
    with torch.no_grad():
        for name, value in (factors | head).items():
            value.requires_grad_(True).copy_((start.adapter | start.head)[name])
    return Theirs(inner, factors, head)


def their_losses(theirs: Theirs, batches: list[list[int]], typed: bool, by_row: bool) -> list[float]:
    """The loss of every step of a plain loop; `by_row` without padding, each sequence by itself."""
    head, factors = list(theirs.head.values()), list(theirs.factors.values())
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
        outputs = [theirs.model(**padded(table, part, typed)) for part in parts]
        logits = torch.cat([getattr(output, "logits", output) for output in outputs])
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(table.labels)[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*factors, *head], CELL.clip)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("kind", "head"), [*((kind, None) for kind in FAMILIES), *((kind, "model") for kind in WITH_HEADS)]
)
def test_lora_is_pefts_on_every_encoder(kind: str, head: Head | None) -> None:
    """With the benchmark's head, and within transformers' own classifier of the type."""
    encoder = make_encoder(kind, **NO_DROPOUT)
    backbone = Backbone(encoder, CPU, "float64", pooler=head_forms.take_pooler(encoder, ()))
    ours = trainer([CELL.model_copy(update={"head": head})], backbone)
    typed, start = backbone.takes_types, ours.pack.state(0)
    batches = [group.tolist() for epoch in range(1, 5) for group in ours.batch_rows(epoch)]
    theirs = their_model(kind, ours.pack, start)
    (progress,) = ours.run()
    # ModernBERT's sliding window leaves padding nothing to attend to: transformers' own gradient of that is NaN.
    their_values = their_losses(theirs, batches, typed, by_row=kind == "modernbert")
    assert len(their_values) == STEPS
    assert their_values[-1] < 0.9 * their_values[0]
    rotated = kind == "modernbert"  # its rotary positions are computed in float32
    np.testing.assert_allclose(progress.losses, their_values, rtol=0, atol=1e-4 if rotated else 1e-9)
    end = ours.pack.state(0)
    first, last = start.adapter | start.head, end.adapter | end.head
    assert last.keys() == (theirs.factors | theirs.head).keys()
    for name, value in (theirs.factors | theirs.head).items():
        assert float((last[name] - first[name]).abs().max()) > 1e-4
        torch.testing.assert_close(last[name], value.detach(), rtol=0, atol=1e-4 if rotated else 1e-7)
