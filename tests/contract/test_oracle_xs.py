"""LoRA-XS against its authors' construction: scikit-learn's TruncatedSVD of the transposed weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from sklearn.decomposition import TruncatedSVD

from lora_bench.contracts.kit import cell_of, plain_encoder
from lora_bench.engine.adapters.pack import Pack, State
from tests.contract.contract_kit import Load, shapes_in

Matrix = NDArray[np.float64]
RANK = 4
MODULES = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")

# The authors' 10 rounds leave a basis that hangs on the random start, as far off as the weight's singular values are
# close: of these small weights 1e-3 rad, of real ones up to 1.3 (see the method's docstring). With more rounds it nears
# the exact one, which is ours.
PUBLISHED, CONVERGED = 10, 60
TOLERANCE = 1e-8


def published(weight: Matrix, rank: int, rounds: int = CONVERGED) -> tuple[Matrix, Matrix]:
    """`lora_A` `[rank, in]` and `lora_B` `[out, rank]` of a weight `[out, in]`, as the authors' code makes them."""
    svd = TruncatedSVD(n_components=rank, n_iter=rounds, random_state=42)
    scores = svd.fit_transform(weight.T)  # U S, [in, rank]
    return scores.T, svd.components_.T


def ours(load: Load) -> tuple[Pack, dict[str, tuple[Matrix, Matrix]]]:
    """A float64 pack and its frozen bases by module."""
    pack = Pack([cell_of("xs", rank=RANK, precision="float64")], load("float64"), 2)
    (group,) = pack.bank.groups
    found: dict[str, tuple[Matrix, Matrix]] = {}
    for family, modules in group.families.items():
        bases = (group.frozen[family, name][0].numpy() for name in ("US", "V"))
        found |= {module: (us, v) for module, us, v in zip(modules, *bases, strict=True)}
    return pack, found


def weights(folder: Path) -> dict[str, Matrix]:
    """Every linear of the plain encoder's layers in float64."""
    plain = plain_encoder(folder)
    return {name: plain.get_submodule(name).weight.detach().double().numpy() for name in shapes_in(plain, MODULES)}  # type: ignore[operator]


def test_bases_span_the_published_subspaces(load: Load, folder: Path) -> None:
    _, bases = ours(load)
    for name, weight in weights(folder).items():
        a, b = published(weight, RANK)
        us, v = bases[name]
        assert subspace_angles(us.T, a.T).max() < TOLERANCE
        assert subspace_angles(v, b).max() < TOLERANCE


def test_the_published_rounds_keep_nearly_as_much_of_a_weight(load: Load, folder: Path) -> None:
    """And never more: no subspace keeps more than the exact one."""
    _, bases = ours(load)
    for name, weight in weights(folder).items():
        a, _ = published(weight, RANK, PUBLISHED)
        kept = np.square(a).sum() / np.square(bases[name][0]).sum()
        assert 0.99 < kept < 1 + 1e-12


def test_singular_values_stand_on_the_input_side(load: Load, folder: Path) -> None:
    _, bases = ours(load)
    for name, weight in weights(folder).items():
        us, v = bases[name]
        values = np.linalg.svd(weight, compute_uv=False)[:RANK]
        np.testing.assert_allclose(v.T @ v, np.eye(RANK), atol=1e-10)
        np.testing.assert_allclose(us @ us.T, np.diag(values**2), atol=1e-10)
        np.testing.assert_allclose(np.linalg.norm(us, axis=1), values, rtol=1e-10)


def test_same_r_same_update_up_to_signs(load: Load, folder: Path) -> None:
    pack, bases = ours(load)
    random = np.random.default_rng(0)
    chosen = {name: random.normal(size=(RANK, RANK)) for name in bases}
    state = {f"{name}.R": torch.from_numpy(value) for name, value in chosen.items()}
    pack.load(0, State(state, pack.state(0).head))
    deltas = pack.deltas(0)
    for name, weight in weights(folder).items():
        a, b = published(weight, RANK)
        signs = np.diag(np.sign(np.sum(bases[name][1] * b, axis=0)))
        scaling = 8.0 / RANK
        theirs = scaling * (a.T @ (signs @ chosen[name] @ signs) @ b.T).T  # x A R B, transposed to [out, in]
        np.testing.assert_allclose(deltas[name].numpy(), theirs, atol=TOLERANCE * np.abs(theirs).max())


def test_r_starts_as_small_noise(load: Load) -> None:
    pack, _ = ours(load)
    values = torch.cat([value.flatten() for value in pack.state(0).adapter.values()])
    assert float(values.std()) == pytest.approx(1e-5, rel=0.2)
    assert abs(float(values.mean())) < 4e-6
