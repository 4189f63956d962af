"""Methods with an optimiser of their own on whole weights against their formulas, by autograd on transformers' model.

20 steps in float64. The reference classes are written from the authors' code: GaLoreAdamW's step, LoQT's layer with its
factors formed and merged, LMFlow's switch of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lora_bench import tasks
from lora_bench.contracts.kit import CPU, cell_of, padded, plain_classifier, plain_encoder, tokens, trainer_of
from lora_bench.engine import layer_outliers
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.engine.encoder.targets import layer_of, within_layer
from lora_bench.engine.ruled_optimiser import RuledAdamW
from lora_bench.engine.trainer import Trainer

EPOCHS, ROWS, TOLERANCE = 4, 38, 1e-10  # 5 steps an epoch
SETTINGS: dict[str, Any] = {
    "precision": "float64", "lr": 2e-3, "head_lr": 3e-3, "epochs": EPOCHS, "warmup": 0.11, "clip": 0.5, "head": "model",
    "batch_size": 8,
}  # fmt: skip

Grads = dict[str, Tensor]


class Adam:
    """Adam on one tensor: its moments and its own count."""

    def __init__(self, epsilon: float, is_early: bool) -> None:
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self.steps, self.epsilon, self.is_early = 0, epsilon, is_early

    def change(self, gradient: Tensor) -> Tensor:
        """What is subtracted, for a rate of 1."""
        self.steps += 1
        first = torch.zeros_like(gradient) if self.first is None else self.first
        second = torch.zeros_like(gradient) if self.second is None else self.second
        self.first, self.second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        one, two = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        if self.is_early:  # as GaLoreAdamW writes it
            early: Tensor = self.first / (self.second.sqrt() + self.epsilon) * math.sqrt(two) / one
            return early
        change: Tensor = self.first / one / ((self.second / two).sqrt() + self.epsilon)
        return change


def svd_part(gradient: Tensor, rank: int) -> Tensor:
    """GaLoreProjector's `std`: right directions of tall gradients, left ones of wide ones."""
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    part: Tensor = right[:rank] if gradient.shape[0] >= gradient.shape[1] else left[:, :rank]
    return part


class Loop:
    """A training loop over transformers' classifier, with the batches and the first head of our trainer.

    Args:
        trainer: Ours, before its first step.
        folder: The encoder's folder.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer, self.cell = trainer, trainer.pack.cells[0]
        self.model: PreTrainedModel = plain_classifier(folder, trainer.task.num_outputs, torch.float64)
        self.encoder = self.model.base_model
        names = trainer.pack.heads.form.parameters(self.model.base_model_prefix)
        with torch.no_grad():
            for part, value in trainer.pack.state(0).head.items():
                self.model.get_parameter(names[part]).copy_(value)
        self.head = {name: self.model.get_parameter(name) for name in names.values()}
        self.parts = {part: names[part] for part in trainer.pack.state(0).head}
        self.linears = {
            name: module
            for name, module in self.encoder.named_modules()
            if isinstance(module, nn.Linear) and within_layer(name)
        }
        self.layers = list(dict.fromkeys(layer_of(name) for name in self.linears))
        self.head_adam = {name: Adam(1e-8, False) for name in self.head}
        self.losses: list[float] = []

    def multiplier(self, step: int) -> float:
        """transformers' linear schedule."""
        total = self.trainer.total_steps
        warm = math.ceil(total * self.cell.warmup)
        return step / warm if step < warm else (total - step) / (total - warm)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        table = tokens(self.trainer.task, ROWS)
        for epoch in range(1, self.cell.epochs + 1):
            for rows in self.trainer.batch_rows(epoch):
                ids, mask = padded(table, rows.tolist())
                yield ids, mask, torch.from_numpy(np.asarray(table.labels)[rows])

    def gradients(self, batch: tuple[Tensor, Tensor, Tensor], parameters: dict[str, Tensor]) -> Grads:
        """The gradients of a batch's loss by name."""
        ids, mask, labels = batch
        loss = cross_entropy(self.model(input_ids=ids, attention_mask=mask).logits, labels)
        self.losses.append(loss.item())
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))

    def clip(self, gradients: Grads) -> Grads:
        """Clip as torch does, over all of these."""
        norm = torch.stack([value.norm() for value in gradients.values()]).norm()
        factor = (self.cell.clip / (norm + 1e-6)).clamp(max=1)
        return {name: value * factor for name, value in gradients.items()}

    def step_head(self, gradients: Grads, lr: float) -> None:
        for name, value in self.head.items():
            value.data -= lr * self.cell.effective_head_lr * self.head_adam[name].change(gradients[name])


def encoder_loop(
    loop: Loop, rank: int, scale: float, gap: int, active: Callable[[int], set[str | None]], epsilon: float, early: bool
) -> None:
    """GaLoreAdamW on some layers at a time; rank 0 for plain AdamW."""
    named = {n: p for n, p in loop.encoder.named_parameters() if "pooler" not in n}
    adam = {name: Adam(epsilon, early) for name in named}
    parts: dict[str, Tensor] = {}
    for step, batch in enumerate(loop.batches()):
        trained = {n: p for n, p in named.items() if layer_of(n) is None or layer_of(n) in active(step)}
        gradients = loop.clip(loop.gradients(batch, {**trained, **loop.head}))
        lr = loop.multiplier(step)
        for name, parameter in trained.items():
            gradient = gradients[name]
            is_low = bool(rank) and name.removesuffix(".weight") in loop.linears and gradient.dim() == 2
            if is_low:
                if adam[name].steps % gap == 0:
                    parts[name] = svd_part(gradient, rank)
                is_tall = gradient.shape[0] >= gradient.shape[1]
                low = gradient @ parts[name].T if is_tall else parts[name].T @ gradient
                change = adam[name].change(low)
                change = scale * (change @ parts[name] if is_tall else parts[name] @ change)
            else:
                change = adam[name].change(gradient)
            parameter.data -= lr * loop.cell.lr * change
        loop.step_head(gradients, lr)


class LoqtLayer(nn.Module):
    """`(W + s B A) x + bias` with one of A and B frozen, as in loqt/LoQT.py: merged and begun again at update steps."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.rank, self.scale = linear, rank, scale
        out, inputs = linear.weight.shape
        self.is_left = inputs <= out
        self.A = nn.Parameter(torch.zeros(rank, inputs, dtype=torch.float64))
        self.B = nn.Parameter(torch.zeros(out, rank, dtype=torch.float64))

    @property
    def trained(self) -> nn.Parameter:
        return self.B if self.is_left else self.A

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(x) + self.scale * (x @ self.A.T @ self.B.T)
        return output

    @torch.no_grad()
    def merge(self) -> None:
        self.linear.weight += self.scale * self.B @ self.A

    @torch.no_grad()
    def begin(self, gradient: Tensor) -> None:
        """U_rᵀ of the SVD of Gᵀ as A, or V_r as B; the other is zero.

        Of G here, not of Gᵀ: the directions are the same, but not LAPACK's signs, which moments outlive.
        """
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        self.A.copy_(right[: self.rank] if self.is_left else torch.zeros_like(self.A))
        self.B.copy_(torch.zeros_like(self.B) if self.is_left else left[:, : self.rank])


def loqt_loop(loop: Loop, rank: int, scale: float, gap: int) -> None:
    """Merge, take the gradient of W on one batch without a step, and go on with its factors."""
    layers = {name: LoqtLayer(linear, rank, scale) for name, linear in loop.linears.items()}
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(loop.encoder.get_submodule(parent), last, layer)
    biases = {f"{name}.bias": layer.linear.bias for name, layer in layers.items()}
    adam = {name: Adam(1e-8, False) for name in (*layers, *biases)}
    for step, batch in enumerate(loop.batches()):
        lr = loop.multiplier(step)
        if step % gap == 0:
            for layer in layers.values():
                layer.merge()
            for layer in layers.values():
                layer.A.data.zero_()
                layer.B.data.zero_()
            gradients = loop.gradients(batch, {name: layer.linear.weight for name, layer in layers.items()})
            for name, layer in layers.items():
                layer.begin(gradients[name])
        else:
            factors = {name: layer.trained for name, layer in layers.items()}
            gradients = loop.clip(loop.gradients(batch, {**factors, **biases, **loop.head}))
            for name, value in {**factors, **biases}.items():
                value.data -= lr * loop.cell.lr * adam[name].change(gradients[name])
            loop.step_head(gradients, lr)
    for name, layer in layers.items():
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(loop.encoder.get_submodule(parent), last, layer.linear)


@pytest.fixture
def ours(calm_folder: Path) -> Callable[..., Trainer]:
    def build(method: str, **sizes: Any) -> Trainer:
        cell = cell_of(method, **{**SETTINGS, **sizes})
        task = tasks.get("cola")
        return trainer_of(Pack([cell], backbones.load(str(calm_folder), CPU, "float64"), task.num_outputs), task, ROWS)

    return build


def active_by(trainer: Trainer) -> Callable[[int], set[str | None]]:
    optimiser = trainer.optimiser
    assert isinstance(optimiser, RuledAdamW)
    return lambda step: set(optimiser.active_layers(step))


def assert_equal(trainer: Trainer, loop: Loop) -> None:
    """Ours trains, then losses and all values agree."""
    (progress,) = trainer.run()
    assert len(progress.losses) == len(loop.losses) == 20
    assert max(abs(a - b) for a, b in zip(progress.losses, loop.losses, strict=True)) < TOLERANCE
    state = trainer.pack.state(0)
    for name, value in state.adapter.items():
        assert float((value - loop.encoder.get_parameter(name).detach()).abs().max()) < TOLERANCE, name
    for part, name in loop.parts.items():
        assert float((state.head[part] - loop.head[name].detach()).abs().max()) < TOLERANCE, name


def test_galore(ours: Callable[..., Trainer], calm_folder: Path) -> None:
    trainer = ours("galore", rank=3, alpha=6.0, b=4)
    loop = Loop(trainer, calm_folder)
    encoder_loop(loop, 3, 2.0, 4, active_by(trainer), 1e-6, True)
    assert_equal(trainer, loop)


def test_lisa(ours: Callable[..., Trainer], calm_folder: Path) -> None:
    trainer = ours("lisa", a=1, b=3)
    active = active_by(trainer)
    drawn = [active(step) for step in range(20)]
    assert all(len(layers) == 1 for layers in drawn) and len(set(map(frozenset, drawn))) == 2
    assert all(drawn[step] == drawn[step - step % 3] for step in range(20))
    loop = Loop(trainer, calm_folder)
    encoder_loop(loop, 0, 1.0, 1, active, 1e-8, False)
    assert_equal(trainer, loop)


def test_owlore(ours: Callable[..., Trainer], calm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_bench.methods.owlore.GAP", 3)
    trainer = ours("owlore", rank=3, a=1, b=2)
    loop = Loop(trainer, calm_folder)
    encoder_loop(loop, 3, 1.0, 3, active_by(trainer), 1e-6, True)
    assert_equal(trainer, loop)


def test_loqt(ours: Callable[..., Trainer], calm_folder: Path) -> None:
    trainer = ours("loqt", rank=3, alpha=6.0, b=7)
    loop = Loop(trainer, calm_folder)
    loqt_loop(loop, 3, 2.0, 7)
    assert_equal(trainer, loop)


def test_layers_are_drawn_by_the_measure_of_owl(calm_folder: Path) -> None:
    """Of |W| ‖x‖ of a layer, the share above a multiple of the mean; layers with more are drawn more often."""
    backbone = backbones.load(str(calm_folder), CPU, "float32")
    table = backbone.table(tokens(tasks.get("cola"), ROWS))
    measured = layer_outliers.shares(backbone, table.batches([np.arange(ROWS)]), 3.0)
    ids, mask = padded(tokens(tasks.get("cola"), ROWS), range(ROWS))
    plain = plain_encoder(calm_folder)
    inputs: dict[str, Tensor] = {}
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear) and within_layer(name):
            module.register_forward_pre_hook(lambda _, x, name=name: inputs.__setitem__(name, x[0][mask.bool()]))
    with torch.no_grad():
        plain(input_ids=ids, attention_mask=mask)
    for layer, share in measured.items():
        values = torch.cat(
            [
                (plain.get_parameter(f"{name}.weight").abs() * x.norm(dim=0)).flatten()
                for name, x in inputs.items()
                if layer_of(name) == layer
            ]
        )
        assert share == pytest.approx(float((values > 3 * values.mean()).double().mean()), abs=2e-4)
    assert len(measured) == 2
