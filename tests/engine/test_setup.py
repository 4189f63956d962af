"""A pack's set-up does nothing twice: a start is drawn once for all cells that share it, a weight decomposed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_bench import methods
from lora_bench.engine import randomness
from lora_bench.engine.adapters.bases import basis, svd
from lora_bench.engine.adapters.draw import draw_stack
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.targets import SETS, resolve
from lora_bench.engine.step_rules import RankSchedule
from lora_bench.forecast import families
from lora_bench.forecast.demand import PASSES, count_adapters
from lora_bench.forecast.geometry import TARGET_SETS, Geometry, load_geometry
from lora_bench.methods.recipe import Shape, Zeros
from lora_bench.methods.rules import Step
from lora_bench.testing import make_cell
from lora_bench.testing.encoders import FAMILIES, make_encoder
from tests.engine.engine_factory import backbone

METHODS = ("lora", "mini", "mini-orth", "mini-shared", "tinylora", "vera", "xs", "pissa", "cora", "dora")


def test_the_forecast_knows_the_engines_sets_of_targets() -> None:
    assert tuple(SETS) == TARGET_SETS


@pytest.mark.parametrize("method", METHODS)
def test_a_start_is_drawn_once_for_all_cells_that_share_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Counter[tuple[str | int, ...]] = Counter()
    plain = randomness._raw

    def counting(count: int, *key: str | int) -> Any:
        drawn[count, *key] += 1
        return plain(count, *key)

    monkeypatch.setattr(randomness, "_raw", counting)
    cells = [make_cell(method, lr=lr, seed=seed) for lr in (1e-3, 1e-2, 1e-1) for seed in (0, 1)]
    pack = Pack(cells, backbone(), 2)
    assert set(drawn.values()) == {1}
    for place, one in enumerate(pack.cells):
        alone = Pack([one], backbone(), 2).state(0)
        torch.testing.assert_close(alone.flat(), pack.state(place).flat(), rtol=0, atol=1e-12)


class Operations(TorchDispatchMode):
    """Counts torch's operations by name."""

    def __init__(self, counts: Counter[str]) -> None:
        untyped: Any = super().__init__
        untyped()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("method", ["lora", "mini"])
def test_starts_are_put_together_without_torchs_threads(method: str) -> None:
    """An operation for each cell and weight has as many barriers, each slow where other processes use the cores."""
    cells = [make_cell(method, rank=rank, seed=seed) for rank in (1, 2) for seed in range(4)]
    on = backbone()
    modules = [name for name, linear in on.linears().items() if linear.weight.shape == (32, 32)]
    shape = Shape(32, 32)

    def copies(count: int) -> int:
        counts: Counter[str] = Counter()
        with Operations(counts):
            for versions in zip(*(methods.of(cell).factors(cell, shape) for cell in cells[:count]), strict=True):
                if not isinstance(versions[0].start, Zeros):
                    draw_stack(versions, cells[:count], modules[:count], on)
        return sum(number for name, number in counts.items() if name not in ("detach", "lift_fresh"))  # views

    assert copies(8) == copies(1) > 0


def test_a_weight_is_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One decomposition a weight serves LoRA-XS, TinyLoRA, PiSSA and SVFT, and CoRA where a weight stands alone."""
    shapes: Counter[tuple[int, ...]] = Counter()
    plain = torch.linalg.svd

    def counting(matrix: torch.Tensor, **options: Any) -> Any:
        shapes[tuple(matrix.shape)] += 1
        return plain(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", counting)
    on = backbone()
    for method in ("xs", "cora", "tinylora", "pissa", "cora-init"):
        Pack([make_cell(method, targets="attention+dense", rank=rank) for rank in (2, 5)], on, 2)
    assert shapes == {(32, 32): 2 * 4, (48, 32): 2 * 2, (96, 32): 2}
    names = [f"encoder.layer.1.attention.self.{part}" for part in ("query", "key", "value")]
    assert len({basis(on, name, "joint-svd", "output", 3).data_ptr() for name in names}) == 1


COUNTED = tuple(name for name, recipe in methods.RECIPES.items() if recipe.adapts)
TINY = Geometry(layers=2, hidden=32, inner=48, heads=4, embeddings=367)


def numbers(tensors: Iterable[torch.Tensor]) -> int:
    """Values that lie in memory, each once."""
    stored = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in stored.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["attention", "attention+dense"])
def test_the_forecast_knows_the_weights_of_every_family(family: str, targets: str, tmp_path: Path) -> None:
    """The shapes of the weights that a target set adapts, and the way in which the encoder runs."""
    encoder = make_encoder(family)
    encoder.config.save_pretrained(tmp_path)
    sizes = load_geometry(str(tmp_path))
    assert sizes is not None
    backbone = Backbone(encoder, torch.device("cpu"), "float32")
    linears = backbone.linears()
    shapes = Counter(tuple(linears[name].weight.shape) for name in resolve(linears, targets))
    counted: Counter[tuple[int, ...]] = Counter()
    for shape in sizes.adapted(targets).values():
        counted[shape] += sizes.stored_layers
    assert counted == shapes
    way = "fused" if backbone.fused else "padded" if backbone.padded else "windows"
    assert families.of(family).way == way


@pytest.mark.parametrize("method", COUNTED)
def test_the_forecast_counts_what_the_engine_makes(method: str) -> None:
    """Trained, frozen and composed values, and what is done to outputs, of cells of two ranks and two targets."""
    targets = ({"ia3": "kv+ffn", "red": "ffn-output"}.get(method, "qv"), "attention+dense")
    cells = [make_cell(method, targets=own, rank=rank) for own in targets for rank in (2, 5)]
    pack = Pack(cells, backbone(), 2)
    forecast = count_adapters(cells, TINY, 2)
    assert forecast.trained == sum(block.matrix.numel() for block in pack.blocks())
    updates = pack.bank.updates()
    assert forecast.operands == sum(update.A.numel() + update.B.numel() for update in updates.values())
    frozen = [value for group in pack.bank.groups for value in group.frozen.values()]
    frozen += [part for group in pack.bank.groups for own in (group.start or {}).values() for part in (own.A, own.B)]
    frozen += [norms.weight for group in pack.bank.groups for norms in group.row_norms.values()]
    schedules = [RankSchedule(group, [Step(1, 1, 8)]) for group in pack.bank.groups if group.recipe.gate]
    remembered = sum(schedule.memory.numel() for schedule in schedules)
    # The index is of int64, and a step has the values and a table of them beside it: as four values of float32.
    assigned = sum(4 * group.assigned.index.numel() for group in pack.bank.groups if group.assigned is not None)
    assert forecast.frozen == numbers(frozen) + remembered + assigned
    kept = sum(update.gain.numel() for update in updates.values() if update.gain is not None)
    assert forecast.kept_outputs * len(cells) == kept
    done = {what: getattr(u, what) for u in updates.values() for what in PASSES if getattr(u, what) is not None}
    assert {what for shape in ((32, 32), (32, 48)) for what in methods.get(method).touches(Shape(*shape))} == set(done)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_the_largest_entry_of_every_left_vector_is_positive(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, values, right = svd(matrix)
    torch.testing.assert_close(left * values @ right.mT, matrix, rtol=0, atol=1e-12)
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    turned = svd(-matrix)
    torch.testing.assert_close(turned[0], left, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned[2], -right, rtol=0, atol=1e-12)
