"""One bad cell in a pack is its own affair; and how the epoch of a cell is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.data.tokens import held_out
from lora_bench.engine import randomness
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Table, slices
from lora_bench.engine.evaluation import Scores, Split
from lora_bench.engine.trainer import Trainer
from lora_bench.testing import FAMILIES, make_cell, make_tokens
from tests.engine.engine_factory import backbone, difference, losses, table, trained, trainer, values


@pytest.fixture(scope="module")
def single() -> Backbone:
    """The encoder in float32, where numbers overflow."""
    return backbone(precision="float32")


def company(bad_lr: float) -> list[Cell]:
    """Five cells; the third, in one group with the one before, has the learning rate."""
    return [
        make_cell("mini", lr=1e-2, precision="float32"),
        make_cell("lora", rank=2, precision="float32"),
        make_cell("lora", lr=bad_lr, head_lr=bad_lr, rank=7, alpha=9.0, precision="float32"),
        make_cell("lora", rank=4, targets="qv", precision="float32"),
        make_cell("head", precision="float32"),
    ]


@pytest.mark.parametrize("bad_lr", [1e6, 1e30])
def test_a_cell_that_runs_away_leaves_the_others_alone(single: Backbone, bad_lr: float) -> None:
    calm, wild = company(1e-2), company(bad_lr)
    expected, found = trained(calm, single), trained(wild, single)
    for same in set(calm) & set(wild):
        assert difference(values(expected[same]), values(found[same])) == 0
        assert np.array_equal(losses(expected)[same], losses(found)[same])
        assert np.array_equal(expected[same].predictions, found[same].predictions)  # type: ignore[arg-type]
        assert found[same].diverged is None
    assert len(set(calm) & set(wild)) == 4
    assert not max(map(abs, found[wild[2]].losses[2:])) < 1e3  # it has run away, or is NaN


def test_a_cell_that_overflows_is_marked_and_keeps_finite_values(single: Backbone) -> None:
    made = trainer(company(1e30), single)
    found = made.run()
    assert "epoch 1" in (found[2].diverged or "")
    assert [progress.diverged is None for progress in found] == [True, True, False, True, True]
    assert found[2].state is None
    assert found[2].selected is None
    assert not all(math.isfinite(loss) for loss in found[2].losses)
    left = made.pack.state(2)
    assert all(bool(part.isfinite().all()) for part in (*left.adapter.values(), *left.head.values()))


def steps(made: Trainer, epoch: int) -> None:
    """Train an epoch by hand."""
    order = randomness.permutation(len(made.table), made.seed, "order", epoch)
    for batch in made.table.batches(slices(order, made.batch_size)):
        made.train_step(batch)


def snapshot(made: Trainer, place: int) -> list[Tensor]:
    """All that a cell trains, as it is now."""
    state = made.pack.state(place)
    return [*state.adapter.values(), *state.head.values()]


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_marked_cell_does_not_move_again(single: Backbone) -> None:
    made = trainer(company(1e30), single)
    with made.pack:
        steps(made, 1)
        assert made.optimiser.active.tolist() == [True, True, False, True, True]
        before = [snapshot(made, place) for place in range(5)]
        steps(made, 2)
        assert [equal(snapshot(made, place), old) for place, old in enumerate(before)] == [
            False, False, True, False, False,
        ]  # fmt: skip


def test_a_cell_that_was_good_for_an_epoch_keeps_that_epoch(single: Backbone) -> None:
    made = trainer([make_cell("lora", precision="float32"), make_cell("lora", rank=2, precision="float32")], single)
    finish = made._evaluate_epoch

    def poison(epoch: int) -> None:
        finish(epoch)
        with torch.no_grad():
            made.pack.heads.block.matrix[1] = float("nan")

    made._evaluate_epoch = poison  # type: ignore[method-assign]
    good, bad = made.run()
    assert good.diverged is None
    assert bad.diverged == "loss or gradient not finite in epoch 2, step 7"
    assert bad.selected == 1
    assert bad.state is not None
    assert all(bool(part.isfinite().all()) for part in (*bad.state.adapter.values(), *bad.state.head.values()))
    assert good.selected == 2


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "roberta"])
def test_the_law_holds_on_every_architecture(kind: str) -> None:
    exact = backbone(kind)
    cells = [
        make_cell("mini", epochs=1, batch_size=16),
        make_cell("lora", epochs=1, batch_size=16, rank=2, targets="attention+dense"),
        make_cell("xs", epochs=1, batch_size=16, rank=7),
    ]
    together = trained(cells, exact)
    for one in cells:
        alone = trained([one], exact)
        assert difference(values(together[one]), values(alone[one])) < 1e-8
        assert np.abs(losses(together)[one] - losses(alone)[one]).max() < 1e-10


def test_held_out_sees_fewer_rows_and_chooses_the_epoch() -> None:
    exact, one = backbone(), make_cell("lora", select="held-out", epochs=4, lr=3e-2)
    kept, held = held_out(make_tokens(60, 1), one.seed, 0.2)
    assert (len(kept), len(held)) == (48, 12)
    task, pack = tasks.get("sst2"), Pack([one, one.model_copy(update={"method": "head"})], exact, 2)
    made = Trainer(pack, task, table(kept), Split(table(make_tokens(60, 2))), table(held))
    for progress in made.run():
        assert len(progress.held_out) == len(progress.metrics) == 4
        chosen_by = [metrics["accuracy"] for metrics in progress.held_out]
        assert progress.selection_metrics() == progress.held_out
        assert progress.selected == 1 + chosen_by.index(max(chosen_by))


@pytest.mark.parametrize(("select", "expected"), [("best", 2), ("held-out", 3), ("last", 4)])
def test_what_each_way_of_choosing_chooses(select: str, expected: int) -> None:
    """On scores by hand: the first of the best on validation, the first of the best on the slice, the last."""
    made = trainer([make_cell("head", select=select, epochs=4)], backbone(), 8, table(make_tokens(8, 5)))
    validation, held = iter([0.1, 0.9, 0.9, 0.2]), iter([0.3, 0.4, 0.8, 0.8])
    evaluate, own = made._evaluate, made.evaluation.table

    def scored(cells: Sequence[int], table: Table, parts: Any = None) -> tuple[NDArray[np.float64], list[Scores]]:
        predictions, scores = evaluate(cells, table, parts)
        return predictions, [Scores({"accuracy": next(validation if table is own else held)}, scores[0].calibration)]

    made._evaluate = scored  # type: ignore[method-assign]
    (progress,) = made.run()
    assert progress.selected == expected
