"""The contract of the Python API: a user's own training loop ends with the same weights as the packed trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from lora_bench import methods
from lora_bench.api import AdaptedModel, get_adapted_model
from lora_bench.cell import Cell
from lora_bench.contracts.kit import (
    KINDS,
    Workbench,
    alike,
    cell_of,
    padded,
    plain_classifier,
    require,
    tokens,
    trainer_of,
)
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.first_step import starts_from_first_step
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder.windows import Ints
from lora_bench.tasks import Task, get

# Both sides compute in float64 and differ only in the order of their sums, by about 1e-15 in a gradient. AdamW divides
# a gradient by its running magnitude: a step differs by about 1e-15 times the learning rate, and where a gradient is
# zero except for rounding, by rate · 1e-15 / epsilon, which is 1e-9 for rates of 1e-2. A parameter that decays but
# should not is off by 1e-6 or more after these steps.
TOLERANCE = 1e-8
DECAY = 0.1
MOVED = 1e-3  # a smaller largest change means that nothing was trained, and nothing compared


def your_own_loop_trains_the_same(method: str, bench: Workbench) -> None:
    """in your own loop (`get_adapted_model`, torch's AdamW with decay) it ends as in a pack (float64)"""
    recipe = methods.get(method)
    if recipe.trains_backbone or recipe.beyond_the_loss:  # the API refuses both
        return
    for name in KINDS:
        task = get(name)
        # The head is that of the encoder's type, which transformers' classifier has.
        cell = cell_of(method, name, precision="float64", weight_decay=DECAY, head_lr=3e-3, epochs=3, head="model")
        pack = Pack([cell], bench.calm("float64"), task.num_outputs)
        if any(starts_from_first_step(group) for group in pack.bank.groups):
            return
        trainer = trainer_of(pack, task)
        start = pack.state(0)
        batches = [group for epoch in range(1, cell.epochs + 1) for group in trainer.batch_rows(epoch)]
        model = plain_classifier(bench.calm_folder, task.num_outputs, torch.float64)
        head_names = pack.heads.form.parameters(model.base_model_prefix)
        adapted = _adapted_model(cell, model, {head_names[part]: value for part, value in start.head.items()})
        _train(adapted, cell, task, batches)
        trainer.run()
        packed = pack.state(0)
        packed = State(saved.restored(cell, saved.compacted(cell, packed.adapter)), packed.head)
        _compare(_saved_state(adapted, bench, head_names), packed, start, name)


def _adapted_model(cell: Cell, model: PreTrainedModel, head: dict[str, Tensor]) -> AdaptedModel:
    """Return transformers' classifier, without dropout, with the cell's adapter and the pack's initial head."""
    with torch.no_grad():
        for name, value in head.items():
            model.get_parameter(name).copy_(value)
    settings = {name: getattr(cell, name) for name in methods.of(cell).parameters}
    return get_adapted_model(model, cell.method, seed=cell.seed, head=cell.head, **settings)


def _train(adapted: AdaptedModel, cell: Cell, task: Task, batches: list[Ints]) -> None:
    """Train as users do: torch's AdamW and clipping, transformers' schedule."""
    table = tokens(task)
    optimiser = torch.optim.AdamW(adapted.parameter_groups(cell.lr, cell.head_lr), weight_decay=cell.weight_decay)
    warm = math.ceil(len(batches) * cell.warmup)
    schedule = get_linear_schedule_with_warmup(optimiser, warm, len(batches))
    trained = [value for group in optimiser.param_groups for value in group["params"]]
    for rows in batches:
        ids, mask = padded(table, rows.tolist())
        labels = torch.from_numpy(np.asarray(table.labels)[rows])
        logits = adapted(input_ids=ids, attention_mask=mask).logits
        # Not the model's own loss: DeBERTa's computes it in float32, whatever the model's type.
        loss = mse_loss(logits[:, 0], labels.double()) if task.is_regression else cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, cell.clip)
        optimiser.step()
        schedule.step()


def _saved_state(adapted: AdaptedModel, bench: Workbench, head_names: Mapping[str, str]) -> State:
    """Save and read the model by the API; return its state with the names that a pack uses."""
    folder = bench.new_folder()
    adapted.save(folder)
    _, _, state = saved.read(folder)
    return State(state.adapter, {part: state.head[name] for part, name in head_names.items()})


def _compare(looped: State, packed: State, start: State, task: str) -> None:
    for part in ("adapter", "head"):
        ours, theirs, before = getattr(looped, part), getattr(packed, part), getattr(start, part)
        require(ours.keys() == theirs.keys(), f"{task}: the {part} has other values in your own loop")
        for name, value in theirs.items():
            alike(ours[name], value, TOLERANCE, f"{task}: {name} in your own loop")
        moved = max((float((value - before[name]).abs().max()) for name, value in theirs.items()), default=1.0)
        require(moved > MOVED, f"{task}: the {part} hardly trained, so that nothing was compared")
