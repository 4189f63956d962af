"""On a GPU: recorded steps are issued steps, the pack law holds, and the loss is the CPU's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.data import DataSource, load
from lora_bench.data.tokens import tokenize
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Table
from lora_bench.engine.evaluation import Split
from lora_bench.engine.kernels import tiles
from lora_bench.engine.kernels.tiles import ProductKind, Tiles, TilesBySize
from lora_bench.engine.progress import Progress
from lora_bench.engine.trainer import Trainer
from lora_bench.models import location
from lora_bench.testing import make_encoder, make_tokens
from tests.engine.test_fused import FAMILY

FOLDER = os.environ.get("LORA_BENCH_MODEL", location("sample"))
SST2 = tasks.get("sst2")
MIX = [
    ("lora", 4), ("mini", 16), ("xs", 8), ("cora", 8), ("lora", 8), ("cora-init", 4), ("head", None), ("mini", 4),
    ("lora-plus", 4), ("dora", 4), ("ia3", None), ("bitfit", None),
]  # fmt: skip


def cell(method: str, rank: int | None, precision: str, **other: object) -> Cell:
    adapted = {"rank": rank, "alpha": 16.0, "targets": "attention+dense"} if rank else {}
    inner = {"a": 24, "b": 16} if method == "mini" else {"targets": "kv+ffn"} if method == "ia3" else {}
    values = {
        "model": "m", "data": "d", "task": "sst2", "method": method, "seed": 3, "lr": 1e-3, "epochs": 12,
        "precision": precision, "max_length": 64,
    }  # fmt: skip
    return Cell.model_validate(values | adapted | inner | other)


@pytest.fixture(scope="module", params=["float64", "float32", "bf16"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbones.load(FOLDER, torch.device("cuda"), request.param)


def table(on: Backbone, rows: int, skip: int = 0) -> Table:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(location("sample"))
    split = load(SST2, DataSource.parse(None, sample=True)).train
    made = tokenize(split, tokenizer, 64).take(np.arange(skip, skip + rows))
    return on.table(made)


def run(cells: list[Cell], on: Backbone, record: bool = True, rows: int = 320) -> dict[Cell, Progress]:
    made = Trainer(Pack(cells, on, 2), SST2, table(on, rows), Split(table(on, 80, rows)))
    if not record:
        made.prepare = lambda steps=None: None  # type: ignore[method-assign]
    found = dict(zip(made.pack.cells, made.run(), strict=True))
    assert bool(made.graphs._recorded) == record
    return found


def company(precision: str) -> list[Cell]:
    fast = {"lora-plus": 1e-4}  # its B learns at 16 times the rate; at 1e-3 that is chaotic
    return [cell(method, rank, precision, lr=fast.get(method, 1e-3)) for method, rank in MIX]


def worst(one: list[float], other: list[float]) -> float:
    return float(np.abs(np.array(one) - np.array(other)).max())


def test_recorded_steps_are_issued_steps(backbone: Backbone) -> None:
    cells = company(backbone.precision)
    recorded, issued = run(cells, backbone), run(cells, backbone, record=False)
    limit = {"float64": 1e-10, "float32": 1e-5, "bf16": 0.05}[backbone.precision]
    for one in cells:
        difference = worst(recorded[one].losses, issued[one].losses)
        print(f"{backbone.precision} {one.method} r={one.rank}: recorded - issued {difference:.2g}")
        assert difference < limit
        assert len(recorded[one].losses) == 120
        norms, issued_norms = (found[one].recent_steps[:, 2] for found in (recorded, issued))
        assert len(norms) == 50
        assert (norms > 0).all()
        assert backbone.precision != "float64" or np.abs(norms / issued_norms - 1).max() < limit * 10


def test_full_fine_tuning_is_recorded_too(backbone: Backbone) -> None:
    whole = backbones.load(FOLDER, torch.device("cuda"), backbone.precision, trains=True)
    one = cell("full", None, backbone.precision, lr=2e-5)
    (recorded,), (issued,) = run([one], whole).values(), run([one], whole, record=False).values()
    difference = worst(recorded.losses, issued.losses)
    print(f"{backbone.precision} full: recorded - issued {difference:.2g}")
    assert difference < {"float64": 1e-10, "float32": 1e-4, "bf16": 0.05}[backbone.precision]
    assert recorded.losses[0] > recorded.losses[-1]


@pytest.mark.parametrize("kind", FAMILY)
def test_full_fine_tuning_of_every_hand_written_family_is_recorded_or_issued(kind: str) -> None:
    """It runs transformers' own code of the family, which may do what a graph cannot hold: MPNet's does."""
    losses = []
    for record in (True, False):
        whole = Backbone(make_encoder(kind), torch.device("cuda"), "bf16", trains=True)
        train, evaluation = (whole.table(make_tokens(count, 1, "sst2")) for count in (320, 40))
        made = Trainer(Pack([cell("full", None, "bf16", lr=2e-5)], whole, 2), SST2, train, Split(evaluation))
        if not record:
            made.prepare = lambda steps=None: None  # type: ignore[method-assign]
        (progress,) = made.run()
        assert bool(made.graphs._recorded) == (record and kind != "mpnet")
        assert (made.graphs.refusal is None) == (not record or kind != "mpnet"), made.graphs.refusal
        losses.append(progress.losses)
    assert worst(*losses) < 0.05


def test_a_cell_does_not_depend_on_its_pack(backbone: Backbone) -> None:
    cells = company(backbone.precision)
    together = run(cells, backbone)
    limit = {"float64": 1e-10, "float32": 1e-4, "bf16": 0.2}[backbone.precision]
    for one in cells:
        (alone,) = run([one], backbone).values()
        difference = worst(together[one].losses, alone.losses)
        print(f"{backbone.precision} {one.method} r={one.rank}: packed - solo {difference:.2g}")
        assert difference < limit


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != tiles.HOPPER, reason="no Hopper GPU"
)
def test_steps_with_the_kernels_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded or issued, packed or alone, they train as cuBLAS does, within what bf16's rounding explains."""
    on = backbones.load(FOLDER, torch.device("cuda"), "bf16")
    cells = company("bf16")
    plain = run(cells, on)
    assert on.fused is not None
    monkeypatch.setattr(tiles, "multiprocessors", lambda _: 1)  # no product is too small for the kernels
    tiling = Tiles(64, 64, 32, warps=4, stages=3, parts=2, programs=2)
    for product in on.fused.layers[0].products.values():
        for adapted in (False, True):
            kind = ProductKind(product.weight.shape[0], product.weight.shape[1], adapted)
            for table in (tiles.FORWARD, tiles.BACKWARD):
                monkeypatch.setitem(table, kind, TilesBySize(tiling, tiling))
    recorded, issued = run(cells, on), run(cells, on, record=False)
    for one in cells:
        (alone,) = run([one], on).values()
        for what, other, limit in (("issued", issued[one], 0.05), ("alone", alone, 0.2), ("cuBLAS", plain[one], 0.2)):
            difference = worst(recorded[one].losses, other.losses)
            print(f"{one.method} r={one.rank}: recorded - {what} {difference:.2g}")
            assert difference < limit


def test_packs_leave_nothing_on_the_card(backbone: Backbone) -> None:
    """cuBLAS keeps a workspace for every stream, so all packs of a process use one."""
    cells = company(backbone.precision)[:2]
    run(cells, backbone)
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        run(cells, backbone)
    assert torch.cuda.memory_allocated() - before < 2**24


def test_the_loss_is_the_cpus_without_dropout(backbone: Backbone) -> None:
    if backbone.precision != "float64":
        pytest.skip("compared in float64")
    one = cell("lora", 8, "float64")
    on_cpu = backbones.load(FOLDER, torch.device("cpu"), "float64")
    losses = []
    for on in (backbone, on_cpu):
        on.sites = tuple(site._replace(rate=0.0) for site in on.sites)
        on.config.hidden_dropout_prob = on.config.classifier_dropout = 0.0
        (found,) = run([one], on, record=on is backbone).values()
        losses.append(found.losses)
    assert worst(*losses) < 1e-9
    assert Path(FOLDER).exists()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_any_gpu_may_be_named() -> None:
    """Triton starts kernels on the current GPU, whatever the tensors are on."""
    cells = [cell(method, rank, "float32") for method, rank in MIX[:4]]
    losses = []
    for number in range(2):
        on = backbones.load(FOLDER, torch.device(f"cuda:{number}"), "float32")
        losses.append([progress.losses for progress in run(cells, on).values()])
    torch.cuda.set_device(0)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
