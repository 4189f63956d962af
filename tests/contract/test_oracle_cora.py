"""CoRA's common basis against numpy: the leading left singular vectors of a layer's joined `[Wq | Wk | Wv]`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from torch import Tensor, nn

from lora_bench.contracts.kit import cell_of, plain_encoder
from lora_bench.engine.adapters.pack import Pack
from tests.contract.contract_kit import Load, Trained

Matrix = NDArray[np.float64]
RANK = 4
PARTS = ("query", "key", "value")

over_methods = pytest.mark.parametrize("method", ["cora", "cora-init"])


def weight(plain: nn.Module, name: str) -> Matrix:
    """A weight `[out, in]` of the plain encoder in float64."""
    found = plain.get_submodule(name).weight
    assert isinstance(found, Tensor)
    return found.detach().double().numpy()


def starts(method: str, load: Load, rank: int = RANK) -> dict[str, Matrix]:
    """B `[out, rank]` of every adapted weight at the start."""
    (group,) = Pack([cell_of(method, rank=rank, precision="float64")], load("float64"), 2).bank.groups
    factors = group.factors(group.block.matrix.detach())
    return {
        name: factors[family]["B"][0, place].numpy()
        for family, modules in group.families.items()
        for place, name in enumerate(modules)
    }


def leading(matrix: Matrix, rank: int) -> Matrix:
    """The leading left singular vectors."""
    left: Matrix = np.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
    return left


@over_methods
@pytest.mark.parametrize("rank", [1, 4, 32])
def test_columns_are_orthonormal(method: str, rank: int, load: Load) -> None:
    for basis in starts(method, load, rank).values():
        np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-10)


@over_methods
def test_basis_spans_the_joined_weights_leading_directions(method: str, load: Load, folder: Path) -> None:
    found, plain = starts(method, load), plain_encoder(folder)
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        joined = np.concatenate([weight(plain, f"{layer}.attention.self.{part}") for part in PARTS], axis=1)
        assert joined.shape == (32, 96)
        for part in PARTS:
            assert subspace_angles(found[f"{layer}.attention.self.{part}"], leading(joined, RANK)).max() < 1e-7


@over_methods
def test_basis_is_common_within_a_layer_only(method: str, load: Load) -> None:
    found = starts(method, load)
    first, second = ([found[f"encoder.layer.{n}.attention.self.{part}"] for part in PARTS] for n in (0, 1))
    assert all(np.array_equal(first[0], other) for other in first)
    assert subspace_angles(first[0], second[0]).max() > 0.1


@over_methods
def test_other_outputs_have_their_own_basis(method: str, load: Load, folder: Path) -> None:
    found, plain = starts(method, load), plain_encoder(folder)
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        name = f"{layer}.intermediate.dense"
        assert subspace_angles(found[name], leading(weight(plain, name), RANK)).max() < 1e-7


@pytest.mark.parametrize(("method", "trains"), [("cora", {"A"}), ("cora-init", {"A", "B"})])
def test_strategies_differ_in_what_trains(method: str, trains: set[str], trained: Trained) -> None:
    run = trained(method, "cola", "float64")
    assert {name.rsplit(".", 1)[-1] for name in run.pack.state(0).adapter} == trains
    assert {name for group in run.pack.bank.groups for _, name in group.frozen} == {"A", "B"} - trains
    for name, value in run.start[0].adapter.items():
        assert bool(value.count_nonzero()) == name.endswith(".B")
