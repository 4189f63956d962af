"""How peft starts what it takes from the weights, and how we do: singular vectors, QR factors, lengths of rows.

peft decomposes in float32 whatever the model's precision, and the vectors of a float32 decomposition differ between
machines: an algorithm that is backward stable finds those of W + E, ‖E‖ of the order of ε ‖W‖, and E moves a vector by
‖E‖ over the distance to the next singular value. So ours, in float64, are compared with peft's up to what such an E can
do to that weight. `BACKWARD` states its size generously, `reach_…` what follows; each direction has its own bound.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lora_bench import tasks
from lora_bench.contracts.kit import cell_of
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.engine.encoder.backbone import Backbone
from tests.contract.test_oracle_peft import (
    PEERS,
    Peer,
    classifier,
    factors_of,
    lora_layers,
    peft_factors,
    weight_of,
    wrapped_by_peft,
)

ROUNDING = torch.finfo(torch.float32).eps / 2
BACKWARD = 32 * ROUNDING  # ‖E‖ / ‖W‖: as many roundings as the smaller side of these weights has values


def reach_of_vectors(weight: Tensor, rank: int) -> Tensor:
    """How far E can move each of the leading singular vectors, left or right (Wedin's theorem)."""
    values = torch.linalg.svdvals(weight)
    moved = BACKWARD * values[0]
    gaps = (values[:-1] - values[1:])[: rank + 1]
    nearest = torch.cat([gaps[:1], torch.minimum(gaps[:-1], gaps[1:])])[:rank]
    assert (nearest > 4 * moved).all()  # otherwise the vectors are not determined at all
    reach: Tensor = 2**0.5 * moved / (nearest - 2 * moved)
    return reach


def reach_of_roots(weight: Tensor, rank: int, scale: float) -> Tensor:
    """How far E can move `√(S / scale)` times each leading vector."""
    values = torch.linalg.svdvals(weight)
    relative = reach_of_vectors(weight, rank) + BACKWARD * values[0] / values[:rank] + 4 * ROUNDING
    reach: Tensor = (values[:rank] / scale).sqrt() * relative
    return reach


def reach_of_columns(weight: Tensor, rank: int) -> float:
    """How far E can move the leading columns of Q (Sun 1991): by the condition number of those columns of W."""
    return float((1 + 2**0.5) * rank**0.5 * BACKWARD * torch.linalg.cond(weight[:, :rank]))


def start_of(method: str, folder: Path) -> tuple[Pack, dict[str, Tensor], Backbone]:
    """Our start in float64."""
    backbone = backbones.load(str(folder), torch.device("cpu"), "float64")
    pack = Pack([cell_of(method, precision="float64", **PEERS[method].settings())], backbone, 2)
    return pack, factors_of(pack), backbone


def start_by_peft(pack: Pack, folder: Path, peer: Peer, precision: str) -> nn.Module:
    """peft's wrapped classifier."""
    return wrapped_by_peft(classifier(folder, tasks.get("cola"), pack.state(0).head, precision), peer)


def assert_within(ours: Tensor, theirs: Tensor, reach: Tensor | float, what: str) -> None:
    """Rows of two factors are as near as `reach` says, row by row; of a direction, the sign is free."""
    theirs = theirs.detach().double()
    signs = (ours * theirs).sum(1).sign()
    far = (ours - theirs * signs[:, None]).norm(dim=1) / reach
    print(f"{what}: {float(far.max()):.2g} of what rounding can do, {float((far * reach).max()):.2g}")
    assert float(far.max()) < 1
    assert float((far * reach).max()) < 0.05 * float(ours.norm(dim=1).min())  # or the bound would say nothing


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_start_from_the_weights_is_pefts(method: str, calm_folder: Path) -> None:
    pack, start, backbone = start_of(method, calm_folder)
    peer = Peer(options={"r": 4, "lora_alpha": 8, "init_lora_weights": method})
    layers = lora_layers(start_by_peft(pack, calm_folder, peer, "float32"))
    assert sorted(layers) == sorted(pack.bank.groups[0].modules)
    for name, layer in layers.items():
        scale, weight = layer.scaling["default"], backbone.linears()[name].weight
        a, b = start[f"{name}.A"], start[f"{name}.B"]
        their_a, their_b = (part.get_parameter("default.weight") for part in (layer.lora_A, layer.lora_B))
        if method == "pissa":
            reach_a = reach_b = reach_of_roots(weight, 4, scale)
        else:
            reach_b = torch.full((4,), reach_of_columns(weight, 4), dtype=torch.float64)
            reach_a = float(torch.linalg.matrix_norm(weight, 2)) * (reach_b + BACKWARD)
        assert_within(a, their_a, reach_a, f"{name}.A")
        assert_within(b.mT, their_b.mT, reach_b, f"{name}.B")
        rest = weight - scale * b @ a
        reach = scale * (b.norm(dim=0) * reach_a + a.norm(dim=1) * reach_b).sum() + BACKWARD * weight.norm()
        assert (rest - weight_of(layer).detach().double()).norm() < reach


def test_tinyloras_frozen_values_are_pefts(calm_folder: Path) -> None:
    pack, ours, backbone = start_of("tinylora", calm_folder)
    found = peft_factors(start_by_peft(pack, calm_folder, PEERS["tinylora"], "float32"))
    theirs = {name: value for name, value in found.items() if name.endswith((".A", ".B"))}
    assert len(theirs) == 2 * len(pack.bank.groups[0].modules)
    for name, value in theirs.items():
        reach = reach_of_roots(backbone.linears()[name[:-2]].weight, 4, 1.0)
        rows = (ours[name], value) if name.endswith(".A") else (ours[name].mT, value.mT)
        assert_within(*rows, reach, name)


@pytest.mark.parametrize(("method", "factor"), [("dora", "m"), ("delora", "columns")])
def test_lengths_are_pefts(method: str, factor: str, calm_folder: Path) -> None:
    """No decomposition: peft takes them in the model's precision, so float64 is compared with float64."""
    pack, ours, _ = start_of(method, calm_folder)
    found = peft_factors(start_by_peft(pack, calm_folder, PEERS[method], "float64"))
    theirs = {name: value.detach() for name, value in found.items() if name.endswith(f".{factor}")}
    assert len(theirs) == len(pack.bank.groups[0].modules)
    for name, value in theirs.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(ours[name].view_as(value), value, rtol=1e-13, atol=0)


def test_micas_directions_are_pefts(calm_folder: Path) -> None:
    """The space that they span, as far as E leaves it: it hangs on the gap between the values that belong and not."""
    pack, ours, backbone = start_of("mica", calm_folder)
    peer = Peer(options={"r": 4, "init_lora_weights": "mica"}, modules=PEERS["mica"].modules)
    layers = lora_layers(start_by_peft(pack, calm_folder, peer, "float32"))
    assert sorted(layers) == sorted(pack.bank.groups[0].modules)
    for name, layer in layers.items():
        their_a, their_b = (part.get_parameter("default.weight") for part in (layer.lora_A, layer.lora_B))
        assert not their_a.any()
        b, theirs = ours[f"{name}.B"], their_b.detach().double()
        values = torch.linalg.svdvals(backbone.linears()[name].weight.detach())
        moved = BACKWARD * values[0]
        reach = 2**0.5 * moved / (values[-5] - values[-4] - 2 * moved)
        apart = torch.linalg.matrix_norm(theirs - b @ (b.mT @ theirs), 2)
        print(f"{name}: {float(apart / reach):.2g} of what rounding can do, {float(apart):.2g}")
        assert 0 < reach < 0.05
        assert apart < reach
