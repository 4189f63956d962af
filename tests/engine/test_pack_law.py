"""A cell's result does not depend on its pack: sixteen mixed cells together are sixteen cells alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.engine.encoder.attention import SharedDropout
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.progress import Progress
from lora_bench.methods.recipe import Shape
from lora_bench.methods.rules import FisherPosterior
from lora_bench.testing import make_cell
from tests.engine.engine_factory import backbone, difference, losses, start, trained, values

WEIGHTS, LOSSES = 1e-8, 1e-10
MIXED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mini", {"rank": 4, "a": 9, "b": 6, "lr": 2e-2}),
    ("mini", {"rank": 7, "a": 5, "b": 12, "lr": 1e-2, "targets": "attention+dense", "weight_decay": 0.1}),
    ("mini", {"rank": 2, "a": 16, "b": 3, "lr": 3e-2, "targets": "qv", "clip": 0.05}),
    ("mini", {"rank": 7, "a": 11, "b": 11, "lr": 5e-3, "warmup": 0.5, "alpha": 16.0}),
    ("mini", {"init": "published", "head_lr": 5e-3}),
    ("lora", {"rank": 4, "lr": 1e-2, "weight_decay": 0.05}),
    ("lora", {"rank": 2, "lr": 3e-3, "targets": "attention+dense", "warmup": 0.0}),
    ("lora", {"rank": 7, "lr": 5e-3, "targets": "qv", "clip": 0.0}),
    ("xs", {"rank": 7, "lr": 2e-2}),
    ("xs", {"rank": 4, "lr": 1e-2, "targets": "qv", "warmup": 0.3, "clip": 0.2}),
    ("cora", {"rank": 2, "lr": 1e-2}),
    ("cora", {"rank": 7, "lr": 4e-3, "targets": "attention+dense", "alpha": 4.0}),
    ("cora-init", {"rank": 4, "lr": 5e-3, "head_lr": 1e-3}),
    ("cora-init", {"rank": 2, "lr": 2e-3, "targets": "qv", "weight_decay": 0.2}),
    ("head", {"lr": 1e-2}),
    ("head", {"lr": 2e-3, "weight_decay": 0.3, "warmup": 0.25}),
    ("dora", {"rank": 3, "lr": 1e-2, "targets": "attention+dense", "weight_decay": 0.1}),
    ("ia3", {"lr": 2e-2, "targets": "kv+ffn"}),
    ("bitfit", {"lr": 2e-2, "targets": "attention+dense", "weight_decay": 0.1}),
    ("tinylora", {"rank": 2, "lr": 2e-2}),
    ("tinylora", {"rank": 5, "lr": 2e-2}),
    ("svft-banded", {"b": 3, "lr": 2e-2, "targets": "attention+dense"}),
)
NAMED = {method for method, _ in MIXED}
OTHERS: list[tuple[str, dict[str, Any]]] = [
    (name, {}) for name, recipe in methods.RECIPES.items() if not recipe.trains_backbone and name not in NAMED
]
Found = dict[Cell, Progress]


def mixed(precision: str = "float64") -> list[Cell]:
    """The cells; a method that this file does not name has one too."""
    return [make_cell(method, precision=precision, **settings) for method, settings in (*MIXED, *OTHERS)]


@pytest.fixture(scope="module")
def exact() -> Backbone:
    """The encoder in float64."""
    return backbone()


@pytest.fixture(scope="module")
def packed(exact: Backbone) -> Found:
    """All cells as one pack."""
    return trained(mixed(), exact)


@pytest.fixture(scope="module")
def alone(exact: Backbone) -> Found:
    """Every cell as a pack of one."""
    return {one: trained([one], exact)[one] for one in mixed()}


def assert_agree(one: Found, other: Found) -> None:
    """The cells of `one` have in `other` the same values, and the same loss and gradient norm at every step."""
    weight = {each: difference(values(one[each]), values(other[each])) for each in one}
    loss = {each: float(np.abs(losses(one)[each] - losses(other)[each]).max()) for each in one}
    norm = {each: norm_difference(one[each], other[each]) for each in one}
    print(
        f"largest difference: weights {max(weight.values()):.2g}, losses {max(loss.values()):.2g}, "
        f"gradient norms {max(norm.values()):.2g}"
    )
    assert {each.method: far for each, far in weight.items() if not far < WEIGHTS} == {}
    assert {each.method: far for each, far in loss.items() if not far < LOSSES} == {}
    assert {each.method: far for each, far in norm.items() if not far < LOSSES} == {}


def norm_difference(one: Progress, other: Progress) -> float:
    """The largest difference of a gradient norm, relative to the norm."""
    norms, others = (progress.recent_steps[:, 2] for progress in (one, other))
    assert len(norms) == len(one.losses)
    return float((np.abs(norms - others) / norms).max())


def test_a_pack_of_sixteen_is_sixteen_packs_of_one(packed: Found, alone: Found) -> None:
    assert len(packed) >= 16
    assert {each.method for each in packed} >= {"mini", "lora", "xs", "cora", "cora-init", "head"}
    assert {len(progress.losses) for progress in packed.values()} == {12}
    assert_agree(packed, alone)


def test_the_metrics_and_predictions_are_the_same(packed: Found, alone: Found) -> None:
    for each, progress in packed.items():
        assert progress.metrics == alone[each].metrics
        assert np.array_equal(progress.predictions, alone[each].predictions)  # type: ignore[arg-type]


def test_order_does_not_matter(exact: Backbone, packed: Found) -> None:
    shuffled = mixed()
    np.random.default_rng(5).shuffle(shuffled)
    assert shuffled != mixed()
    assert_agree(trained(shuffled, exact), packed)


def test_company_does_not_matter(exact: Backbone, packed: Found) -> None:
    assert_agree(trained([mixed()[i] for i in (13, 2, 8, 14, 6)], exact), packed)


def test_the_adapters_have_moved_and_count(exact: Backbone, packed: Found) -> None:
    """Otherwise the law would hold of nothing."""
    head = packed[make_cell("head")].losses
    for each, progress in packed.items():
        before, after = start(each, exact), values(progress)
        moved = {name: float((after[name] - before[name]).abs().max()) for name in after}
        assert max(moved["head.dense.weight"], moved["head.out_proj.weight"]) > 1e-3, each
        if each.method == "head":
            continue
        frozen = [f".{f.name}" for f in methods.of(each).factors(each, Shape(32, 32)) if not f.trainable]
        still = ("key.b", "key.t", *frozen)  # softmax ignores a shift of all keys
        adapter = [far for name, far in moved.items() if not name.startswith("head.") and not name.endswith(still)]
        if each.init == "published":
            assert max(adapter) == 0
        else:
            assert min(adapter) > 1e-4, each
            assert abs(progress.losses[-1] - head[-1]) > 1e-6, each  # Uni-LoRA's few values change little


def test_cells_differ_from_each_other(packed: Found) -> None:
    """But for those that train as LoRA, and have a posterior afterwards."""
    distinct = {one: p for one, p in packed.items() if not isinstance(methods.of(one).posterior, FisherPosterior)}
    last = sorted(progress.losses[-1] for progress in distinct.values())
    assert min(high - low for low, high in pairwise(last)) > 1e-9


def test_dropout_is_on(exact: Backbone) -> None:
    quiet = backbone()
    for module in quiet.model.modules():
        if isinstance(module, SharedDropout):
            module.p = 0.0
    one = make_cell("lora", epochs=1)
    with_dropout, without = trained([one], exact)[one].losses, trained([one], quiet)[one].losses
    assert min(abs(a - b) for a, b in zip(with_dropout, without, strict=True)) > 1e-6


def test_regression_obeys_the_law_too(exact: Backbone) -> None:
    cells = [make_cell(method, task="stsb", **settings) for method, settings in MIXED[::4]]
    assert_agree(trained(cells, exact), {one: trained([one], exact)[one] for one in cells})


def test_in_float32_the_predictions_are_the_same_up_to_one() -> None:
    single, cells = backbone(precision="float32"), mixed("float32")
    packed = trained(cells, single)
    wrong, varied = [], 0
    for one in cells:
        alone = trained([one], single)[one]
        assert alone.predictions is not None
        assert values(alone)["head.dense.weight"].dtype == torch.float32
        varied += len(np.unique(alone.predictions)) > 1
        wrong.append(int((alone.predictions != packed[one].predictions).sum()))
    print(f"predictions that differ, by cell: {wrong}")
    assert max(wrong) <= 1
    assert varied >= 12  # cells that predict one class would agree anyway
