"""ScalaBL against its formula by autograd: its layer on transformers' model, AdamW and SGD, 20 steps in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lora_bench import tasks
from lora_bench.contracts.kit import CPU, cell_of, padded, plain_classifier, tokens, trainer_of
from lora_bench.engine import posterior, randomness
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.engine.trainer import Trainer
from lora_bench.methods.scalabl import RECIPE, ScalaBL

ROWS, STEPS, TOLERANCE = 38, 20, 1e-10
PARTS = ("V", "B", "log_scale", "log_spread")


class Layer(nn.Module):
    """`W x + s B ((σ + ρ ⊙ ε) ⊙ V x)`, as lorawrappers/scalabl.py, with the noise given."""

    def __init__(self, linear: nn.Linear, state: dict[str, Tensor], scale: float) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        self.V, self.B = (nn.Parameter(state[name].clone()) for name in ("V", "B"))
        self.log_s, self.log_s_sigma = (nn.Parameter(state[n][:, 0].clone()) for n in ("log_scale", "log_spread"))
        self.noise = torch.zeros_like(self.log_s)

    def forward(self, x: Tensor) -> Tensor:
        s = self.log_s.exp() + self.log_s_sigma.exp() * self.noise
        output: Tensor = self.linear(x) + self.scale * ((x @ (torch.diag(s) @ self.V).T) @ self.B.T)
        return output

    def divergence(self) -> Tensor:
        """The code's, with the prior N(1e-8, 1)."""
        squared = (1e-8 - self.log_s.exp()) ** 2
        return (self.log_s_sigma + (1 + squared) / (2 * (2 * self.log_s_sigma).exp()) - 0.5).sum()


class Loop:
    """A training loop over transformers' classifier with such layers, from where our trainer starts."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer, self.cell, start = trainer, trainer.pack.cells[0], trainer.pack.state(0)
        self.model = plain_classifier(folder, 2, torch.float64)
        self.layers: dict[str, Layer] = {}
        head = trainer.pack.heads.form.parameters(self.model.base_model_prefix)
        with torch.no_grad():
            for part, value in start.head.items():
                self.model.get_parameter(head[part]).copy_(value)
        self.model.requires_grad_(False)
        for name in (name for group in trainer.pack.bank.groups for name in group.modules):
            parent, _, last = name.rpartition(".")
            linear = self.model.base_model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            factors = {part: start.adapter[f"{name}.{part}"] for part in PARTS}
            self.layers[name] = Layer(linear, factors, RECIPE.scale(self.cell))
            setattr(self.model.base_model.get_submodule(parent), last, self.layers[name])
        for part in start.head:
            self.model.get_parameter(head[part]).requires_grad_(True)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.adamw = torch.optim.AdamW(trained, lr=self.cell.lr, weight_decay=0.0)

    def draw(self, *key: str | int) -> None:
        """Our noise of this key."""
        for name, layer in self.layers.items():
            layer.noise = torch.from_numpy(randomness.normal(3, 1, self.cell.seed, name, "noise", *key))[:, 0]

    def run(self, rate_of: Callable[[int], float]) -> list[float]:
        """Train, and return the losses."""
        table, losses, warm = tokens(self.trainer.task, ROWS), [], math.ceil(STEPS * self.cell.warmup)
        scales = [p for layer in self.layers.values() for p in (layer.log_s, layer.log_s_sigma)]
        batches = [rows for epoch in range(1, 5) for rows in self.trainer.batch_rows(epoch)]
        for step, rows in enumerate(batches):
            multiplier = step / warm if step < warm else (STEPS - step) / (STEPS - warm)
            self.draw("step", step)
            ids, mask = padded(table, rows.tolist())
            labels = torch.from_numpy(np.asarray(table.labels)[rows])
            loss = cross_entropy(self.model(input_ids=ids, attention_mask=mask).logits, labels)
            self.adamw.param_groups[0]["lr"] = self.cell.lr * multiplier
            self.adamw.zero_grad()
            loss.backward()
            self.adamw.step()
            losses.append(loss.item())
            total = torch.stack([layer.divergence() for layer in self.layers.values()]).sum()
            for parameter, gradient in zip(scales, torch.autograd.grad(total, scales), strict=True):
                parameter.data -= rate_of(step) * multiplier * gradient
        return losses

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """The mean of 10 draws for all rows."""
        ids, mask = padded(tokens(self.trainer.task, ROWS), range(ROWS))
        total = torch.zeros(ROWS, 2, dtype=torch.float64)
        for index in range(10):
            self.draw("prediction", index)
            total += self.model(input_ids=ids, attention_mask=mask).logits.softmax(-1) / 10
        return total


@pytest.mark.parametrize("is_short", [False, True], ids=["published cycle", "cycle of 2"])
def test_it_trains_and_predicts_as_the_formula(
    calm_folder: Path, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = int(100 * ROWS ** (math.pi / 8) / 8)

    def published(step: int) -> float:
        return 0.2 * float(2 ** (step % cycle + 1) / (2 ** (cycle + 1) - 1))

    def short(step: int) -> float:
        return 1e-5 * (1 + step % 2)

    if is_short:  # the published cycle is so long here that all steps on the divergence are tiny
        monkeypatch.setattr(ScalaBL, "penalty_weight", lambda _, __, step: short(step.number - 1))
    cell = cell_of(
        "scalabl", precision="float64", rank=3, targets="qv", lr=2e-3, epochs=4, batch_size=8, head="model", clip=0.0,
        warmup=0.11,
    )  # fmt: skip
    pack = Pack([cell], backbones.load(str(calm_folder), CPU, "float64"), 2)
    trainer = trainer_of(pack, tasks.get("cola"), ROWS)
    loop = Loop(trainer, calm_folder)
    losses = loop.run(short if is_short else published)
    (progress,) = trainer.run()
    assert max(abs(a - b) for a, b in zip(progress.losses, losses, strict=True)) < TOLERANCE
    state = pack.state(0)
    for name, layer in loop.layers.items():
        values = (layer.V, layer.B, layer.log_s[:, None], layer.log_s_sigma[:, None])
        for part, value in zip(PARTS, values, strict=True):
            assert float((state.adapter[f"{name}.{part}"] - value.detach()).abs().max()) < TOLERANCE, name
    trained = Pack([cell], pack.backbone, 2, hooked=True)
    trained.load(0, state)
    predict, _ = posterior.predictor(trained, trainer.table)
    assert float((predict(trainer.table) - loop.probabilities()).abs().max()) < TOLERANCE


def test_the_start_is_the_decomposition_of_a_fresh_linear_layer(calm_folder: Path) -> None:
    pack = Pack([cell_of("scalabl", precision="float64", rank=3)], backbones.load(str(calm_folder), CPU, "float64"), 2)
    state = pack.state(0).adapter
    spreads = torch.cat([value for name, value in state.items() if name.endswith("log_spread")]).exp()
    assert 0.05 / math.sqrt(2) <= float(spreads.min()) < float(spreads.max()) <= 0.05
    for name in pack.bank.groups[0].modules:
        v, scales = state[f"{name}.V"], state[f"{name}.log_scale"][:, 0].exp()
        torch.testing.assert_close(v @ v.T, torch.eye(3, dtype=torch.float64))
        draw = randomness.uniform(3, v.shape[1], 0, name, "fresh") * v.shape[1] ** -0.5
        torch.testing.assert_close(scales, torch.linalg.svdvals(torch.from_numpy(draw)))
