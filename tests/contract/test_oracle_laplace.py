"""Laplace-LoRA against its formula: hooks on peft's LoRA, a dense information matrix, a dense inverse (float64)."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import RobertaForSequenceClassification

from lora_bench import tasks
from lora_bench.contracts.kit import CPU, Run, cell_of, padded, table_of, tokens, train
from lora_bench.engine import fisher, randomness
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.engine.encoder.backbone import quiet_transformers
from lora_bench.methods import RECIPES
from lora_bench.methods.rules import FisherPosterior

RANK = 2
METHODS = [name for name, recipe in RECIPES.items() if isinstance(recipe.posterior, FisherPosterior)]


def trained(folder: Path, method: str, task: str) -> Run:
    backbone = backbones.load(str(folder), CPU, "float64")
    cell = cell_of(method, task, precision="float64", rank=RANK, targets="qv", lr=3e-2, head_lr=3e-2, epochs=4)
    return train([cell], backbone, tasks.get(task))


def peer_of(folder: Path, run: Run, over: str) -> tuple[nn.Module, list[nn.Module], list[nn.Parameter]]:
    """peft's model with what the cell has trained, its uncertain modules, and their parameters in our order."""
    state = run.pack.state(0)
    with quiet_transformers():
        plain = RobertaForSequenceClassification.from_pretrained(
            folder, num_labels=run.task.num_outputs, dtype=torch.float64, attn_implementation="eager"
        )
    plain.classifier.load_state_dict(state.head)
    plain.eval()
    head = plain.classifier.out_proj
    config = LoraConfig(r=RANK, lora_alpha=8, target_modules=r".*\.(query|value)", lora_dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft about transformers' next version
        model = get_peft_model(plain, config).eval()
    modules: list[nn.Module] = []
    names = [name for group in run.pack.bank.groups for name in group.modules]
    for name in names:
        layer = model.get_submodule(f"base_model.model.roberta.{name}")
        for factor in ("A", "B"):
            module = getattr(layer, f"lora_{factor}")["default"]
            with torch.no_grad():
                module.weight.copy_(state.adapter[f"{name}.{factor}"])
            modules.append(module)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if over == "output-layer":
        modules = [head]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return model, modules, parameters


def information(
    model: nn.Module, modules: list[nn.Module], batches: list[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], int]:
    """The dense information matrices, one a parameter, as ASDL accumulates it: (Σ g gᵀ) ⊗ (Σ a aᵀ) / N."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    handles = [module.register_forward_hook(lambda m, i, o: seen.__setitem__(m, (i[0], o))) for module in modules]
    inputs: dict[nn.Module, Tensor] = {}
    gradients: dict[nn.Module, Tensor] = {}
    count = 0
    for ids, mask in batches:
        logits = model(input_ids=ids, attention_mask=mask).logits
        log_p = logits.log_softmax(-1)
        count += len(ids)
        for module in modules:
            a = seen[module][0].detach()
            a = a[mask.bool()] if a.dim() == 3 else a
            inputs[module] = inputs.get(module, torch.zeros(())) + a.mT @ a
        for c in range(logits.shape[1]):
            loss = -(log_p[:, c].detach().exp().sqrt() * log_p[:, c]).sum()
            for module, g in zip(
                modules, torch.autograd.grad(loss, [seen[m][1] for m in modules], retain_graph=True), strict=True
            ):
                flat = g.flatten(0, -2)
                gradients[module] = gradients.get(module, torch.zeros(())) + flat.mT @ flat
    for handle in handles:
        handle.remove()
    blocks: list[Tensor] = []
    for module in modules:
        for name, _ in module.named_parameters():
            blocks.append(
                torch.kron(gradients[module], inputs[module] / count) if name == "weight" else gradients[module]
            )
    return blocks, count


def best_precision(blocks: list[Tensor], square: float) -> float:
    """Adam on log λ of minus the log of the marginal likelihood, from dense eigenvalues, by autograd."""
    values = torch.cat([torch.linalg.eigvalsh(block).clamp(min=0) for block in blocks])
    log_precision = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([log_precision], lr=0.1)
    for _ in range(1000):
        optimiser.zero_grad()
        precision = log_precision.exp()
        loss = ((values + precision).log().sum() - len(values) * log_precision + precision * square) / 2
        loss.backward()
        optimiser.step()
    return math.exp(log_precision.item())


def jacobian(model: nn.Module, parameters: list[nn.Parameter], ids: Tensor) -> Tensor:
    """∂ logits / ∂ parameters of one row, `[classes, values]`."""
    logits = model(input_ids=ids).logits[0]
    rows = [torch.autograd.grad(logit, parameters, retain_graph=True) for logit in logits]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("task", ["cola", "mnli"])
@pytest.mark.parametrize("method", METHODS)
def test_the_posterior_is_that_of_dense_matrices(
    method: str, task: str, calm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "DRAWS", 500)
    recipe = RECIPES[method]
    assert isinstance(recipe.posterior, FisherPosterior)
    run = trained(calm_folder, method, task)
    table, rows = table_of(run.pack.backbone, run.task), tokens(run.task)
    pack = Pack([run.cell], run.pack.backbone, run.task.num_outputs, hooked=True)
    pack.load(0, run.pack.state(0))
    posterior = fisher.fit(pack, recipe.posterior.over, table)

    model, modules, parameters = peer_of(calm_folder, run, recipe.posterior.over)
    batches = [padded(rows, range(start, start + 8)) for start in range(0, len(rows), 8)]
    blocks, count = information(model, modules, batches)
    assert count == len(rows)
    precision = best_precision(blocks, sum(float(p.detach().square().sum()) for p in parameters))
    assert posterior.precision == pytest.approx(precision, rel=1e-8)

    covariance = torch.linalg.inv(torch.block_diag(*blocks) + precision * torch.eye(sum(map(len, blocks))))
    noise = torch.from_numpy(randomness.normal(500, run.task.num_outputs, run.cell.seed, "posterior"))
    expected = []
    for row in range(len(rows)):
        ids, _ = padded(rows, [row])
        j = jacobian(model, parameters, ids)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
            values, vectors = torch.linalg.eigh(j @ covariance @ j.mT)
            sampled = logits + noise @ vectors @ values.clamp(min=0).sqrt().diag() @ vectors.mT
            expected.append(sampled.softmax(-1).mean(0))
    actual = fisher.probabilities(pack, recipe.posterior.over, posterior, table)
    assert float((actual - torch.stack(expected)).abs().max()) < 1e-8


def test_a_far_larger_prior_precision_gives_the_point(calm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "prior_precision", lambda *_: 1e12)
    run = trained(calm_folder, METHODS[0], "cola")
    pack = Pack([run.cell], run.pack.backbone, run.task.num_outputs, hooked=True)
    pack.load(0, run.pack.state(0))
    table = table_of(pack.backbone, run.task)
    posterior = fisher.fit(pack, "factors", table)
    with pack, torch.no_grad():
        pack.compose()
        point = pack.logits(next(table.batches([np.arange(len(table))])))[0].softmax(-1)
    averaged = fisher.probabilities(pack, "factors", posterior, table)
    assert float((averaged - point).abs().max()) < 1e-6
