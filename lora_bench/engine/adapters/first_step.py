"""The first step of full fine-tuning, for factors that start from it (`recipe.FirstStep`).

Its gradient is that of the unadapted model with the head that all cells of a seed start from, on the first batch,
without dropout, computed for one cell: it does not depend on the pack.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lora_bench.engine.adapters.bases import require_directions, svd
from lora_bench.engine.adapters.group import Group
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.windows import Batch
from lora_bench.engine.losses import batch_losses
from lora_bench.engine.schedule import first_lr
from lora_bench.methods.recipe import Factor, FirstStep


class Direction(NamedTuple):
    """The step's direction of one weight, decomposed: `-sign(G) = U S Vᵀ`, U `[out, n]`, S `[n]`, V `[in, n]`."""

    left: Tensor
    values: Tensor
    right: Tensor


def starts_from_first_step(group: Group) -> bool:
    """Whether a factor of the group starts from the first step."""
    factors = (factor for family in group.families for factor in group.factors_of(0, family))
    return any(isinstance(factor.start, FirstStep) for factor in factors)


def initialise(pack: Pack, batch: Batch, steps: int) -> None:
    """Write the initial values of all factors that start from the first step.

    Args:
        pack: The pack, before its first step.
        batch: The first batch.
        steps: The steps of the whole training, for the schedule of the learning rate.
    """
    groups = [group for group in pack.bank.groups if starts_from_first_step(group)]
    names = {name for group in groups for name in group.modules}
    exact = pack.backbone.exact
    directions = {name: Direction(*svd(-grad.sign().to(exact))) for name, grad in gradients(pack, batch, names).items()}
    for group in groups:
        for row, cell in enumerate(group.cells):
            _write(group, row, directions, first_lr(cell, steps))


def gradients(pack: Pack, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
    """The gradient `[out, in]` of each of these weights, at the pretrained model with the first cell's head."""
    linears = pack.backbone.linears()
    weights = {f"{name}.weight": linears[name].weight.detach().requires_grad_() for name in sorted(names)}
    hidden = pack.backbone.encode(batch, 1, None, weights, rows=batch.first)
    logits = pack.heads.logits(pack.heads.block.matrix[:1].detach(), hidden, None)
    loss = batch_losses(logits, batch.labels, batch.weights).sum()
    grads = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(sorted(names), grads, strict=True))


@torch.no_grad()
def _write(group: Group, row: int, directions: Mapping[str, Direction], lr: float) -> None:
    values = group.block.matrix.detach()[row : row + 1]
    state = group.state(row, values)
    for family, modules in group.families.items():
        for factor in group.factors_of(row, family):
            if isinstance(factor.start, FirstStep):
                for module in modules:
                    value = _value(factor, factor.start, directions[module], lr, module)
                    state[f"{module}.{factor.name}"] = value * factor.start.gain
    group.load(row, state, values)


def _value(factor: Factor, start: FirstStep, direction: Direction, lr: float, module: str) -> Tensor:
    count = factor.rows if start.part == "input" else factor.cols
    require_directions(count, len(direction.values), module)
    if start.part == "core":
        return torch.diag(lr * direction.values[:count])
    return direction.right[:, :count].mT if start.part == "input" else direction.left[:, :count]
