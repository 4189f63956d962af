"""The package's contracts: every method keeps them, and a method that breaks one is found out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor
from typer.testing import CliRunner

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.cli.app import app
from lora_bench.contracts import packs, posteriors, start, training, weight_rules
from lora_bench.contracts.kit import ContractError, Workbench, cell_of
from lora_bench.contracts.suite import CONTRACTS, Contract
from lora_bench.engine.adapters.group import names_of
from lora_bench.engine.adapters.pack import Pack
from lora_bench.errors import BenchError
from lora_bench.methods.dora_dyn import DoraDyn
from lora_bench.methods.galore import GaLore
from lora_bench.methods.gralora import GraLora
from lora_bench.methods.laplace_lora import LaplaceLora
from lora_bench.methods.lora import Lora
from lora_bench.methods.recipe import Factor, Normal, Recipe, Shape, Update
from lora_bench.methods.rules import Step, WeightRule
from lora_bench.methods.scalabl import ScalaBL
from lora_bench.methods.tied_lora import TiedLora
from lora_bench.methods.vb_lora import VbLora
from tests.contract.contract_kit import ADAPTING, METHODS, BenchOf, Trained


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_contract(method: str, contract: Contract, bench: Workbench) -> None:
    contract(method, bench)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "padded"), [("deberta-v2", False), ("megatron-bert", True)])
def test_the_contracts_hold_on_encoders_that_are_not_fused(
    family: str, padded: bool, method: str, bench_of: BenchOf
) -> None:
    """On windows through transformers' code, and on padded rows; all contracts in one test share what it trains."""
    bench = bench_of(family)
    backbone = bench.load("float32")
    assert (backbone.fused is None, backbone.padded is not None) == (True, padded)
    for contract in CONTRACTS:
        if (method, family) == ("laplace-lora", "deberta-v2") and contract.__module__ == posteriors.__name__:
            with pytest.raises(BenchError, match="read more than once"):  # its posterior is refused
                contract(method, bench)
        else:
            contract(method, bench)


@pytest.mark.parametrize("method", ADAPTING)
def test_every_weight_has_every_trainable_factor(method: str, trained: Trained) -> None:
    run = trained(method, "cola", "float32")
    (group,) = run.pack.bank.groups
    expected = {
        f"{module}.{factor.name}": (factor.rows, factor.cols)
        for family, modules in group.families.items()
        for factor in run.recipe.factors(run.cell, family.shape)
        if factor.saved
        for module in names_of(factor, modules)
    }
    assert {name: tuple(value.shape) for name, value in run.pack.state(0).adapter.items()} == expected


def test_biases_change_where_outputs_are_scaled_or_shifted(trained: Trained) -> None:
    assert {method for method in ADAPTING if trained(method, "cola", "float64").pack.bias_deltas(0)} == {
        "bitfit",
        "ia3",
        "red",
    }


class Miscounting(Lora):
    """Counts one value too many."""

    name = "miscounting"

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """One more than there are."""
        return super().trainable(cell, shape) + 1


class Jumping(Lora):
    """Starts away from the base model."""

    name = "jumping"

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """B random."""
        a, b = super().factors(cell, shape)
        return a, Factor(b.name, b.rows, b.cols, Normal(1.0))


class Stuck(Lora):
    """A gets no gradient."""

    name = "stuck"

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """A cut off."""
        return Update(factors["A"].detach(), factors["B"])


class Mixing(Lora):
    """Ties the cells of a pack together."""

    name = "mixing"

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """A is the mean over the cells."""
        return Update(factors["A"].mean(0, keepdim=True).expand_as(factors["A"]), factors["B"])


class Leaking(Lora):
    """Makes something of padding."""

    name = "leaking"

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """No row of A is zero."""
        return Update(factors["A"] + 1, factors["B"])


class Understating(Lora):
    """States a rank below its own."""

    name = "understating"

    def update_rank(self, cell: Cell) -> int:
        """One."""
        return 1


class Misordered(GraLora):
    """Its rows of A are in an order that depends on the largest rank of the pack."""

    name = "misordered"

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Take row j r / k + m for row m k + j."""
        count = factors["inputs"].shape[-2]
        a = factors["A"].unflatten(-2, (count, -1)).transpose(-3, -2).flatten(-3, -2)
        return super().update({**factors, "A": a})


class Crowded(GraLora):
    """Stacks cells with other numbers of blocks, whose rows of A are in other orders."""

    name = "crowded"

    def layout(self, cell: Cell) -> object:
        """No difference."""
        return None


class Uncounted(TiedLora):
    """Does not count what its weights share."""

    name = "uncounted"

    def once(self, cell: Cell, shapes: Collection[Shape]) -> int:
        """Nothing."""
        return 0


class Recounted(TiedLora):
    """Counts what its weights share for each of their shapes."""

    name = "recounted"

    def once(self, cell: Cell, shapes: Collection[Shape]) -> int:
        """The sum over the shapes."""
        return sum(super(Recounted, self).once(cell, {shape}) for shape in shapes)


class Entangled(TiedLora):
    """Shares a factor between weights of two shapes if the rank happens to be theirs."""

    name = "entangled"

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """A second shared factor, which has one size for all weights only where the rank is 5."""
        size = 5 if cell.rank == 5 else shape.outputs
        return (*super().factors(cell, shape), Factor("C", size, 1, Normal(1.0), shared=True))


class Diluted(DoraDyn):
    """Takes the padding of its components for components."""

    name = "diluted"

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """The mean over padded rows."""
        return factors["A"].var(dim=-1).mean(-1)


class Rivalling(DoraDyn):
    """Scores components by what those of other cells are worth."""

    name = "rivalling"

    def remember(
        self, factors: Mapping[str, Tensor], gradients: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """In parts of the pack's mean."""
        return {"score": (factors["c"].abs() - factors["c"].abs().mean(0, keepdim=True)).abs()}


class Indifferent(DoraDyn):
    """Has one score for all components, so that a threshold cuts all."""

    name = "indifferent"

    def scores(self, memory: Mapping[str, Tensor]) -> Tensor:
        """Zero."""
        return memory["score"][..., 0] * 0


class Unmasked(Lora):
    """Wants the rows of A orthonormal, those of padding too."""

    name = "unmasked"

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """The norm of A Aᵀ - I, whose root passes what padding adds on to all rows."""
        square = factors["A"] @ factors["A"].mT
        eye = real["A"].new_ones(square.shape[-1]).diag()
        return (square - eye).square().sum((-2, -1)).sqrt()


class Bold(Lora):
    """Says that it starts away from the base model, and does not."""

    name = "bold"
    starts_as_base = False


class Halving(VbLora):
    """Stores one vector of each piece where there are two."""

    name = "halving"

    def compact(self, cell: Cell, name: str, value: Tensor) -> Mapping[str, Tensor]:
        """The larger logit alone."""
        parts = super().compact(cell, name, value)
        return parts if name == "bank" else {kind: part[..., :1].contiguous() for kind, part in parts.items()}


class Undefaulted(Lora):
    """Has a parameter without a default, and one that no cell has."""

    name = "undefaulted"
    parameters = frozenset({"rank", "alpha", "targets", "depth"})


class Forgetful(Lora):
    """Starts anew each time, whatever the seed."""

    name = "forgetful"
    calls: ClassVar[list[int]] = []

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Factors whose names, and so whose draws, change from call to call."""
        a, b = super().factors(cell, shape)
        self.calls.append(1)
        return Factor(a.name, a.rows, a.cols, Normal(len(self.calls))), b


class Elsewhere(LaplaceLora):
    """Has a posterior over factors that are not A and B of the update."""

    name = "elsewhere"

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Twice A."""
        return Update(2 * factors["A"], factors["B"])


class Still(GaLore):
    """Its projected weights never move."""

    name = "still"

    def weights(self, cell: Cell) -> WeightRule:
        """Take changes back times 0."""
        rule = super().weights(cell)
        assert rule.projection is not None
        return replace(rule, projection=replace(rule.projection, scale=0.0))


class Unruled(GaLore):
    """Has a rule, but does not train the encoder."""

    name = "unruled"
    trains_backbone = False


class Quiet(ScalaBL):
    """Has a posterior of draws that it does not use."""

    name = "quiet"

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Without noise."""
        return super().update({**factors, "noise": 0 * factors["noise"]})


class Lively(ScalaBL):
    """Takes large steps on its penalty from the first one on, where ScalaBL's begin with 2^-43 of its rate."""

    name = "lively"

    def penalty_weight(self, cell: Cell, step: Step) -> float:
        """Small, as the penalty is steep where the spreads are: its slope is about ρ⁻²."""
        return 1e-5


class Diverging(Lively):
    """The penalty of a cell grows with its pack."""

    name = "diverging"

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """Of all cells, for each cell."""
        values = super().penalty(factors, real)
        return values.sum(0).expand_as(values)


CAUGHT: list[tuple[Callable[[], Recipe], Contract, str]] = [
    (Miscounting, start.its_count_is_that_of_its_factors, "the formula says"),
    (Miscounting, start.its_pack_trains_as_many, "the formula says"),
    (Jumping, start.it_starts_as_the_base_model, "a logit at step 0 differs"),
    (Stuck, training.what_trains_moves, r"query\.A"),
    (Mixing, packs.it_does_not_depend_on_its_pack, "differs by"),
    (Mixing, packs.it_loads_among_larger_cells, "differs by"),
    (Leaking, packs.padding_is_trimmed_and_stays_zero, "padding moved"),
    (Misordered, packs.it_does_not_depend_on_its_pack, "differs by"),
    (Misordered, packs.padding_is_trimmed_and_stays_zero, "padding moved"),
    (Crowded, packs.it_does_not_depend_on_its_pack, "differs by"),
    (Crowded, packs.it_loads_among_larger_cells, "differs by"),
    (Uncounted, start.its_count_is_that_of_its_factors, "`once` says 0"),
    (Recounted, start.its_pack_trains_as_many, "the formula says"),
    (Bold, start.it_starts_as_the_base_model, "step 0 is the base model"),
    (Halving, training.it_comes_back_as_it_was_saved, "a logit of what was loaded differs"),
    (Diluted, packs.it_does_not_depend_on_its_pack, "differs by"),
    (Rivalling, packs.it_does_not_depend_on_its_pack, "differs by"),
    (Indifferent, training.its_schedule_ends_with_its_budget, "entries of c are zero, stated"),
    (Unmasked, packs.it_does_not_depend_on_its_pack, "differs by"),
    (Understating, training.its_change_has_the_rank_it_states, "stated 1"),
    (Undefaulted, start.its_settings_are_complete, "no cell has the parameter depth"),
    (Elsewhere, posteriors.its_posterior_averages_probabilities, "the A of its update is not"),
    (Still, training.what_trains_moves, r"query\.weight"),
    (Unruled, weight_rules.it_trains_by_its_rule, "trains_backbone"),
    (Quiet, posteriors.its_posterior_averages_probabilities, "are those of the point"),
    (Diverging, packs.it_does_not_depend_on_its_pack, "differs by"),
    (Forgetful, start.its_draws_hang_on_seed_and_module, "the same seed gives other values"),
]


KEPT = (packs.padding_is_trimmed_and_stays_zero, packs.it_does_not_depend_on_its_pack, training.what_trains_moves)


@pytest.mark.parametrize("contract", KEPT, ids=lambda contract: contract.__name__)
def test_large_steps_on_a_penalty_keep_to_their_cell(contract: Contract, bench: Workbench) -> None:
    with methods.registered(Lively()):
        contract("lively", bench)


@pytest.mark.parametrize(("recipe", "contract", "why"), CAUGHT, ids=lambda each: getattr(each, "__name__", ""))
def test_a_method_that_breaks_it_is_found_out(
    recipe: Callable[[], Recipe], contract: Contract, why: str, bench: Workbench
) -> None:
    broken = recipe()
    with methods.registered(broken), pytest.raises(ContractError, match=why):
        contract(broken.name, bench)


def test_cells_that_share_a_factor_among_other_weights_are_refused_in_one_group(bench: Workbench) -> None:
    broken = Entangled()
    with methods.registered(broken):
        cells = [cell_of(broken.name, rank=rank) for rank in (4, 5)]
        with pytest.raises(ValueError, match="cells of one layout share factors among different weights"):
            Pack(cells, bench.load("float32"), 2)


def test_check_tells_each_contract_and_ends_with_one_where_one_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = (start.its_settings_are_complete, start.its_count_is_that_of_its_factors)
    monkeypatch.setattr("lora_bench.contracts.suite.CONTRACTS", quick)
    file = tmp_path / "my_method.py"
    text = "from lora_bench.methods.lora import Lora\n\n\nclass Mine(Lora):\n    name = 'mine'\n{}\n\nRECIPE = Mine()\n"
    file.write_text(text.format("    def trainable(self, cell, shape):\n        return 12345\n"))
    seen: dict[str, Any] = {}
    with methods.registered():
        for what in ("lora", str(file), "no-such"):
            seen[what] = CliRunner().invoke(app, ["check", what])
    assert seen["lora"].exit_code == 0
    assert "lora: 2 of 2 contracts are kept." in seen["lora"].output
    assert seen[str(file)].exit_code == 1
    assert "pass: every parameter is known" in seen[str(file)].output
    assert "FAIL: `trainable` counts" in seen[str(file)].output
    assert "mine: 1 of 2 contracts are kept." in seen[str(file)].output
    assert seen["no-such"].exit_code == 2
