"""On a GPU, every method: recorded steps are issued steps, the pack law, the CPU's numbers, pauses and posteriors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.data import DataSource, load
from lora_bench.data.tokens import tokenize
from lora_bench.engine import posterior
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Table
from lora_bench.engine.evaluation import Split
from lora_bench.engine.trainer import Trainer
from lora_bench.models import location
from lora_bench.run import checkpointing
from lora_bench.testing import make_cell

FOLDER = os.environ.get("LORA_BENCH_MODEL", location("sample"))
DEVICE, CPU = torch.device("cuda"), torch.device("cpu")
SST2 = tasks.get("sst2")
PACKED = [name for name, recipe in methods.RECIPES.items() if not recipe.trains_backbone]
WHOLE = [name for name, recipe in methods.RECIPES.items() if recipe.trains_backbone]
POSTERIORS = [name for name, recipe in methods.RECIPES.items() if recipe.posterior]
# Rounding may decide which components a rank schedule cuts: then two runs in less than float64 have little in common.
DISCRETE = [name for name, recipe in methods.RECIPES.items() if recipe.gate]
# Their a divides the rank. At 16 the ranks would be 64 and 128, and GraLoRA's a · rank 2,048, which gives every cell of
# its pack the memory of that rank.
BLOCKWISE = ("gralora", "melora")
LIMITS = {"float64": 1e-9, "float32": 1e-4, "bf16": 0.2}
ROWS = 320


def cell(method: str, precision: str, **other: Any) -> Cell:
    """A cell at a rate at which no method is chaotic; gaps and intervals of rules are longer than the training."""
    sizes: dict[str, Any] = {"rank": 4, "a": 16, "b": 16, "targets": "attention+dense"}
    if method in WHOLE:
        sizes |= {"a": 1, "b": 1000}
    elif method in BLOCKWISE:
        sizes |= {"a": 2}
    settings = {"lr": min(1e-3, methods.get(method).default_lr), "head_lr": 1e-3, "batch_size": 32, "epochs": 6}
    return make_cell(method, **sizes | settings | {"precision": precision, "max_length": 64} | other)


def company(precision: str, **other: Any) -> list[Cell]:
    """Every method that can be packed, at two ranks where it has one."""
    cells = [cell(method, precision, rank=rank, **other) for method in PACKED for rank in (4, 8)]
    return list(dict.fromkeys(cells))


@pytest.fixture(scope="module", params=["float64", "float32", "bf16"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """The encoder on the GPU."""
    return backbones.load(FOLDER, DEVICE, request.param)


def table(on: Backbone, rows: int, skip: int = 0) -> Table:
    """Rows of the bundled sample."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(location("sample"))
    split = load(SST2, DataSource.parse(None, sample=True)).train
    return on.table(tokenize(split, tokenizer, 64).take(np.arange(skip, skip + rows)))


def trainer_of(cells: Sequence[Cell], on: Backbone, record: bool = True) -> Trainer:
    """A trainer of these cells, with or without CUDA graphs."""
    trainer = Trainer(Pack(cells, on, 2), SST2, table(on, ROWS), Split(table(on, 80, ROWS)))
    if not record:
        trainer.prepare = lambda steps=None: None  # type: ignore[method-assign]
    return trainer


def losses_of(cells: Sequence[Cell], on: Backbone, record: bool = True) -> dict[Cell, list[float]]:
    """The losses of each cell."""
    trainer = trainer_of(cells, on, record)
    losses = {progress.cell: progress.losses for progress in trainer.run()}
    assert bool(trainer.graphs._recorded) == record
    return losses


def without_dropout(on: Backbone) -> Backbone:
    """The encoder without dropout, whose masks differ between kinds of device."""
    on.sites = tuple(site._replace(rate=0.0) for site in on.sites)
    on.config.hidden_dropout_prob = on.config.classifier_dropout = 0.0
    return on


def report_worst(what: str, one: dict[Cell, list[float]], other: dict[Cell, list[float]], limit: float) -> None:
    """Print how far apart each cell's losses are, and require that all are near."""
    worst = {cell: float(np.abs(np.array(one[cell]) - np.array(other[cell])).max()) for cell in one}
    for member, difference in worst.items():
        print(f"{member.precision} {member.method} r={member.rank}: {what} {difference:.2g}")
    assert all(np.isfinite(losses).all() for losses in one.values())
    far = {f"{cell.method} r={cell.rank}": value for cell, value in worst.items() if not value < limit}
    assert not far, far


def test_recorded_steps_are_issued_steps(backbone: Backbone) -> None:
    cells = [
        one for one in company(backbone.precision) if backbone.precision == "float64" or one.method not in DISCRETE
    ]
    recorded, issued = losses_of(cells, backbone), losses_of(cells, backbone, record=False)
    report_worst("recorded - issued", recorded, issued, LIMITS[backbone.precision])


@pytest.mark.parametrize("method", PACKED)
def test_a_cell_does_not_depend_on_its_pack(method: str) -> None:
    on = backbones.load(FOLDER, DEVICE, "float64")
    one = cell(method, "float64")
    others = [cell(method, "float64", rank=8), cell("lora", "float64", rank=16), cell("mini", "float64", rank=3)]
    together = losses_of(list(dict.fromkeys([one, *others])), on)
    report_worst("packed - solo", losses_of([one], on), together, LIMITS["float64"])


@pytest.mark.parametrize("method", DISCRETE)
def test_a_rank_schedule_cuts_as_many_in_bf16(method: str) -> None:
    one = cell(method, "bf16", epochs=6)
    trainer = trainer_of([one], backbones.load(FOLDER, DEVICE, "bf16"))
    (progress,) = trainer.run()
    assert np.isfinite(progress.losses).all()
    recipe = methods.get(method)
    gates = torch.cat([v.flatten() for n, v in trainer.pack.state(0).adapter.items() if n.endswith(f".{recipe.gate}")])
    step = trainer.last_step
    assert not recipe.memory or int((gates == 0).sum()) == recipe.cut(one, step, len(gates))


def test_the_losses_are_the_cpus() -> None:
    cells = [cell(method, "float64", epochs=2) for method in PACKED]
    sides = [without_dropout(backbones.load(FOLDER, device, "float64")) for device in (DEVICE, CPU)]
    on_gpu, on_cpu = (losses_of(cells, side, record=False) for side in sides)
    report_worst("GPU - CPU", on_gpu, on_cpu, 1e-7)


@pytest.mark.parametrize("method", WHOLE)
def test_the_losses_of_a_whole_encoder_are_the_cpus(method: str) -> None:
    one = cell(method, "float64", epochs=2)
    sides = [without_dropout(backbones.load(FOLDER, device, "float64", trains=True)) for device in (DEVICE, CPU)]
    on_gpu, on_cpu = (losses_of([one], side, record=False) for side in sides)
    report_worst("GPU - CPU", on_gpu, on_cpu, 1e-7)


@pytest.mark.parametrize("method", WHOLE)
def test_a_whole_encoder_trains_in_bf16(method: str) -> None:
    one = cell(method, "bf16", b=20, epochs=6)
    losses = losses_of([one], backbones.load(FOLDER, DEVICE, "bf16", trains=True))[one]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.parametrize("methods_of_pack", [PACKED, *([name] for name in WHOLE)], ids=lambda names: names[-1])
def test_a_pause_changes_nothing(methods_of_pack: list[str]) -> None:
    """Stopped in the second epoch, and resumed in a new trainer from what a checkpoint holds."""
    on = backbones.load(FOLDER, DEVICE, "float64", trains=methods_of_pack[0] in WHOLE)
    cells = [cell(method, "float64", epochs=3, b=16 if methods_of_pack is PACKED else 4) for method in methods_of_pack]
    whole, paused, resumed = (trainer_of(cells, on, record=False) for _ in range(3))
    batches = [rows for epoch in (1, 2, 3) for rows in whole.batch_rows(epoch)]
    for trainer, steps in ((whole, batches), (paused, batches[:13])):
        with trainer.pack:
            trainer.train(steps)
    states = {state.progress.cell.id: state for state in checkpointing.copy_states(paused)}
    checkpointing.restore(resumed, states)
    with resumed.pack:
        resumed.train(batches[13:])
    for position, one in enumerate(whole.pack.cells):
        expected, actual = (trainer.pack.state(position).flat() for trainer in (whole, resumed))
        difference = float((expected - actual).abs().max())
        print(f"{one.method}: whole - resumed {difference:.2g}")
        assert difference < 1e-9, one.method


@pytest.mark.parametrize("precision", ["float64", "bf16"])
@pytest.mark.parametrize("method", POSTERIORS)
def test_posteriors_are_the_cpus(method: str, precision: str) -> None:
    """Of the same trained cell, in float64; in bf16 they are there, and finite."""
    one = cell(method, precision, epochs=6)
    trainer = trainer_of([one], backbones.load(FOLDER, DEVICE, precision))
    (progress,) = trainer.run()
    averaged = posterior.evaluate(trainer, progress)
    assert averaged is not None
    assert averaged.scores.calibration is not None
    assert all(map(np.isfinite, averaged.scores.calibration.values()))
    if precision == "float64":
        pack = Pack([one], backbones.load(FOLDER, CPU, "float64"), 2, hooked=True)
        assert progress.state is not None
        pack.load(0, progress.state)
        predict, precision_on_cpu = posterior.predictor(pack, table(pack.backbone, ROWS))
        expected = predict(table(pack.backbone, 80, ROWS))
        on_gpu = Pack([one], trainer.pack.backbone, 2, hooked=True)
        on_gpu.load(0, progress.state)
        ours, ours_precision = posterior.predictor(on_gpu, trainer.table)
        probabilities = ours(trainer.evaluation.table).cpu()
        assert float((probabilities - expected).abs().max()) < 1e-7
        assert precision_on_cpu is None or ours_precision == pytest.approx(precision_on_cpu, rel=1e-6)
