"""Whole weights that train by a rule: which layers are drawn, weight decay, the sample of outliers, divergence."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_bench.contracts.kit import Workbench, cell_of, table_of, trainer_of
from lora_bench.engine import layer_outliers
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.adapters.whole import decays
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.targets import layer_of
from lora_bench.engine.encoder.windows import Batch
from lora_bench.engine.ruled_optimiser import RuledAdamW
from lora_bench.engine.trainer import Trainer
from lora_bench.methods import RECIPES
from lora_bench.methods.owlore import OwLore
from lora_bench.methods.rules import LayerDraws, Projection
from lora_bench.tasks import get

SIZES: dict[str, dict[str, Any]] = {
    "galore": {"rank": 3, "alpha": 6.0, "b": 2},
    "lisa": {"a": 1, "b": 2},
    "owlore": {"rank": 3, "a": 1, "b": 2},
    "loqt": {"rank": 3, "alpha": 6.0, "b": 3},
}
RULED = tuple(name for name, recipe in RECIPES.items() if recipe.weights(cell_of(name)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """The tiny encoder."""
    return Workbench(tmp_path_factory.mktemp("encoder"))


def made_of(bench: Workbench, method: str, rows: int = 24, **changes: Any) -> Trainer:
    """A trainer of one cell without warm-up."""
    settings = {"precision": "float64", "batch_size": 8, "epochs": 4, "warmup": 0.0, "lr": 1e-3, **SIZES[method]}
    return trainer_of(Pack([cell_of(method, **settings | changes)], bench.load("float64"), 2), get("cola"), rows)


def optimiser_of(trainer: Trainer) -> RuledAdamW:
    assert isinstance(trainer.optimiser, RuledAdamW)
    return trainer.optimiser


def take_steps(trainer: Trainer, count: int) -> dict[str, Tensor]:
    """All weights after some steps."""
    with trainer.pack:
        trainer.train(trainer.batch_rows(1)[:count])
    return trainer.pack.state(0).adapter


def drawn(trainer: Trainer, intervals: int = 2000) -> list[str]:
    """Which of the layers trains in each interval, where it is one."""
    optimiser, interval = optimiser_of(trainer), 2
    return [next(iter(optimiser.active_layers(number * interval))) for number in range(intervals)]


@pytest.mark.parametrize("share", [0.02, 0.16])
def test_layers_are_drawn_in_proportion_to_their_outliers(
    share: float, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted({layer for name in bench.load("float64").linears() if (layer := layer_of(name))})
    assert len(names) == 2
    monkeypatch.setattr(layer_outliers, "shares", lambda *_: dict(zip(names, (share, 0.04), strict=True)))
    counts = Counter(drawn(made_of(bench, "owlore")))
    assert counts[names[0]] / counts.total() == pytest.approx(share / (share + 0.04), abs=0.03)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_more_layers_are_drawn_one_after_another_without_replacement(count: int, bench: Workbench) -> None:
    """How often each is among the drawn ones, against the sum over all orders."""
    shares = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    optimiser = optimiser_of(made_of(bench, "owlore"))
    optimiser.layers, optimiser.weights_of_layers = list(shares), np.log(list(shares.values()))
    optimiser.rule = replace(optimiser.rule, layers=LayerDraws(count, 1))
    expected = dict.fromkeys(shares, 0.0)
    for order in itertools.permutations(shares, count):
        chance, left = 1.0, 1.0
        for layer in order:
            chance, left = chance * shares[layer] / left, left - shares[layer]
        for layer in order:
            expected[layer] += chance
    found = Counter(layer for number in range(4000) for layer in optimiser.active_layers(number))
    assert {layer: found[layer] / 4000 for layer in shares} == pytest.approx(expected, abs=0.03)


def test_a_layer_without_outliers_is_drawn_only_when_no_other_is_left(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted({layer for name in bench.load("float64").linears() if (layer := layer_of(name))})
    monkeypatch.setattr(layer_outliers, "shares", lambda *_: {names[0]: 0.0, names[1]: 0.04})
    assert set(drawn(made_of(bench, "owlore"))) == {names[1]}
    assert optimiser_of(made_of(bench, "owlore", a=2)).active_layers(0) == set(names)


def test_lisa_draws_all_layers_equally_often_and_by_the_seed(bench: Workbench) -> None:
    found = [drawn(made_of(bench, "lisa", seed=seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    counts = Counter(found[0])
    assert len(counts) == 2
    assert min(counts.values()) / counts.total() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("method", RULED)
def test_decay_follows_the_step_of_what_trains_and_decays(method: str, bench: Workbench) -> None:
    """After one step that updates, decay has shrunk each matrix that trained, but for a factor of LoQT."""
    count = 2 if method == "loqt" else 1  # the first batch gives P
    cells = [made_of(bench, method, weight_decay=decay, head_lr=1e-3) for decay in (0.0, 0.1)]
    plain, shrunk = (take_steps(trainer, count) for trainer in cells)
    trainer, rate = cells[1], 1e-3 * float(cells[1].optimiser.lr_multipliers[count - 1, 0])
    layers, checked = optimiser_of(trainer).active_layers(count - 1), Counter[float]()
    for name, value in plain.items():
        trains = layer_of(name) is None or layer_of(name) in layers
        decay = 0.1 if trains and decays(name, value) and method != "loqt" else 0.0
        torch.testing.assert_close(shrunk[name], value * (1 - rate * decay), rtol=0, atol=1e-14)
        checked[decay] += 1
    assert len(checked) == (1 if method == "loqt" else 2)
    assert rate > 1e-4


@pytest.mark.parametrize("method", RULED)
def test_a_cell_that_has_diverged_keeps_its_values(method: str, bench: Workbench) -> None:
    trainer = made_of(bench, method)
    before = take_steps(trainer, 2)
    memory = trainer.memory(0)
    trainer.optimiser.active[0] = False
    after = take_steps(trainer, 3)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(torch.equal(value, memory[name]) for name, value in trainer.memory(0).items())


@pytest.mark.parametrize(("rows", "batches"), [(400, 16), (24, 3)])
def test_outliers_are_those_of_the_first_128_rows(
    rows: int, batches: int, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray[Any, Any]] = []

    def shares(_: Backbone, sample: Iterable[Batch], threshold: float) -> dict[str, float]:
        assert threshold == 13.0
        seen.extend(batch.rows for batch in sample)
        return {}

    monkeypatch.setattr(layer_outliers, "shares", shares)
    trainer = made_of(bench, "owlore", rows)
    assert len(seen) == batches
    assert all(np.array_equal(own, at) for own, at in zip(seen, trainer.batch_rows(1), strict=False))


@pytest.mark.parametrize("family", ["roberta", "distilbert", "megatron-bert", "deberta", "deberta-v2"])
def test_padding_is_no_part_of_the_outliers(family: str, tmp_path: Path) -> None:
    """A row at a time there is no padding; on windows by our code, by transformers', and on padded rows.

    DeBERTa's table of distances is none of the tokens, either.
    """
    backbone = Workbench(tmp_path, family).load("float32")
    rows = table_of(backbone, get("cola"))
    found = [
        layer_outliers.shares(backbone, rows.batches(groups), 2.0)
        for groups in (np.split(np.arange(24), 3), np.split(np.arange(24), 24))
    ]
    assert len(found[0]) == 2
    assert all(0.01 < share < 0.5 for share in found[0].values())
    # Rounding may move single values over the threshold: a layer has some 8,000.
    assert found[0] == pytest.approx(found[1], abs=5e-4)


def test_the_rules_are_the_published_ones() -> None:
    assert set(RULED) == set(SIZES)
    owlore = OwLore().weights(cell_of("owlore", rank=256, a=5, b=50))
    assert owlore.projection == Projection(256, 1.0, 100)
    assert owlore.layers == LayerDraws(5, 50, 13.0)
