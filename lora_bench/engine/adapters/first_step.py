"""The first step of full fine-tuning, for factors that start from it.

The gradient is that of the unadapted model with the head that all cells of a seed start from, on the first batch,
without dropout, for one cell: it does not depend on the pack.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine.adapters.bases import require, svd
from lora_bench.engine.adapters.group import Group
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.windows import Batch
from lora_bench.engine.losses import batch_losses
from lora_bench.methods.recipe import Factor, FirstStep


class Direction(NamedTuple):
    """`-sign(G) = U S Vᵀ`: U `[out, n]`, S `[n]`, V `[in, n]`."""

    left: Tensor
    values: Tensor
    right: Tensor


def starts_from_it(group: Group) -> bool:
    """Whether some factor of the group does."""
    versions = (factor for family in group.families for factor in group.versions(0, family))
    return any(isinstance(factor.start, FirstStep) for factor in versions)


def begin(pack: Pack, batch: Batch, steps: int) -> None:
    """Write the first values of all factors that start from the first step, of `steps` in all, of full fine-tuning."""
    groups = [group for group in pack.bank.groups if starts_from_it(group)]
    names = {name for group in groups for name in group.modules}
    slopes = gradients(pack, batch, names)
    exact = pack.backbone.exact
    found = {name: Direction(*svd(-slope.sign().to(exact))) for name, slope in slopes.items()}
    for group in groups:
        for row, cell in enumerate(group.cells):
            _write(group, row, found, first_rate(cell, steps))


def first_rate(cell: Cell, steps: int) -> float:
    """The rate of the first step of warm-up that is not zero."""
    return cell.lr / max(1, math.ceil(steps * cell.warmup))


def gradients(pack: Pack, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
    """The gradient `[out, in]` of each of these weights."""
    linears = pack.backbone.linears()
    weights = {f"{name}.weight": linears[name].weight.detach().requires_grad_() for name in sorted(names)}
    hidden = pack.backbone.encode(batch, 1, None, weights)[:, batch.first]
    logits = pack.heads.logits(pack.heads.block.matrix[:1].detach(), hidden, None)
    loss = batch_losses(logits, batch.labels, batch.weights).sum()
    found = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(sorted(names), found, strict=True))


@torch.no_grad()
def _write(group: Group, row: int, found: Mapping[str, Direction], rate: float) -> None:
    values = group.block.matrix.detach()[row : row + 1]
    state = group.state(row, values)
    for family, modules in group.families.items():
        for factor in group.versions(row, family):
            if isinstance(factor.start, FirstStep):
                for module in modules:
                    value = _value(factor, factor.start, found[module], rate, module)
                    state[f"{module}.{factor.name}"] = value * factor.start.gain
    group.load(row, state, values)


def _value(factor: Factor, start: FirstStep, found: Direction, rate: float, module: str) -> Tensor:
    count = factor.rows if start.part == "input" else factor.cols
    require(count, len(found.values), module)
    if start.part == "core":
        return torch.diag(rate * found.values[:count])
    return found.right[:, :count].mT if start.part == "input" else found.left[:, :count]
