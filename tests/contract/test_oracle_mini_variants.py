"""LoRA-Mini's variants: each is `mini` with one change, and the change is what its docstring says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lora_bench import methods, tasks
from lora_bench.contracts.kit import cell_of, plain_encoder, trainer_of
from lora_bench.engine.adapters.group import Group
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.families import Family
from lora_bench.methods.recipe import Factor, Shape
from tests.contract.contract_kit import Load

COLA = tasks.get("cola")
OUTER = ("A_aux", "B_aux")
VARIANTS = ("mini-orth", "mini-svd", "mini-shared")


def group_of(method: str, load: Load, **sizes: Any) -> tuple[Pack, Group]:
    """A float64 pack of one and its group."""
    pack = Pack([cell_of(method, precision="float64", **sizes)], load("float64"), 2)
    return pack, pack.bank.groups[0]


def outer(group: Group, family: Family, place: int) -> tuple[Tensor, Tensor]:
    """`A_aux` and `B_aux` of one weight."""
    a, b = (group.frozen[family, name][0, place] for name in OUTER)
    return a, b


@pytest.mark.parametrize("method", VARIANTS)
def test_variant_is_mini_with_other_outer_factors(method: str, load: Load) -> None:
    (pack, group), (mini, base) = group_of(method, load), group_of("mini", load)
    alike = [torch.equal(values, base.frozen[key]) for key, values in group.frozen.items()]
    assert not any(alike)
    base.frozen = {key: values.clone() for key, values in group.frozen.items()}
    (one,), (two,) = trainer_of(pack, COLA).run(), trainer_of(mini, COLA).run()
    worst = max(abs(a - b) for a, b in zip(one.losses, two.losses, strict=True))
    print(f"{method}: largest difference of a loss {worst:.2g}")
    assert worst < 1e-12
    for name, value in pack.state(0).adapter.items():
        torch.testing.assert_close(value, mini.state(0).adapter[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("a", "b"), [(7, 6), (32, 32), (40, 48)])
def test_orthonormal_directions_of_minis_size(a: int, b: int, load: Load) -> None:
    _, group = group_of("mini-orth", load, a=a, b=b)
    for family, modules in group.families.items():
        for place in range(len(modules)):
            for own, std in zip(outer(group, family, place), (family.shape.inputs**-0.5, b**-0.5), strict=True):
                wanted = np.full(min(own.shape), std * max(own.shape) ** 0.5)
                np.testing.assert_allclose(np.linalg.svd(own.numpy(), compute_uv=False), wanted, rtol=1e-12)
                assert float(own.square().mean().sqrt()) == pytest.approx(std)


def test_singular_bases_are_numpys(load: Load, folder: Path) -> None:
    _, group = group_of("mini-svd", load)
    plain = plain_encoder(folder, torch.float64)
    for family, modules in group.families.items():
        for place, name in enumerate(modules):
            layer = plain.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            left, values, right = np.linalg.svd(layer.weight.detach().numpy(), full_matrices=False)
            a_aux, b_aux = (value.numpy() for value in outer(group, family, place))
            signs = np.sign(np.sum(a_aux * right[:7], axis=1))
            np.testing.assert_allclose(a_aux, right[:7] * (signs * values[:7])[:, None], atol=1e-10)
            np.testing.assert_allclose(b_aux, left[:, :6] * signs[:6], atol=1e-10)


def test_layers_share_outer_factors_and_no_inner_ones(load: Load) -> None:
    pack, group = group_of("mini-shared", load)
    for family, modules in group.families.items():
        pairs = [outer(group, family, place) for place in range(len(modules))]
        assert len(pairs) > 1
        assert all(torch.equal(a, pairs[0][0]) and torch.equal(b, pairs[0][1]) for a, b in pairs)
        assert float(pairs[0][0].std()) == pytest.approx(family.shape.inputs**-0.5, rel=0.2)
    inner = [value for name, value in pack.state(0).adapter.items() if name.endswith("A_train")]
    assert len({tuple(value.flatten().tolist()) for value in inner}) == len(inner)


@pytest.mark.parametrize(("method", "ratio"), [("mini-plus", 16.0), ("mini-plus4", 4.0)])
def test_only_the_learning_rate_of_b_differs(method: str, ratio: float, load: Load) -> None:
    one, plain = (shape_factors(name) for name in (method, "mini"))
    rates = {factor.name: factor.rate for factor in one}
    assert rates == {"A_aux": 1.0, "A_train": 1.0, "B_train": ratio, "B_aux": 1.0}
    assert [replace(factor, rate=1.0) for factor in one] == list(plain)
    (pack, _), (mini, _) = group_of(method, load), group_of("mini", load)
    steps = [trainer_of(each, COLA).run()[0].losses for each in (pack, mini)]
    assert steps[0][0] == steps[1][0]
    assert steps[0][-1] != steps[1][-1]


def test_the_update_is_scaled_by_the_root_of_the_rank(load: Load) -> None:
    (pack, _) = group_of("mini-rs", load, rank=4, alpha=8.0)
    (mini, _) = group_of("mini", load, rank=4, alpha=16.0)
    assert methods.get("mini-rs").scale(pack.cells[0]) == methods.get("mini").scale(mini.cells[0]) == 4.0
    (one,), (two,) = trainer_of(pack, COLA).run(), trainer_of(mini, COLA).run()
    assert one.losses == two.losses


def shape_factors(method: str) -> tuple[Factor, ...]:
    """The factors of a weight of 64 × 48."""
    return methods.get(method).factors(cell_of(method), Shape(64, 48))
