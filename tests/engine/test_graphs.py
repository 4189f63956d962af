"""Steps that are to be recorded as CUDA graphs: which kinds of error are passed on. No GPU is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_bench.engine import graphs
from lora_bench.engine.encoder.windows import Batch
from lora_bench.engine.graphs import StepGraphs
from lora_bench.engine.masks import Masks
from lora_bench.engine.trainer import Trainer
from lora_bench.testing import QuietView, TinyBench, make_tokens
from tests.engine.engine_factory import backbone, table

COPIES = RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")
HELD, STEP = 70, 1000  # bytes


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with memory for graphs."""
    fill(10 * STEP, monkeypatch)


def fill(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave so much memory free on a GPU that holds `HELD` between steps, and `STEP` more in one."""
    readings = {"mem_get_info": (free, 0), "memory_reserved": HELD, "memory_allocated": HELD}
    for name, value in {**readings, "max_memory_allocated": HELD + STEP}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)


def steps(code_is_ours: bool, error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str | None]:
    """Take three steps of one shape, of which none can be recorded; how many were issued, and why."""
    on, issued = backbone(), []
    (batch,) = table(make_tokens(8, 1, "sst2")).batches([np.arange(8)])
    made = StepGraphs(code_is_ours)
    made.forms = [batch.shape]

    def refuse(*_: object) -> None:
        raise error

    def device_step(batch: Batch, masks: Masks) -> Tensor:
        issued.append(batch)
        return torch.zeros(2, 1)

    monkeypatch.setattr(graphs.StepGraphs, "_record", refuse)
    for _ in range(3):
        made.step(batch, device_step, on.masks, lambda masks: None)
    return len(issued), made.refusal


def test_code_that_is_not_ours_is_issued_where_it_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps(False, COPIES, monkeypatch) == (3, str(COPIES))


def test_a_run_says_once_that_its_steps_cannot_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packs of full fine-tuning, of which every second step of a shape would be recorded if there were a GPU."""

    def choose_all(trainer: Trainer) -> None:
        trainer.graphs.forms = [trainer.table.layout(rows).form for rows in trainer.batch_rows(1)]

    def refuse(*_: object) -> None:
        raise RuntimeError("Cannot copy\nmore of it")

    monkeypatch.setattr(Trainer, "prepare", choose_all)
    monkeypatch.setattr(StepGraphs, "_record", refuse)
    bench, view = TinyBench.create(tmp_path, "sst2"), QuietView()
    bench.follow(bench.plan([{"method": "full", "seed": [0, 1]}], precision="float32"), view)
    slower = "Training steps are issued one by one, which is slower for small packs"
    assert view.packs == 2
    assert view.warnings == [f"{slower}: they cannot be recorded as CUDA graphs (Cannot copy)."]


@pytest.mark.parametrize(("code_is_ours", "error"), [(True, COPIES), (False, torch.OutOfMemoryError("out of memory"))])
def test_a_fault_of_ours_and_a_shortage_are_errors(
    code_is_ours: bool, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match=str(error)):
        steps(code_is_ours, error, monkeypatch)


@pytest.mark.parametrize(("free", "records"), [(2 * STEP, True), (2 * STEP - 1, False)])
def test_steps_are_recorded_only_where_a_second_one_fits(
    free: int, records: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else recording would run out of memory, and a pack that fits would be halved."""
    fill(free, monkeypatch)
    outcome = steps(False, COPIES, monkeypatch)
    assert outcome == (3, str(COPIES) if records else None)
