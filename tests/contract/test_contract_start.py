"""Every method before training: the base model's logits, exact counts, draws from the seed, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_bench.contracts.kit import KINDS, cell_of, plain_encoder, trained_names
from lora_bench.engine.adapters.pack import Pack
from lora_bench.errors import BenchError
from lora_bench.methods import RECIPES
from lora_bench.methods.recipe import Basis, Factor, Shape
from tests.contract.contract_kit import ADAPTING, METHODS, PACKED, Load, made_of_data, shapes_in

MEANING = {
    "qv": ("query", "value"),
    "attention": ("query", "key", "value"),
    "attention+dense": ("query", "key", "value", "dense"),
    "key, output.dense": ("key", "output.dense"),
}


def bases(method: str, size: int) -> list[Factor]:
    """The factors that start from the pretrained weights, in a cell of that rank, a and b."""
    factors = RECIPES[method].factors(cell_of(method, rank=size, a=size, b=size), Shape(8, 8))
    return [factor for factor in factors if isinstance(factor.start, Basis)]


BASED = tuple(name for name in ADAPTING if bases(name, 2) != bases(name, 3))


@pytest.mark.parametrize("targets", MEANING)
@pytest.mark.parametrize("method", ADAPTING)
def test_trainable_count_is_the_formula(method: str, targets: str, load: Load, folder: Path) -> None:
    cell = cell_of(method, targets=targets)
    shapes = shapes_in(plain_encoder(folder), MEANING[targets])
    pack = Pack([cell], load("float32"), 2)
    recipe = RECIPES[method]
    formula = sum(recipe.trainable(cell, shape) for shape in shapes.values()) + recipe.once(cell, set(shapes.values()))
    trained = {n: v for n, v in pack.state(0).adapter.items() if n.rpartition(".")[2] in trained_names(cell)}
    assert sum(value.numel() for value in trained.values()) == formula > 0
    assert pack.adapter_params(0) == formula
    assert pack.modules(0) == len(shapes)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(ADAPTING)))
def test_without_an_adapter_all_or_nothing_trains(method: str, load: Load, folder: Path) -> None:
    pack = Pack([cell_of(method)], load("float32"), 2)
    backbone = [value.numel() for name, value in plain_encoder(folder).named_parameters() if "pooler" not in name]
    expected = sum(backbone) if RECIPES[method].trains_backbone else 0
    assert sum(value.numel() for value in pack.state(0).adapter.values()) == expected
    if method == "loqt":  # a factor and the bias of each linear weight of the layers
        shapes = shapes_in(plain_encoder(folder), MEANING["attention+dense"])
        rank = cell_of(method).rank or 0
        expected = sum(rank * max(shape) + shape.outputs for shape in shapes.values())
    assert pack.adapter_params(0) == expected


@pytest.mark.parametrize("method", METHODS)
def test_head_is_counted_beside_and_not_within(method: str, load: Load) -> None:
    pack = Pack([cell_of(method)], load("float32"), 3)
    assert pack.head_params() == 32 * 32 + 32 + 3 * 32 + 3
    assert pack.head_params() == sum(value.numel() for value in pack.state(0).head.values())


@pytest.mark.parametrize("method", ADAPTING)
def test_targets_that_match_nothing_name_the_candidates(method: str, load: Load) -> None:
    with pytest.raises(BenchError, match=r"'nothing' matches no weight") as caught:
        Pack([cell_of(method, targets="nothing")], load("float32"), 2)
    for candidate in ("attention.self.query", "attention.output.dense", "intermediate.dense", "qv", "attention+dense"):
        assert candidate in str(caught.value)


def test_targets_misspelt_are_told_the_nearest(load: Load) -> None:
    with pytest.raises(BenchError, match=r"Did you mean 'query'\?"):
        Pack([cell_of("lora", targets="querry")], load("float32"), 2)


@pytest.mark.parametrize("targets", ["query,nothing", "classifier", ""])
def test_every_target_must_match(targets: str, load: Load) -> None:
    with pytest.raises(BenchError, match="matches no weight"):
        Pack([cell_of("lora").model_copy(update={"targets": targets or ","})], load("float32"), 2)


@pytest.mark.parametrize("method", BASED)
def test_rank_beyond_a_basis_is_refused(method: str, load: Load) -> None:
    Pack([cell_of(method, rank=32, a=32, b=32)], load("float32"), 2)
    with pytest.raises(BenchError, match=r"33 directions .*\(32\)"):
        Pack([cell_of(method, rank=33, a=33, b=33)], load("float32"), 2)


def test_more_diagonals_than_a_matrix_has_are_refused(load: Load) -> None:
    cell = cell_of("svft-banded", b=31)
    Pack([cell], load("float32"), 2)
    with pytest.raises(BenchError, match="32 diagonals"):
        Pack([cell.model_copy(update={"b": 32})], load("float32"), 2)


@pytest.mark.parametrize(
    ("method", "sizes", "message"),
    [
        ("melora", {"a": 3}, "3 equal parts .* 32"),
        ("gralora", {"a": 3}, "3 equal parts .* 16"),
        ("gralora", {"a": 4, "rank": 6}, "4 equal parts .* 6"),
        ("miss", {"rank": 33}, "32 inputs has no 33 parts"),
        ("scalabl", {"rank": 33}, "33 directions of 32 inputs"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(method: str, sizes: dict[str, int], message: str, load: Load) -> None:
    with pytest.raises(BenchError, match=message) as refused:
        Pack([cell_of(method).model_copy(update=sizes)], load("float32"), 2)
    assert refused.value.code == 2


@pytest.mark.parametrize(
    ("method", "sizes", "hint"),
    [
        ("melora", {"a": 3}, "divides 32"),
        ("gralora", {"a": 2, "rank": 3}, "divides 3;"),
        ("vb-lora", {"b": 5}, "as 32"),
    ],
)
def test_the_hint_is_one_that_works(method: str, sizes: dict[str, int], hint: str, load: Load) -> None:
    with pytest.raises(BenchError) as refused:
        Pack([cell_of(method).model_copy(update=sizes)], load("float32"), 2)
    assert hint in refused.value.hint


def test_cells_of_such_a_method_have_sizes_that_divide() -> None:
    assert [(cell.rank, cell.a) for cell in (cell_of("gralora"), cell_of("gralora", rank=5, a=3))] == [(16, 4), (10, 2)]
    assert cell_of("melora", rank=5, a=2).rank == 5  # accepted as it is


def test_methods_are_found() -> None:
    assert {method for method in METHODS if made_of_data(method)} == {"lora-sb"}
    assert {"full", "head", "lora", "mini", "xs", "cora", "cora-init"} <= set(METHODS)
    assert set(PACKED) == set(METHODS) - {"full", "galore", "lisa", "loqt", "owlore"}
    assert {"xs", "cora", "cora-init"} <= set(BASED)
    assert len(KINDS) == 3
