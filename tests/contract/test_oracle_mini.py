"""LoRA-Mini: the published start has exactly no gradient; ours has, and both are what the paper's formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_bench import tasks
from lora_bench.contracts.kit import Run, cell_of, table_of, train, trainer_of
from lora_bench.engine import randomness
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.losses import batch_losses
from lora_bench.tasks import Task
from tests.contract.contract_kit import Load

COLA = tasks.get("cola")


def gradients(pack: Pack, task: Task) -> list[Tensor]:
    """The gradient of every block at the pack's values, through the trainer's own pieces, with dropout."""
    generator = torch.Generator().manual_seed(randomness.seed_of(0, "dropout", 0))
    table = table_of(pack.backbone, task)
    with pack:
        pack.compose()
        batch = next(table.batches([np.arange(len(table))]))
        masks = pack.masks(batch.shape).draw(generator, batch.windows, len(batch.rows))
        losses = batch_losses(pack.logits(batch, masks), batch.labels, batch.weights)
        return list(torch.autograd.grad(losses.sum(), [block.matrix for block in pack.blocks()]))


@pytest.fixture(scope="module")
def beside_head(load: Load) -> Run:
    """The published start beside a head cell with the same head rate, trained in one pack."""
    mini = cell_of("mini", init="published", lr=5e-3, head_lr=1e-2, precision="float64")
    return train([mini, cell_of("head", lr=1e-2, precision="float64")], load("float64"), COLA)


@pytest.mark.parametrize("task", ["cola", "mnli", "stsb"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_published_start_has_no_gradient(task: str, precision: str, load: Load) -> None:
    cell = cell_of("mini", task, init="published", precision=precision)
    adapter, head = gradients(Pack([cell], load(precision), tasks.get(task).num_outputs), tasks.get(task))
    assert adapter.numel() == cell_size(cell.rank, cell.a, cell.b)
    assert not adapter.count_nonzero()
    assert head.count_nonzero() > head.numel() * 0.9


def cell_size(rank: int | None, a: int | None, b: int | None) -> int:
    """r (a + b) on each of the twelve weights."""
    assert rank
    assert a
    assert b
    return 12 * rank * (a + b)


def test_default_start_has_the_gradient_of_b_alone(load: Load) -> None:
    pack = Pack([cell_of("mini")], load("float32"), 2)
    (group,) = pack.bank.groups
    for factors in group.factors(gradients(pack, COLA)[0]).values():
        assert bool((factors["B_train"] != 0).all())
        assert not factors["A_train"].count_nonzero()  # B is zero at the start, as LoRA's


def test_published_start_stays_at_zero_while_the_head_learns(beside_head: Run) -> None:
    after = beside_head.pack.state(0)
    assert {name.rsplit(".", 1)[-1] for name in after.adapter} == {"A_train", "B_train"}
    assert not any(value.count_nonzero() for value in after.adapter.values())
    assert not any(torch.equal(value, beside_head.start[0].head[name]) for name, value in after.head.items())


def test_published_start_is_the_head_row(beside_head: Run) -> None:
    published, head = beside_head.progress
    assert published.losses == pytest.approx(head.losses, abs=1e-12)
    assert published.metrics == head.metrics
    own, other = (beside_head.pack.state(place).head for place in (0, 1))
    for name, value in own.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-9)


def test_weight_decay_does_not_wake_the_published_start(load: Load) -> None:
    run = train([cell_of("mini", init="published", weight_decay=0.5)], load("float32"), COLA)
    assert not any(value.count_nonzero() for value in run.pack.state(0).adapter.values())


def test_default_start_leaves_the_head_row(load: Load) -> None:
    cells = [cell_of("mini", head_lr=1e-2, precision="float64"), cell_of("head", lr=1e-2, precision="float64")]
    mini, head = trainer_of(Pack(cells, load("float64"), 2), COLA).run()
    assert mini.losses[0] == pytest.approx(head.losses[0], abs=1e-12)
    assert abs(mini.losses[-1] - head.losses[-1]) > 1e-4


@pytest.mark.parametrize(("init", "stds"), [("default", (32**-0.5, 48**-0.5)), ("published", (1.0, 1.0))])
def test_outer_factors_are_of_the_stated_size(init: str, stds: tuple[float, float], load: Load) -> None:
    cell = cell_of("mini", init=init, a=40, b=48, targets="query")
    (group,) = Pack([cell], load("float32"), 2).bank.groups
    (family,) = group.families
    for name, std in zip(("A_aux", "B_aux"), stds, strict=True):
        assert float(group.frozen[family, name].std()) == pytest.approx(std, rel=0.06)


def test_update_is_the_product_of_four(load: Load) -> None:
    run = train([cell_of("mini", precision="float64")], load("float64"), COLA)
    (group,) = run.pack.bank.groups
    deltas, state = run.pack.deltas(0), run.pack.state(0).adapter
    for family, modules in group.families.items():
        for place, name in enumerate(modules):
            outer_a, outer_b = (group.frozen[family, factor][0, place] for factor in ("A_aux", "B_aux"))
            product = outer_b @ state[f"{name}.B_train"] @ state[f"{name}.A_train"] @ outer_a
            torch.testing.assert_close(deltas[name], 8.0 / 4 * product)
