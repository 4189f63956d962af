"""The recorded gradient norms and rates are torch's own, in a plain loop over transformers' model in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from lora_bench.api import get_adapted_model
from lora_bench.contracts.kit import Workbench, cell_of, padded, plain_classifier, tokens, trainer_of
from lora_bench.engine.adapters.pack import Pack
from lora_bench.methods import RECIPES
from lora_bench.tasks import get


@pytest.mark.parametrize("clip", [0.5, 0.0])
@pytest.mark.parametrize("method", ["lora", "mini", "dora", "bitfit"])
def test_norms_are_what_clip_grad_norm_returns(method: str, clip: float, bench: Workbench) -> None:
    task = get("cola")
    cell = cell_of(method, precision="float64", head_lr=3e-2, epochs=3, clip=clip, warmup=0.2)
    trainer = trainer_of(Pack([cell], bench.calm("float64"), task.num_outputs), task)
    head = trainer.pack.state(0).head
    (progress,) = trainer.run()

    model = plain_classifier(bench.calm_folder, task.num_outputs, torch.float64)
    model.get_submodule("classifier").load_state_dict(head)
    settings = {name: getattr(cell, name) for name in RECIPES[method].parameters}
    adapted = get_adapted_model(model, method, seed=cell.seed, **settings)
    optimiser = torch.optim.AdamW(adapted.parameter_groups(cell.lr, cell.head_lr), weight_decay=cell.weight_decay)
    batches = [rows for epoch in range(1, cell.epochs + 1) for rows in trainer.batch_rows(epoch)]
    schedule = get_linear_schedule_with_warmup(optimiser, int(np.ceil(0.2 * len(batches))), len(batches))
    parameters = [value for group in optimiser.param_groups for value in group["params"]]
    expected = []
    for step, rows in enumerate(batches, 1):
        ids, mask = padded(tokens(task), rows.tolist())
        labels = torch.from_numpy(np.asarray(tokens(task).labels)[rows])
        loss = adapted(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
        expected.append([step, loss.item(), norm.item(), cell.lr * schedule.get_last_lr()[0] / schedule.base_lrs[0]])
        optimiser.step()
        schedule.step()
    ours = progress.recent_steps
    print(f"largest relative difference {np.max(np.abs(ours - expected)[1:] / np.array(expected)[1:]):.2g}")
    np.testing.assert_allclose(ours, expected, rtol=1e-8)
    assert (ours[:, 2] > 0.5).any()  # some were clipped
