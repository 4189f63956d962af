"""The packed AdamW is, cell by cell, torch's AdamW with transformers' schedule and torch's clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from lora_bench.cell import Cell
from lora_bench.engine.block import Block
from lora_bench.engine.optimiser import PackedAdamW
from lora_bench.engine.schedule import lr_multipliers
from lora_bench.testing import make_cell

STEPS = 30
CELLS = (
    make_cell("lora", lr=1e-2, head_lr=None, warmup=0.06, clip=1.0, weight_decay=0.0),
    make_cell("lora", lr=3e-3, head_lr=2e-2, warmup=0.0, clip=0.0, weight_decay=0.1),
    make_cell("head", lr=5e-2, head_lr=None, warmup=0.5, clip=0.1, weight_decay=0.3),
    make_cell("mini", lr=2e-2, head_lr=1e-3, warmup=1.0, clip=100.0, weight_decay=0.01),
    make_cell("lora", lr=1e-4, head_lr=None, warmup=0.33, clip=2.0, weight_decay=1.0),
)
ADAPTED = (0, 1, 4)  # the cells in the first block; the second has all


@dataclass
class Setting:
    """Two blocks over five cells, and gradients for every step."""

    blocks: list[Block]
    gradients: list[list[Tensor]]


def setting(seed: int = 0) -> Setting:
    """Random values and gradients; the second block decays in some columns only, at thrice the rate."""
    stream = torch.Generator().manual_seed(seed)
    shapes = ((len(ADAPTED), 11), (len(CELLS), 7))
    values = [torch.randn(shape, generator=stream, dtype=torch.float64) for shape in shapes]
    blocks = [
        Block(torch.tensor(ADAPTED), values[0], torch.tensor([CELLS[k].lr for k in ADAPTED], dtype=torch.float64)),
        Block(
            torch.arange(len(CELLS)), values[1],
            torch.tensor([each.effective_head_lr for each in CELLS], dtype=torch.float64),
            torch.tensor([1, 1, 1, 0, 0, 1, 0], dtype=torch.float64),
            torch.tensor([3, 3, 3, 1, 1, 3, 1], dtype=torch.float64),
        ),
    ]  # fmt: skip
    scales = torch.logspace(-3, 1, STEPS, dtype=torch.float64)
    gradients = [
        [torch.randn(shape, generator=stream, dtype=torch.float64) * scale for shape in shapes] for scale in scales
    ]
    return Setting(blocks, gradients)


def losses(*values: float) -> Tensor:
    """One loss a cell."""
    return torch.tensor(values or (0.5,) * len(CELLS), dtype=torch.float64)


class Reference:
    """One cell by torch and transformers: three parameters, of which the last does not decay."""

    def __init__(self, one: Cell, place: int, made: Setting) -> None:
        self.place, self.clip = place, one.clip
        self.row = ADAPTED.index(place) if place in ADAPTED else None
        self.keeps = made.blocks[1].decays == 1
        self.parameters = [part.clone().requires_grad_() for part in self.cut([b.matrix for b in made.blocks])]
        rates = [one.lr, 3 * one.effective_head_lr, one.effective_head_lr]
        decays = [one.weight_decay, one.weight_decay, 0.0]
        groups = [
            {"params": [parameter], "lr": rate, "weight_decay": decay}
            for parameter, rate, decay in zip(self.parameters, rates, decays, strict=True)
        ]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
        warm = math.ceil(STEPS * one.warmup)
        self.schedule = get_linear_schedule_with_warmup(self.optimiser, warm, STEPS)

    def cut(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """What belongs to the cell: its row of the first, and its row of the second in two."""
        adapter = torch.zeros(0, dtype=torch.float64) if self.row is None else parts[0][self.row]
        return [adapter, parts[1][self.place][self.keeps], parts[1][self.place][~self.keeps]]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One update."""
        for parameter, gradient in zip(self.parameters, self.cut(gradients), strict=True):
            parameter.grad = gradient.clone()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        self.schedule.step()


def test_thirty_steps_are_torchs_adamw() -> None:
    made = setting()
    references = [Reference(one, place, made) for place, one in enumerate(CELLS)]
    packed = PackedAdamW(made.blocks, CELLS, STEPS)
    worst = 0.0
    before = [block.matrix.clone() for block in made.blocks]
    for gradients in made.gradients:
        packed.step(gradients, losses())
        for reference in references:
            reference.step(gradients)
            found = reference.cut([block.matrix for block in made.blocks])
            for part, wanted in zip(found, reference.parameters, strict=True):
                worst = max([worst, *(part - wanted).abs().tolist()])
    print(f"largest difference {worst:.2g}")
    assert worst < 1e-12
    assert all(bool(((block.matrix - old).abs() > 1e-5).all()) for block, old in zip(made.blocks, before, strict=True))


def stepped(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Every value after thirty steps from the same float32 values and gradients: ours, and torch's."""
    made = setting()
    for block in made.blocks:
        block.matrix, block.lrs = block.matrix.float().to(dtype), block.lrs.to(dtype)
        block.decays, block.lr_multipliers = (
            v if v is None else v.to(dtype) for v in (block.decays, block.lr_multipliers)
        )
    references = [Reference(one, place, made) for place, one in enumerate(CELLS)]
    packed = PackedAdamW(made.blocks, CELLS, STEPS)
    for gradients in made.gradients:
        cast = [part.float().to(dtype) for part in gradients]
        packed.step(cast, losses().to(dtype))
        for reference in references:
            reference.step(cast)
    ours = [part.double() for each in references for part in each.cut([block.matrix for block in made.blocks])]
    return ours, [part.detach().double() for each in references for part in each.parameters]


def test_in_float32_it_is_as_exact_as_torchs() -> None:
    """1 - beta2^t, of which float32 would keep four digits at the first steps, is taken in float64."""
    exact, _ = stepped(torch.float64)
    far = [
        max(float((part - wanted).abs().max()) for part, wanted in zip(found, exact, strict=True) if part.numel())
        for found in stepped(torch.float32)
    ]
    print(f"off by {far[0]:.2g}, torch's by {far[1]:.2g}")
    assert far[0] < 4 * far[1]


def test_the_schedule_is_that_of_transformers() -> None:
    table = lr_multipliers(CELLS, torch.arange(STEPS), STEPS)
    assert table.shape == (STEPS, len(CELLS))
    for place, one in enumerate(CELLS):
        optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        reference = get_linear_schedule_with_warmup(optimiser, math.ceil(STEPS * one.warmup), STEPS)
        for step in range(STEPS):
            assert float(table[step, place]) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
            optimiser.step()
            reference.step()


@pytest.mark.parametrize("warmup", [0.0, 0.06, 1.0])
def test_a_schedule_of_one_step(warmup: float) -> None:
    assert lr_multipliers([make_cell(warmup=warmup)], torch.arange(1), 1).tolist() == [[1.0 if warmup == 0 else 0.0]]


def test_norms_are_over_all_that_a_cell_trains() -> None:
    made = setting()
    norms = PackedAdamW(made.blocks, CELLS, STEPS).norms(made.gradients[3])
    adapter, head = made.gradients[3]
    for place in range(len(CELLS)):
        parts = [head[place]] + ([adapter[ADAPTED.index(place)]] if place in ADAPTED else [])
        assert float(norms[place]) == pytest.approx(float(torch.cat(parts).norm()), rel=1e-12)


@pytest.mark.parametrize("fault", ["loss nan", "loss inf", "gradient nan", "gradient inf", "norm overflows"])
def test_a_cell_at_fault_stops_for_good_and_alone(fault: str) -> None:
    what, _, value = fault.partition(" ")
    whole, broken = setting(), setting()
    good, bad = PackedAdamW(whole.blocks, CELLS, STEPS), PackedAdamW(broken.blocks, CELLS, STEPS)
    for step, gradients in enumerate(whole.gradients):
        faulty = [part.clone() for part in gradients]
        loss = losses()
        if step == 4:
            before = [block.matrix.clone() for block in broken.blocks]
            if what == "loss":
                loss = losses(0.1, float(value), 0.1, 0.1, 0.1)
            else:
                faulty[0][1, 3] = 1e200 if what == "norm" else float(value)
        good.step(gradients, losses())
        bad.step(faulty, loss)
    assert bad.active.tolist() == [True, False, True, True, True]
    assert good.active.all()
    rows = ([0, 2], [0, 2, 3, 4])
    for block, twin, kept, own in zip(broken.blocks, whole.blocks, before, rows, strict=True):
        assert torch.equal(block.matrix[own], twin.matrix[own])
        assert torch.equal(block.matrix[1], kept[1])
        assert not torch.equal(block.matrix[own], kept[own])


def test_no_clipping_where_no_cell_clips() -> None:
    made = setting()
    cells = [one.model_copy(update={"clip": 0.0}) for one in CELLS]
    assert PackedAdamW(made.blocks, cells, STEPS).clips is None


def test_the_first_step_of_a_warm_up_has_rate_zero() -> None:
    made = setting()
    before = made.blocks[1].matrix.clone()
    PackedAdamW(made.blocks, CELLS, STEPS).step(made.gradients[0], losses())
    still = [torch.equal(made.blocks[1].matrix[k], before[k]) for k in range(len(CELLS))]
    assert still == [True, False, True, True, True]
