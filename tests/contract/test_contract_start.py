"""Every method before training: the base model's logits, exact counts, draws from the seed, and clear refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from contract_kit import ADAPTING, KINDS, METHODS, PACKED, Load, cell_of, logits_of, plain_encoder, shapes_in
from torch import Tensor

from lora_bench import tasks
from lora_bench.engine.pack import Pack, State
from lora_bench.errors import BenchError
from lora_bench.methods import RECIPES
from lora_bench.methods.recipe import Basis, Normal, Orthonormal, Shape, Uniform

TINY_START = 1e-3  # a trained factor that starts from less noise than this starts at almost nothing
MEANING = {
    "qv": ("query", "value"),
    "attention": ("query", "key", "value"),
    "attention+dense": ("query", "key", "value", "dense"),
    "key, output.dense": ("key", "output.dense"),
}
BASED = tuple(
    name
    for name in ADAPTING
    if any(
        isinstance(factor.start, Basis) and factor.cols > 1
        for factor in RECIPES[name].factors(cell_of(name), Shape(8, 8))
    )
)


def nearly(method: str) -> float:
    """How far step 0 may be from the base model: more where a trained factor starts from small noise."""
    starts = [factor.start for factor in RECIPES[method].factors(cell_of(method), Shape(32, 32)) if factor.trainable]
    noisy = any(isinstance(start, Normal) and start.std < TINY_START for start in starts)
    return 1e-4 if noisy else 1e-6


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_step_zero_is_the_base_model(method: str, task: str, load: Load) -> None:
    found, base = (first_logits(name, task, load) for name in (method, "head"))
    assert base.std() > 0.02
    torch.testing.assert_close(found, base, rtol=0, atol=nearly(method))


def first_logits(method: str, task: str, load: Load) -> Tensor:
    """An untrained cell's logits, with its head enlarged so that differences show."""
    pack = Pack([cell_of(method, task)], load("float32"), tasks.get(task).num_outputs)
    state = pack.state(0)
    pack.load(0, State(state.adapter, {name: 5 * value for name, value in state.head.items()}))
    return logits_of(pack, tasks.get(task))


@pytest.mark.parametrize("targets", MEANING)
@pytest.mark.parametrize("method", ADAPTING)
def test_trainable_count_is_the_formula(method: str, targets: str, load: Load, folder: Path) -> None:
    cell = cell_of(method, targets=targets)
    shapes = shapes_in(plain_encoder(folder), MEANING[targets])
    pack = Pack([cell], load("float32"), 2)
    formula = sum(RECIPES[method].trainable(cell, shape) for shape in shapes.values())
    assert sum(value.numel() for value in pack.state(0).adapter.values()) == formula > 0
    assert pack.adapter_params(0) == formula
    assert pack.modules(0) == len(shapes)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(ADAPTING)))
def test_without_an_adapter_all_or_nothing_trains(method: str, load: Load, folder: Path) -> None:
    pack = Pack([cell_of(method)], load("float32"), 2)
    backbone = [value.numel() for name, value in plain_encoder(folder).named_parameters() if "pooler" not in name]
    expected = sum(backbone) if RECIPES[method].trains_backbone else 0
    assert sum(value.numel() for value in pack.state(0).adapter.values()) == expected
    assert pack.adapter_params(0) == expected


@pytest.mark.parametrize("shape", [Shape(32, 32), Shape(64, 32), Shape(32, 64)])
@pytest.mark.parametrize("method", METHODS)
def test_formula_counts_the_trainable_factors(method: str, shape: Shape) -> None:
    for rank in (1, 4, 8):
        cell = cell_of(method, rank=rank)
        factors = RECIPES[method].factors(cell, shape)
        assert sum(f.rows * f.cols for f in factors if f.trainable) == RECIPES[method].trainable(cell, shape)
        assert not any(f.shared and f.trainable for f in factors)


@pytest.mark.parametrize("method", METHODS)
def test_head_is_counted_beside_and_not_within(method: str, load: Load) -> None:
    pack = Pack([cell_of(method)], load("float32"), 3)
    assert pack.head_params() == 32 * 32 + 32 + 3 * 32 + 3
    assert pack.head_params() == sum(value.numel() for value in pack.state(0).head.values())


@pytest.mark.parametrize("method", ADAPTING)
def test_random_factors_hang_on_seed_and_module_alone(method: str, load: Load) -> None:
    first, again, other = (drawn_by(method, seed, load) for seed in (0, 0, 1))
    for name, values in first.items():
        torch.testing.assert_close(values, again[name], rtol=0, atol=0)
        assert not torch.equal(values, other[name])
        drawn = 1 if name.rpartition(".")[2] in shared_by(method) else math.prod(values.shape[:2])
        assert drawn == len(values.flatten(0, 1).unique(dim=0)), f"{name}: two modules alike, or a shared one not"


def shared_by(method: str) -> set[str]:
    """The factors that are the same for all modules."""
    return {f.name for f in RECIPES[method].factors(cell_of(method), Shape(32, 32)) if f.shared}


def drawn_by(method: str, seed: int, load: Load) -> dict[str, Tensor]:
    """The randomly drawn factors `[cells, modules, rows, cols]` of a cell with that seed."""
    cell = cell_of(method, seed=seed)
    (group,) = Pack([cell], load("float32"), 2).bank.groups
    return {
        f"{family.name}.{factor.name}": group.factors(group.block.matrix.detach())[family][factor.name]
        for family in group.families
        for factor in RECIPES[method].factors(cell, family.shape)
        if isinstance(factor.start, (Normal, Uniform, Orthonormal))
    }


@pytest.mark.parametrize("method", ADAPTING)
def test_targets_that_match_nothing_name_the_candidates(method: str, load: Load) -> None:
    with pytest.raises(BenchError, match=r"'nothing' matches no weight") as caught:
        Pack([cell_of(method, targets="nothing")], load("float32"), 2)
    for candidate in ("attention.self.query", "attention.output.dense", "intermediate.dense", "qv", "attention+dense"):
        assert candidate in str(caught.value)


@pytest.mark.parametrize("targets", ["query,nothing", "classifier", ""])
def test_every_target_must_match(targets: str, load: Load) -> None:
    with pytest.raises(BenchError, match="matches no weight"):
        Pack([cell_of("lora").model_copy(update={"targets": targets or ","})], load("float32"), 2)


@pytest.mark.parametrize("method", BASED)
def test_rank_beyond_a_basis_is_refused(method: str, load: Load) -> None:
    Pack([cell_of(method, rank=32, a=32, b=32)], load("float32"), 2)
    with pytest.raises(BenchError, match=r"33 directions .*\(32\)"):
        Pack([cell_of(method, rank=33, a=33, b=33)], load("float32"), 2)


def test_methods_are_found() -> None:
    assert {"full", "head", "lora", "mini", "xs", "cora", "cora-init"} <= set(METHODS)
    assert set(PACKED) == set(METHODS) - {"full"}
    assert {"xs", "cora", "cora-init"} <= set(BASED)
    assert len(KINDS) == 3
