"""When rank schedules and penalties act, in trainings as long as real ones, against others' formulas step by step."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from peft.tuners.adalora.layer import RankAllocator

from lora_bench import tasks
from lora_bench.callbacks import Callback, EpochMetrics
from lora_bench.contracts.kit import Workbench, cell_of, trainer_of
from lora_bench.engine.adapters.pack import Pack
from lora_bench.methods import RECIPES
from lora_bench.methods.adalora import RECIPE as ADALORA
from lora_bench.methods.dora_dyn import RECIPE as DORA_DYN
from lora_bench.methods.rules import Step
from lora_bench.methods.scalabl import RECIPE as SCALABL
from lora_bench.methods.sora import RECIPE as SORA
from tests.contract.test_oracle_authors import frozen_classifier
from tests.contract.test_oracle_peft import LINEARS, SETTINGS, STEPS, Peer, assert_same, our_run, wrapped_by_peft
from tests.contract.test_oracle_schedules import Allocation

WEIGHTS = 24


def peft_budget(total: int, interval: int) -> list[tuple[int, bool]]:
    """What peft's allocator leaves of the components at each step (from 0), and whether it masks then."""
    config = AdaLoraConfig(
        init_r=12, target_r=8, tinit=int(0.15 * total), tfinal=int(0.5 * total), deltaT=interval, total_step=total
    )
    allocator = RankAllocator.__new__(RankAllocator)
    allocator.peft_config, allocator.init_bgt, allocator.target_bgt = config, 12 * WEIGHTS, 8 * WEIGHTS
    return [allocator.budget_schedule(step) for step in range(total)]


@pytest.mark.parametrize(("total", "interval"), [(20, 1), (999, 1), (2000, 2), (6543, 6)])
def test_adaloras_budget_is_pefts_in_trainings_of_any_length(total: int, interval: int) -> None:
    cell, components = cell_of("adalora", rank=8), 12 * WEIGHTS
    last = total - int(0.5 * total)
    for step, (budget, masks) in enumerate(peft_budget(total, interval)):
        cut = ADALORA.cut(cell, Step(step + 1, total, 100), components)
        if step >= last:  # peft keeps to the last mask then
            assert cut == components - 8 * WEIGHTS
        else:
            assert cut == (components - budget if masks else 0), step
        assert ADALORA.meets_budget(cell, Step(step + 1, total, 100)) == (step >= last)


@pytest.mark.parametrize("interval", [2, 3, 4])
def test_adalora_prunes_at_intervals_as_peft(interval: int, calm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Components that have been cut train until the next time, and may come back."""
    monkeypatch.setattr("lora_bench.methods.adalora.INTERVALS", STEPS // interval)
    assert STEPS // (STEPS // interval) == interval
    task = tasks.get("cola")
    cell = cell_of("adalora", "cola", precision="float64", **SETTINGS | {"targets": "attention+dense", "rank": 4})
    pack, start, ours = our_run(cell, calm_folder, task)
    sizes = {
        "init_r": 6,
        "target_r": 4,
        "lora_alpha": 8,
        "tinit": 3,
        "tfinal": 10,
        "deltaT": STEPS // (STEPS // interval),
    }
    peer = Peer(AdaLoraConfig, {**sizes, "orth_reg_weight": 0.1, "total_step": STEPS}, modules=LINEARS)
    model = wrapped_by_peft(frozen_classifier(calm_folder, "cola", start.head), peer).double()
    theirs = dict(model.named_parameters())
    for parameter, value in theirs.items():
        if ".ranknum." in parameter:
            value.requires_grad_(False)
    with torch.no_grad():
        for module in pack.bank.groups[0].modules:
            for factor, letter in zip("AcB", "AEB", strict=True):
                theirs[f"base_model.model.roberta.{module}.lora_{letter}.default"].copy_(
                    start.adapter[f"{module}.{factor}"]
                )
    assert isinstance(model, PeftModel)
    assert isinstance(model.base_model, AdaLoraModel)
    assert_same(pack, ours, model, task, Allocation(model.base_model))


@pytest.mark.parametrize("total", [20, 777, 4000])
def test_dora_dyns_schedule_is_its_authors_in_trainings_of_any_length(total: int) -> None:
    """Every 100 steps after 15% of the training and at 50% of it, a number that grows with the cube of the time."""
    cell, components = cell_of("dora-dyn", rank=8), 12 * WEIGHTS
    length, events = int(total * (1 - 0.15 - 0.5)), 0
    for number in range(1, total + 1):
        step, now = Step(number, total, 100), int(number - total * 0.15)
        cut = DORA_DYN.cut(cell, step, components)
        if 0 <= now <= length and (now % 100 == 0 or now == length):
            assert cut == max(int(components * (12 - 8) / 12 * (now / length) ** 3), 1)
            events += 1
        elif now > length:
            assert cut == components // 3
        else:
            assert cut == 0
        assert DORA_DYN.penalty_weight(cell, step) == (0.1 if now <= length else 0.0)
        assert DORA_DYN.remembers(cell, step) == (now <= length)
        assert DORA_DYN.meets_budget(cell, step) == (now >= length)
    assert events >= 2 + (length - 1) // 100


@pytest.mark.parametrize(("rows", "batch"), [(38, 8), (400, 32), (7695, 32), (25, 64)])
def test_scalabls_rate_doubles_in_cycles_that_sum_to_a_fifth(rows: int, batch: int) -> None:
    cell = cell_of("scalabl", batch_size=batch)
    cycle = int(100 * rows ** (math.pi / 8) / batch)
    rates = [SCALABL.penalty_weight(cell, Step(number, 10**6, rows)) for number in range(1, 3 * cycle + 1)]
    published = [0.2 * (2 ** (step % cycle + 1) / (2 ** (cycle + 1) - 1)) for step in range(3 * cycle)]
    np.testing.assert_allclose(rates, published, rtol=1e-12)
    expected = 0.2 * (1 - 2.0**-cycle) / (1 - 2.0 ** -(cycle + 1))
    assert sum(rates[cycle : 2 * cycle]) == pytest.approx(expected)


def test_soras_gate_with_the_published_threshold() -> None:
    """As the authors' loop: beyond ±3e-4 an entry moves by that, and within ±3e-4 of zero it then is zero."""
    gate = torch.tensor([0.0, 2e-4, -2.9e-4, 3.1e-4, -5.9e-4, 6.1e-4, -6.1e-4, 1.0, -1.0], dtype=torch.float64)
    expected = torch.tensor([0, 0, 0, 0, 0, 3.1e-4, -3.1e-4, 1 - 3e-4, -1 + 3e-4], dtype=torch.float64)
    torch.testing.assert_close(SORA.shrink(gate), expected, rtol=0, atol=1e-15)
    assert SORA.penalty_weight(cell_of("sora"), Step(1, 1, 1)) == 10.0


@pytest.mark.parametrize("method", [name for name, recipe in RECIPES.items() if recipe.gate])
def test_a_training_of_one_step_has_an_epoch_that_can_be_selected(method: str, bench: Workbench) -> None:
    cell = cell_of(method, precision="float64", epochs=1, batch_size=24)
    (progress,) = trainer_of(Pack([cell], bench.load("float64"), 2), tasks.get("cola")).run()
    assert len(progress.losses) == progress.selected == 1


@pytest.mark.parametrize(("method", "epochs", "first"), [("adalora", 5, 3), ("adalora", 4, 3), ("dora-dyn", 5, 3)])
def test_the_first_epoch_that_can_be_selected_is_the_first_that_meets_the_budget(
    method: str, epochs: int, first: int, bench: Workbench
) -> None:
    """Epochs of three steps: the last components of AdaLoRA go at step 9 of 15, and at step 7 of 12."""
    cell = cell_of(method, precision="float64", epochs=epochs, batch_size=8, select="last")
    trainer = trainer_of(Pack([cell], bench.load("float64"), 2), tasks.get("cola"))
    selected: list[int | None] = []

    class Watch(Callback):
        def on_epoch_evaluated(self, metrics: EpochMetrics) -> None:
            selected.append(trainer.progress[0].selected)

    trainer.run([Watch()])
    assert selected == [None] * (first - 1) + list(range(first, epochs + 1))
