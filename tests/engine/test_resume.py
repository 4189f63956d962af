"""A pack that is stopped goes on as if it had not been: bit by bit as the same pack, by the pack law in another one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_bench import provenance
from lora_bench.engine.trainer import Trainer
from lora_bench.records.schema import Record
from lora_bench.records.seal import describe
from lora_bench.run import checkpointing, checkpoints
from lora_bench.run import plan as plans
from lora_bench.run.checkpoints import Checkpoint
from lora_bench.run.executor import LocalExecutor
from lora_bench.run.interfaces import Options
from lora_bench.run.runner import Runner
from lora_bench.run.signals import Stopper
from lora_bench.run.worker import Training
from lora_bench.testing import Blocks, QuietView, TinyBench, assert_same_numbers, by_cell, make_model

MIXED: Blocks = (
    {"method": "head"},
    {"method": "lora", "rank": [4, 2]},
    {"method": "mini", "rank": 4, "a": 8, "b": 6},
    {"method": "vera", "rank": 4},
    {"method": "tied-lora", "rank": 3},
    {"method": "vb-lora", "rank": 2, "a": [5, 6], "b": 16},
    {"method": "dora-dyn", "rank": [2, 4]},
    {"method": "adalora", "rank": 4},
    {"method": "sora", "rank": 4},
    {"method": "clora", "rank": 2, "a": 5},
    {"method": "scalabl", "rank": 2},
    {"method": "laplace-lora", "rank": 2},
)
STEPS = 5  # an epoch


class Asking(QuietView):
    """A view that asks to stop at one step, as a signal does."""

    def __init__(self, stopper: Stopper, epoch: int, step: int) -> None:
        super().__init__()
        self.stopper, self.at, self.steps = stopper, (epoch, step), list[tuple[int, int]]()

    def on_step_issued(self, epoch: int, step: int) -> None:
        """A step has been issued."""
        self.steps.append((epoch, step))
        if (epoch, step) == self.at:
            self.stopper.asked = True


def stopped(bench: TinyBench, blocks: Blocks, epoch: int, step: int, limit: int = 16, **defaults: Any) -> Asking:
    """A run that a signal ends at a step."""
    stopper = Stopper()
    view = Asking(stopper, epoch, step)
    plan = bench.plan(blocks, limit, **defaults)
    with pytest.raises(KeyboardInterrupt):
        Runner(plan, Options(bench.results, offline=True), view, stopper).run()
    return view


def untimed(record: Record) -> dict[str, Any]:
    """A record without what a clock says."""
    values = record.model_dump() | {"timing": None}
    if record.posterior is not None:
        values["posterior"] = values["posterior"] | {"seconds": None}
    return values


def adapters(bench: TinyBench) -> dict[str, bytes]:
    """The adapters' files."""
    return {name: content for name, content in bench.files().items() if name.startswith("adapters")}


def equal(one: list[Record], other: list[Record]) -> bool:
    return [untimed(record) for record in one] == [untimed(record) for record in other]


@pytest.mark.parametrize("select", ["best", "held-out"])
def test_a_stopped_pack_goes_on_bit_by_bit(bench: TinyBench, tmp_path: Path, select: str) -> None:
    """Stopped in the middle of epochs and at their ends, again and again, until it is done."""
    settings: dict[str, Any] = {"precision": "float32", "epochs": 3, "select": select}
    uninterrupted = TinyBench(bench.model, bench.rows, tmp_path / "uninterrupted")
    expected = uninterrupted.run(MIXED, **settings)
    for at in ((1, 2), (1, STEPS), (2, 1), (3, 3), (3, STEPS)) if select == "best" else ((1, STEPS), (3, 3)):
        view = stopped(bench, MIXED, *at, **settings)
        assert view.steps[-1] == at
        assert len(view.steps) <= 2 * STEPS  # it went on, not from the start
        found = {status.state for status in bench.plan(MIXED, **settings).statuses.values()}
        assert found == {"interrupted"}
    assert equal(bench.run(MIXED, **settings), expected)
    assert adapters(bench) == adapters(uninterrupted)
    assert not (bench.results / "states").exists()


def test_in_other_company_the_pack_law_holds(bench: TinyBench, tmp_path: Path) -> None:
    expected = by_cell(TinyBench(bench.model, bench.rows, tmp_path / "uninterrupted").run(MIXED, epochs=3))
    stopped(bench, MIXED, 2, 3, epochs=3)
    found = bench.run(MIXED, limit=2, epochs=3)
    assert {record.timing.pack_size for record in found if record.timing} == {1, 2}
    for record in found:
        assert_same_numbers(record, expected[record.cell])


@pytest.mark.parametrize(
    "block",
    [
        {"method": "full"},
        {"method": "galore", "rank": 3, "b": 4},
        {"method": "lisa", "a": 1, "b": 3},
        {"method": "owlore", "rank": 3, "a": 1, "b": 3},
        {"method": "loqt", "rank": 3, "b": 4},
    ],
    ids=lambda block: block["method"],
)
def test_methods_that_train_the_encoder_go_on_too(block: dict[str, Any], bench: TinyBench, tmp_path: Path) -> None:
    blocks: Blocks = (block,)
    settings: dict[str, Any] = {"precision": "float32", "lr": 1e-3}
    expected = TinyBench(bench.model, bench.rows, tmp_path / "uninterrupted").run(blocks, **settings)
    stopped(bench, blocks, 2, 2, **settings)
    assert equal(bench.run(blocks, **settings), expected)


def test_a_models_own_head_goes_on_too(tiny_rows: Path, tmp_path: Path) -> None:
    """Beside cells with the benchmark's head, which are another pack; records and metrics.csv say which is which."""
    blocks: Blocks = ({"method": ["head", "lora"], "rank": 2, "head": [None, "model"]},)
    bench = TinyBench(make_model(tmp_path / "bert", "bert"), tiny_rows, tmp_path / "results")
    uninterrupted = TinyBench(bench.model, tiny_rows, tmp_path / "uninterrupted")
    expected = uninterrupted.run(blocks, precision="float32")
    stopped(bench, blocks, 2, 2, precision="float32")
    assert {status.state for status in bench.plan(blocks, precision="float32").statuses.values()} == {
        "interrupted", "planned",
    }  # fmt: skip
    found = bench.run(blocks, precision="float32")
    assert equal(found, expected)
    assert adapters(bench) == adapters(uninterrupted)
    assert [record.timing.pack_size for record in found if record.timing] == [2] * 4
    assert sorted(row["head"] for row in bench.csv()) == ["", "", "model", "model"]
    assert len({(record.cell.method, record.epochs[0].loss) for record in found}) == 4


def saved(bench: TinyBench, monkeypatch: pytest.MonkeyPatch, epochs: int = 3) -> list[Path]:
    """The folders of a run that was saved after each epoch and stopped in the last, newest first."""
    monkeypatch.setattr(checkpointing, "EPOCH_INTERVAL", 0.0)
    monkeypatch.setattr(checkpointing, "COST_FACTOR", 0)
    stopped(bench, MIXED[:2], epochs, 4, precision="float32", epochs=epochs)
    return [checkpoint.path for checkpoint in checkpoints.read_all(bench.results)]


def test_two_generations_are_kept_and_a_broken_one_falls_back(
    bench: TinyBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"precision": "float32", "epochs": 3}
    expected = TinyBench(bench.model, bench.rows, tmp_path / "uninterrupted").run(MIXED[:2], **settings)
    newest, before = saved(bench, monkeypatch)
    assert int(newest.name[-9:]) == 2 * STEPS + 4
    assert int(before.name[-9:]) == 2 * STEPS
    values = newest / checkpoints.TENSORS
    values.write_bytes(values.read_bytes()[:-1])
    view = Asking(Stopper(), 0, 0)
    records = Runner(bench.plan(MIXED[:2], **settings), Options(bench.results, offline=True), view).run()
    assert view.steps[0] == (3, 1)
    assert equal(records, expected)


def test_every_truncation_and_flipped_bit_of_a_checkpoint_is_noticed(
    bench: TinyBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(bench, monkeypatch)[0]
    checkpoint = checkpoints.read_all(bench.results)[0]
    content, tensors = (path / checkpoints.MANIFEST).read_bytes(), checkpoint.read_tensors()
    assert checkpoints.parse_manifest(content) == checkpoint.manifest
    for length in range(len(content)):
        with pytest.raises(ValueError, match="checksum"):
            checkpoints.parse_manifest(content[:length])
    draw = np.random.default_rng(3)
    for index, bit in zip(draw.integers(0, len(content), 500), draw.integers(0, 8, 500), strict=True):
        damaged = bytearray(content)
        damaged[index] ^= 1 << bit
        with pytest.raises(ValueError, match="checksum"):
            checkpoints.parse_manifest(bytes(damaged))
    part = tensors[:600]
    small = checkpoint.manifest.model_copy(update={"files": describe({checkpoints.TENSORS: part})})
    folder = Checkpoint(small, checkpoints.save(bench.results, "small", small, part))
    assert folder.read_tensors() == part
    for length in range(600):
        (folder.path / checkpoints.TENSORS).write_bytes(part[:length])
        with pytest.raises(ValueError, match="has changed"):
            folder.read_tensors()
    for index, bit in zip(draw.integers(0, 600, 500), draw.integers(0, 8, 500), strict=True):
        damaged = bytearray(part)
        damaged[index] ^= 1 << bit
        (folder.path / checkpoints.TENSORS).write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match="has changed"):
            folder.read_tensors()


def test_what_other_code_has_begun_begins_again(
    bench: TinyBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(bench, MIXED[:1], 2, 2)
    monkeypatch.setattr(provenance, "code", lambda method: "0" * 12)
    provenance.current.cache_clear()
    try:
        (status,) = bench.plan(MIXED[:1]).statuses.values()
        assert status.state == "interrupted"
        assert "begins again: code" in status.reason
        view = Asking(Stopper(), 0, 0)
        Runner(bench.plan(MIXED[:1]), Options(bench.results, offline=True), view).run()
        assert view.steps[0] == (1, 1)
    finally:
        monkeypatch.undo()
        provenance.current.cache_clear()


def test_a_pack_that_cannot_be_saved_trains_on_and_says_so_once(
    bench: TinyBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "EPOCH_INTERVAL", 0.0)
    monkeypatch.setattr(checkpointing, "COST_FACTOR", 0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save", full)
    view = QuietView()
    assert [record.status for record in bench.follow(bench.plan(MIXED[:2]), view)] == ["done"] * 3
    assert view.warnings == ["A pack in training cannot be saved (No space left on device); training continues."]


def test_cells_that_diverge_leave_a_pack_of_which_they_are_most(bench: TinyBench, tmp_path: Path) -> None:
    """The others train on in a smaller pack, with the numbers that they would have had; also after a stop."""
    blocks: Blocks = ({"method": "lora", "rank": 4, "lr": [1e30, 2e30, 4e30, 1e-2, 3e-3]}, {"method": "head"})
    settings: dict[str, Any] = {"precision": "float32", "epochs": 4}
    good: Blocks = ({"method": "lora", "rank": 4, "lr": [1e-2, 3e-3]},)
    sizes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        proper = Trainer._run_epoch

        def run(self: Trainer, epoch: int) -> None:
            sizes.append(len(self.pack.cells))
            proper(self, epoch)

        patch.setattr(Trainer, "_run_epoch", run)
        blocks = blocks[:1]
        records = by_cell(bench.run(blocks, **settings))
    assert sizes == [5, 2, 2, 2]
    alone = TinyBench(bench.model, bench.rows, tmp_path / "alone").run(good, **settings)
    for one in alone:
        found = records[one.cell]
        assert found.status == "done"
        np.testing.assert_allclose([e.loss for e in found.epochs], [e.loss for e in one.epochs], rtol=1e-4)  # type: ignore[arg-type]
    bad = [record for record in records.values() if record.cell.lr > 1]
    assert [record.status for record in bad] == ["diverged"] * 3
    assert {len(record.epochs) for record in bad} == {1}
    assert all("epoch 1, step " in (record.reason or "") for record in bad)
    again = TinyBench(bench.model, bench.rows, tmp_path / "again")
    stopped(again, blocks, 3, 2, **settings)
    assert equal(again.run(blocks, **settings), list(records.values()))


def test_a_diverged_cell_has_the_same_record_in_any_pack(bench: TinyBench, tmp_path: Path) -> None:
    wild: Blocks = ({"method": "lora", "rank": 4, "lr": 1e30},)
    company: Blocks = (*wild, *MIXED)
    (alone,) = bench.run(wild, precision="float32")
    found = by_cell(TinyBench(bench.model, bench.rows, tmp_path / "company").run(company, precision="float32"))[
        alone.cell
    ]
    assert (found.status, found.reason, len(found.epochs)) == (alone.status, alone.reason, len(alone.epochs))
    assert (found.counts, found.predictions) == (alone.counts, alone.predictions)
    assert alone.last_steps is not None
    assert [step.step for step in found.last_steps or ()] == [step.step for step in alone.last_steps]
    for one, other in zip(found.last_steps or (), alone.last_steps, strict=True):
        assert one.lr == other.lr
        assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-4, nan_ok=True)
        assert float(one.grad_norm) == pytest.approx(float(other.grad_norm), rel=1e-4, nan_ok=True)


def failing_at(step: int, error: Callable[[], Exception], above: int) -> Callable[..., Any]:
    """A `Trainer._gradients` that fails in a step of packs of more than `above` cells."""
    proper = Trainer._gradients

    def gradients(self: Trainer, *rest: Any) -> Any:
        if self.steps == step and len(self.pack.cells) > above:
            raise error()
        return proper(self, *rest)

    return gradients


def test_memory_that_runs_out_at_any_of_the_first_steps_changes_no_loss(bench: TinyBench, tmp_path: Path) -> None:
    blocks: Blocks = (MIXED[0], {"method": "lora", "rank": 4})
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 2}  # twenty steps
    plan = bench.plan(blocks, **settings)
    options = Options(bench.results, offline=True)
    worker = Training(plan.setup(options), QuietView())  # loads encoder and data once
    expected = by_cell(Runner(plan, options, QuietView(), executor=LocalExecutor(worker)).run())
    kinds: Iterator[Callable[[], Exception]] = itertools.cycle(
        [torch.OutOfMemoryError, MemoryError, lambda: RuntimeError("can't allocate memory")]
    )
    for step, kind in zip(range(1, 21), kinds, strict=False):
        own = TinyBench(bench.model, bench.rows, tmp_path / str(step))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_gradients", failing_at(step, kind, above=1))
            options = Options(own.results, offline=True)
            plan = plans.make(plan.grid, own.results, 16)
            found = Runner(plan, options, QuietView(), executor=LocalExecutor(worker)).run()
        assert {record.timing.halved for record in found if record.timing} == {1}
        for record in found:
            assert_same_numbers(record, expected[record.cell])


def test_a_cell_that_alone_has_not_enough_memory_says_so(bench: TinyBench) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_gradients", failing_at(1, MemoryError, above=0))
        (record,) = bench.run(MIXED[:1])
    assert (record.status, record.reason) == ("oom", "MemoryError")
    assert [status.state for status in bench.plan(MIXED[:1]).statuses.values()] == ["oom"]
    assert [record.status for record in bench.run(MIXED[:1], retry=("oom",))] == ["done"]
