"""Methods with penalties and rank schedules, against the formulas of their authors' code, by autograd in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from torch import Tensor, nn

from lora_bench import tasks
from lora_bench.callbacks import Callback, EpochMetrics
from lora_bench.contracts.kit import Workbench, cell_of, trainer_of
from lora_bench.engine.adapters.pack import Pack, State
from tests.contract.test_oracle_authors import frozen_classifier, trained_values
from tests.contract.test_oracle_peft import LINEARS, SETTINGS, STEPS, Extra, Peer, assert_same, our_run, wrapped_by_peft

over_tasks = pytest.mark.parametrize("name", ["cola", "stsb"])


class Branch(nn.Module):
    """A frozen linear layer plus `scale · B diag(c) A x`."""

    def __init__(self, linear: nn.Linear, parts: dict[str, Tensor], scale: float, decays: bool) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        # The test's optimiser exempts names that end with "bias" from decay.
        self.names = {name: "c_bias" if name == "c" and not decays else name for name in parts}
        for name, value in parts.items():
            self.register_parameter(self.names[name], nn.Parameter(value.clone()))

    def part(self, name: str) -> nn.Parameter:
        """A factor by our name."""
        return self.get_parameter(self.names[name])

    def forward(self, inputs: Tensor) -> Tensor:
        """W x + bias + ΔW x."""
        hidden = inputs @ self.part("A").T
        if "c" in self.names:
            hidden = hidden * self.part("c")[:, 0]
        output: Tensor = self.linear(inputs) + self.scale * (hidden @ self.part("B").T)
        return output


def branched(
    folder: Path, task: str, start: State, pack: Pack, trained: str, scale: float, decays: bool = True
) -> nn.Module:
    """transformers' classifier with a branch at every adapted linear layer."""
    model = frozen_classifier(folder, task, start.head)
    for module in pack.bank.groups[0].modules:
        parent, _, child = f"roberta.{module}".rpartition(".")
        linear = model.get_submodule(f"roberta.{module}")
        assert isinstance(linear, nn.Linear)
        branch = Branch(linear, {name: start.adapter[f"{module}.{name}"] for name in trained}, scale, decays)
        setattr(model.get_submodule(parent), child, branch)
    assert trained_values(model) == pack.adapter_params(0) + pack.head_params()
    return model


def branches(model: nn.Module) -> list[Branch]:
    """The branches in the model's order."""
    return [module for module in model.modules() if isinstance(module, Branch)]


class Distribution(Extra):
    """The pruning and the penalty of DoRA with dynamic rank, component by component."""

    def __init__(self, model: nn.Module, rank: int, interval: int) -> None:
        super().__init__()
        self.branches, self.rank, self.interval = branches(model), rank, interval
        self.start = self.branches[0].part("A").shape[0]
        self.averages = [torch.zeros(self.start, dtype=torch.float64) for _ in self.branches]
        self.masks: list[Tensor] | None = None
        self.pruned: list[int] = []

    def progress(self, step: int) -> tuple[int, int]:
        """How long the pruning has lasted, and how long it lasts."""
        return int(step - STEPS * 0.15), int(STEPS * (1 - 0.15 - 0.5))

    def penalty(self, step: int) -> Tensor | float:
        """0.1 times the mean variance."""
        now, last = self.progress(step)
        if now > last:
            return 0.0
        rows = [b.part("A").var(dim=1) for b in self.branches]
        columns = [b.part("B").var(dim=0) for b in self.branches]
        return 0.1 * torch.cat(rows + columns).mean()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Average the scores; prune what has the lowest."""
        now, last = self.progress(step)
        if now <= last:
            for average, branch in zip(self.averages, self.branches, strict=True):
                a, b, c = (branch.part(name) for name in "ABc")
                parts = torch.stack([c[i] * torch.outer(b[:, i], a[i]) for i in range(self.start)])
                average.mul_(0.9).add_(0.1 * parts.flatten(1).norm(dim=1) / (parts.sum(0).norm() + 1e-8))
            if now < 0 or (now % self.interval and now != last):
                return
            scores = torch.cat(self.averages)
            count = int(len(scores) * ((self.start - self.rank) / self.start * (now / last) ** 3))
            threshold = torch.kthvalue(scores, max(count, 1)).values
            self.pruned.append(max(count, 1))
            masks = [average <= threshold for average in self.averages]
            self.masks = masks if now == last else None
        else:
            assert self.masks is not None
            masks = self.masks
        for branch, mask in zip(self.branches, masks, strict=True):
            branch.part("c")[mask] = 0


@over_tasks
@pytest.mark.parametrize(("interval", "events"), [(2, 5), (100, 2)])
def test_dora_dyn_distributes_ranks_as_its_authors(
    interval: int, events: int, name: str, calm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where components that were cut grow again, and are cut again."""
    monkeypatch.setattr("lora_bench.methods.dora_dyn.INTERVAL", interval)
    task = tasks.get(name)
    settings = SETTINGS | {"targets": "attention+dense", "rank": 4}
    cell = cell_of("dora-dyn", name, precision="float64", **settings)
    pack, start, ours = our_run(cell, calm_folder, task)
    model = branched(calm_folder, name, start, pack, "AcB", 8 / 6)
    extra = Distribution(model, 4, interval)
    assert_same(pack, ours, model, task, extra)
    state = pack.state(0).adapter
    gates = torch.cat([state[f"{module}.c"] for module in pack.bank.groups[0].modules])
    assert len(extra.pruned) == events
    assert int((gates == 0).sum()) == extra.pruned[-1] == len(gates) // 3
    for module in pack.bank.groups[0].modules:
        branch = model.get_submodule(f"roberta.{module}")
        assert isinstance(branch, Branch)
        torch.testing.assert_close(state[f"{module}.c"], branch.part("c").detach(), rtol=0, atol=1e-10)


class Subspaces(Extra):
    """CLoRA's penalty, weight by weight."""

    def __init__(self, model: nn.Module, start: State, modules: tuple[str, ...]) -> None:
        super().__init__()
        frozen = [(start.adapter[f"{module}.V"], start.adapter[f"{module}.U"]) for module in modules]
        adapted = [model.get_submodule(f"roberta.{module}") for module in modules]
        self.parts = [(b, v, u) for b, (v, u) in zip(adapted, frozen, strict=True) if isinstance(b, Branch)]

    def penalty(self, step: int) -> Tensor | float:
        """The sum over the weights."""
        sides = [(b.part("A") @ v, b.part("B").T @ u) for b, v, u in self.parts]
        return torch.stack([torch.linalg.matrix_norm(side) ** 2 / 2 for pair in sides for side in pair]).sum()


@over_tasks
@pytest.mark.parametrize("count", [7, 40])
def test_clora_holds_a_and_b_out_of_subspaces(count: int, name: str, calm_folder: Path) -> None:
    """40 is more than some weights have inputs: there the rows are orthonormal, not the columns."""
    task = tasks.get(name)
    cell = cell_of("clora", name, precision="float64", **SETTINGS | {"targets": "attention+dense", "a": count})
    pack, start, ours = our_run(cell, calm_folder, task)
    modules = pack.bank.groups[0].modules
    for module in modules:
        for factor in "VU":
            value = start.adapter[f"{module}.{factor}"]
            square = value.T @ value if value.shape[0] >= value.shape[1] else value @ value.T
            torch.testing.assert_close(square, torch.eye(len(square), dtype=torch.float64))
    model = branched(calm_folder, name, start, pack, "AB", 8 / 4)
    assert_same(pack, ours, model, task, Subspaces(model, start, modules))


class Allocation(Extra):
    """peft's own allocation of ranks, which counts steps from 0."""

    def __init__(self, model: AdaLoraModel) -> None:
        super().__init__()
        self.model = model

    def after_step(self, step: int) -> None:
        """New weights meet old gradients."""
        self.model.update_and_allocate(step - 1)  # type: ignore[no-untyped-call]


@over_tasks
def test_adalora_is_pefts(name: str, calm_folder: Path) -> None:
    task = tasks.get(name)
    cell = cell_of("adalora", name, precision="float64", **SETTINGS | {"targets": "attention+dense", "rank": 4})
    pack, start, ours = our_run(cell, calm_folder, task)
    options = {
        "init_r": 6,
        "target_r": 4,
        "lora_alpha": 8,
        "tinit": 3,
        "tfinal": 10,
        "deltaT": 1,
        "orth_reg_weight": 0.1,
    }
    peer = Peer(AdaLoraConfig, {**options, "total_step": STEPS}, modules=LINEARS)
    model = wrapped_by_peft(frozen_classifier(calm_folder, name, start.head), peer).double()
    assert isinstance(model, PeftModel)
    theirs = dict(model.named_parameters())
    for parameter, value in theirs.items():
        if ".ranknum." in parameter:  # peft's own loop trains no number of components
            value.requires_grad_(False)
    with torch.no_grad():
        for module in pack.bank.groups[0].modules:
            for factor, letter in zip("AcB", "AEB", strict=True):
                theirs[f"base_model.model.roberta.{module}.lora_{letter}.default"].copy_(
                    start.adapter[f"{module}.{factor}"]
                )
    assert trained_values(model) == pack.adapter_params(0) + pack.head_params()
    assert isinstance(model.base_model, AdaLoraModel)
    assert_same(pack, ours, model, task, Allocation(model.base_model))
    state, zeros = pack.state(0).adapter, 0
    for module in pack.bank.groups[0].modules:
        for factor, letter in zip("AcB", "AEB", strict=True):
            expected = theirs[f"base_model.model.roberta.{module}.lora_{letter}.default"].detach()
            torch.testing.assert_close(state[f"{module}.{factor}"], expected, rtol=0, atol=1e-8)
        zeros += int((state[f"{module}.c"] == 0).sum())
    assert zeros == 2 * len(pack.bank.groups[0].modules)


class Sparsity(Extra):
    """SoRA's penalty, and what its authors' optimiser does to the gate after its step."""

    def __init__(self, model: nn.Module, threshold: float) -> None:
        super().__init__()
        self.branches, self.threshold, self.zeros = branches(model), threshold, 0

    def penalty(self, step: int) -> Tensor | float:
        """10 times the mean over all entries."""
        return 10 * torch.cat([branch.part("c") for branch in self.branches]).abs().mean()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Entry by entry, in the authors' order."""
        for branch in self.branches:
            gate = branch.part("c")
            gate[gate > self.threshold] -= self.threshold
            gate[gate < -self.threshold] += self.threshold
            gate[gate.abs() < self.threshold] = 0.0
            self.zeros += int((gate == 0).sum())


@over_tasks
def test_sora_makes_the_gate_sparse_as_its_authors(
    name: str, calm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a larger threshold, so that entries become zero within these steps."""
    monkeypatch.setattr("lora_bench.methods.sora.THRESHOLD", 0.04)
    task = tasks.get(name)
    cell = cell_of("sora", name, precision="float64", **SETTINGS | {"targets": "attention+dense"})
    pack, start, ours = our_run(cell, calm_folder, task)
    model = branched(calm_folder, name, start, pack, "AcB", 8 / 4, decays=False)
    extra = Sparsity(model, 0.04)
    assert_same(pack, ours, model, task, extra)
    assert extra.zeros > 20
    for module in pack.bank.groups[0].modules:
        branch = model.get_submodule(f"roberta.{module}")
        assert isinstance(branch, Branch)
        torch.testing.assert_close(pack.state(0).adapter[f"{module}.c"], branch.part("c").detach(), rtol=0, atol=1e-9)


class Orthonormality(Extra):
    """KaSA's penalty, weight by weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.branches = branches(model)

    def penalty(self, step: int) -> Tensor | float:
        """The sum over the weights."""
        total = torch.zeros((), dtype=torch.float64)
        for branch in self.branches:
            a, b, eye = branch.part("A"), branch.part("B"), torch.eye(4, dtype=torch.float64)
            total = total + 1e-4 * (branch.part("c") ** 2).sum()
            total = total + 1e-3 * (torch.linalg.norm(b.T @ b - eye) + torch.linalg.norm(a @ a.T - eye))
        return total


@over_tasks
def test_kasa_trains_over_a_weight_without_its_least_parts(name: str, calm_folder: Path) -> None:
    task = tasks.get(name)
    cell = cell_of("kasa", name, precision="float64", **SETTINGS | {"targets": "attention+dense"})
    pack, start, ours = our_run(cell, calm_folder, task)
    model = branched(calm_folder, name, start, pack, "AcB", 8 / 4)
    for branch in branches(model):
        left, values, right = torch.linalg.svd(branch.linear.weight.detach(), full_matrices=False)
        branch.linear.weight.data = (left[:, :-4] * values[:-4]) @ right[:-4]
    assert_same(pack, ours, model, task, Orthonormality(model))


@pytest.mark.parametrize("method", ["dora-dyn", "adalora"])
def test_an_epoch_before_the_budget_is_met_is_not_selected(method: str, bench: Workbench) -> None:
    task = tasks.get("cola")
    cell = cell_of(method, precision="float64", epochs=5, select="best")
    trainer = trainer_of(Pack([cell], bench.load("float64"), task.num_outputs), task)
    selected: list[int | None] = []

    class Watch(Callback):
        def on_epoch_evaluated(self, metrics: EpochMetrics) -> None:
            selected.append(trainer.progress[0].selected)

    (progress,) = trainer.run([Watch()])
    assert selected[:2] == [None, None]
    assert progress.selected is not None
    assert progress.selected >= 3
