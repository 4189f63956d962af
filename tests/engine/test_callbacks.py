"""A trainer's callbacks: what they get and in which order, and how they pause and stop a training."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from lora_bench.callbacks import Callback, EpochMetrics, PackEnd, PackStart, StepBlock
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.trainer import Trainer
from lora_bench.testing import make_cell, make_tokens
from tests.engine.engine_factory import backbone, table, trainer

STEPS, EPOCHS = 6, 2  # 48 rows in batches of 8


@pytest.fixture(scope="module")
def exact() -> Backbone:
    """The encoder in float64."""
    return backbone()


class Journal(Callback):
    """Notes every event, and asks for a pause after the issued steps whose numbers it is given."""

    def __init__(
        self, name: str = "", events: list[tuple[str, Any]] | None = None, pauses: tuple[int, ...] = ()
    ) -> None:
        self.name, self.pauses, self.issued = name, pauses, 0
        self.events = [] if events is None else events

    def note(self, event: str, value: Any) -> None:
        self.events.append((self.name + event, value))

    def on_pack_start(self, start: PackStart) -> None:
        self.note("start", start)

    def on_step_issued(self, epoch: int, step: int) -> None:
        self.issued += 1
        self.note("issued", (epoch, step))

    def on_steps_recorded(self, block: StepBlock) -> None:
        self.note("recorded", block)

    def on_epoch_evaluated(self, metrics: EpochMetrics) -> None:
        self.note("evaluated", metrics)

    def on_safe_point(self) -> None:
        self.note("safe", None)

    def on_pack_end(self, end: PackEnd) -> None:
        self.note("end", end)

    def should_pause(self) -> bool:
        return self.events[-1][0] == self.name + "issued" and self.issued in self.pauses

    def named(self, event: str) -> list[Any]:
        return [value for name, value in self.events if name == event]


def two_cells() -> list[Any]:
    return [make_cell("lora", warmup=0.3), make_cell("head", lr=3e-3, head_lr=None, clip=0.1)]


def test_events_come_in_the_documented_order(exact: Backbone) -> None:
    journal = Journal()
    made = trainer(two_cells(), exact)
    made.run([journal])
    epoch = ["issued"] * STEPS + ["recorded", "safe", "evaluated", "safe"]
    assert [name for name, _ in journal.events] == ["start", *epoch * EPOCHS, "end"]
    assert journal.named("issued") == [(e, s) for e in (1, 2) for s in range(1, STEPS + 1)]
    assert journal.named("start") == [PackStart(made.pack.cells, STEPS, EPOCHS, 0)]
    assert journal.named("end") == [PackEnd(True, (None, None))]
    for number, (metrics, block) in enumerate(
        zip(journal.named("evaluated"), journal.named("recorded"), strict=True), 1
    ):
        assert (metrics.epoch, metrics.main_metric, metrics.held_out) == (number, "accuracy", (None, None))
        assert metrics.metrics == tuple(progress.metrics[number - 1] for progress in made.progress)
        assert (block.epoch, block.first_step) == (number, 1 + (number - 1) * STEPS)


def test_callbacks_are_called_in_the_order_of_the_list(exact: Backbone) -> None:
    events: list[tuple[str, Any]] = []
    trainer(two_cells(), exact).run([Journal("a ", events), Journal("b ", events)])
    names = [name for name, _ in events]
    assert names[::2] == [f"a {name.partition(' ')[2]}" for name in names[1::2]]
    assert all(name.startswith("b ") for name in names[1::2])


def test_held_out_metrics_are_given_too(exact: Backbone) -> None:
    journal = Journal()
    (progress,) = trainer([make_cell("lora", select="held-out")], exact, held_out=table(make_tokens(8, 5))).run(
        [journal]
    )
    assert [metrics.held_out[0] for metrics in journal.named("evaluated")] == progress.held_out
    assert len(progress.held_out) == EPOCHS


def test_blocks_hold_every_loss_and_the_rates_of_the_schedule(exact: Backbone) -> None:
    journal = Journal()
    made = trainer(two_cells(), exact)
    made.run([journal])
    blocks: list[StepBlock] = journal.named("recorded")
    losses, norms, lrs = (
        np.concatenate([getattr(block, name) for block in blocks]) for name in ("losses", "grad_norms", "lrs")
    )
    for k, progress in enumerate(made.progress):
        assert losses[:, k].tolist() == progress.losses
        assert progress.recent_steps.tolist() == [
            [step, *values] for step, *values in zip(range(1, 13), losses[:, k], norms[:, k], lrs[:, k], strict=True)
        ]
        optimiser = torch.optim.SGD([torch.zeros(1)], lr=progress.cell.lr)
        warmup_steps = int(np.ceil(progress.cell.warmup * 12))
        schedule = get_linear_schedule_with_warmup(optimiser, warmup_steps, 12)
        for step in range(12):
            assert lrs[step, k] == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
            optimiser.step()
            schedule.step()
    assert (norms > 0).all()


def test_a_pause_splits_the_steps_and_changes_no_number(exact: Backbone) -> None:
    journal, whole = Journal(pauses=(2, 5, 7)), Journal()
    paused, other = trainer(two_cells(), exact), trainer(two_cells(), exact)
    paused.run([Callback(), journal])
    other.run([whole])
    blocks: list[StepBlock] = journal.named("recorded")
    assert [(block.epoch, block.first_step, len(block.losses)) for block in blocks] == [
        (1, 1, 2), (1, 3, 3), (1, 6, 1), (2, 7, 1), (2, 8, 5),
    ]  # fmt: skip
    for name in ("losses", "grad_norms", "lrs"):
        split, at_once = ([getattr(block, name) for block in each.named("recorded")] for each in (journal, whole))
        assert np.array_equal(np.concatenate(split), np.concatenate(at_once))
    assert [progress.metrics for progress in paused.progress] == [progress.metrics for progress in other.progress]


def test_a_pause_within_an_evaluation_repeats_it(exact: Backbone) -> None:
    class Impatient(Journal):
        def should_pause(self) -> bool:
            return self.events[-1][0] == "safe" and len(self.named("safe")) == 1

    journal = Impatient()
    trainer(two_cells(), exact).run([journal])
    names = [name for name, _ in journal.events if name != "issued"]
    assert names[:5] == ["start", "recorded", "safe", "safe", "evaluated"]


def test_an_exception_stops_the_training_and_the_pack_is_freed(exact: Backbone) -> None:
    """A callback may refer to the trainer: the trainer does not refer to it once it has ended."""

    class Stops(Callback):
        def __init__(self, of: Trainer) -> None:
            self.trainer = of

        def on_steps_recorded(self, block: StepBlock) -> None:
            raise InterruptedError

    made = trainer(two_cells(), exact)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(InterruptedError):
            made.run([Stops(made)])
        assert (made.steps, made.epoch) == (STEPS, 0)
        reference = weakref.ref(made)
        del made
        assert reference() is None
    finally:
        gc.enable()


def test_a_cell_that_diverged_has_no_metrics_of_later_epochs(exact: Backbone) -> None:
    single, journal = backbone(precision="float32"), Journal()
    cells = [make_cell("lora", lr=lr, head_lr=lr, precision="float32") for lr in (1e30, 1e-2, 1e-3)]
    trainer(cells, single).run([journal])
    first, second = journal.named("evaluated")
    assert [metrics is None for metrics in first.metrics] == [False] * 3
    assert [metrics is None for metrics in second.metrics] == [True, False, False]
    (end,) = journal.named("end")
    assert end.finished
    assert [reason is None for reason in end.diverged] == [False, True, True]


def test_a_pack_that_thins_out_ends_unfinished() -> None:
    journal = Journal()
    cells = [make_cell("lora", lr=lr, head_lr=lr, precision="float32") for lr in (1e30, 2e30, 1e-3)]
    trainer(cells, backbone(precision="float32")).run([journal])
    assert [name for name, _ in journal.events].count("evaluated") == 1
    (end,) = journal.named("end")
    assert not end.finished
