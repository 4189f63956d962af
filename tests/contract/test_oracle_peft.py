"""LoRA and its kin, head and full against transformers and peft: padded batches, AdamW, a linear schedule, clipping."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    DeloraConfig,
    GraloraConfig,
    IA3Config,
    LoraConfig,
    MissConfig,
    PeftConfig,
    PeftModel,
    TinyLoraConfig,
    VeraConfig,
    get_peft_model,
)
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import RobertaForSequenceClassification, get_linear_schedule_with_warmup

from lora_bench import tasks
from lora_bench.cell import Cell
from lora_bench.contracts.kit import cell_of, logits_of, padded, tokens, trainer_of
from lora_bench.data.tokens import TokenTable
from lora_bench.engine import randomness
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.engine.encoder.backbone import DTYPES, quiet_transformers
from lora_bench.methods import RECIPES
from lora_bench.tasks import Task

ROWS, EPOCHS, STEPS, WARM = 38, 4, 20, 3  # 5 steps an epoch, the last batch smaller
# Adam turns the rounding of a near-zero gradient into a step, and rates here are high: float64 is what compares. In
# float32 the two differ by what rounding does to either, which depends on the machine: peft's own distance from float64
# is the measure of it, and some roundings a step where that happens to be small.
TOLERANCE = 1e-10  # of the largest loss, in float64; 5e-14 has been seen
FACTOR, FLOOR = 10.0, 3 * STEPS * torch.finfo(torch.float32).eps
SETTINGS: dict[str, Any] = {
    "rank": 4, "alpha": 8.0, "targets": "qv", "lr": 2e-2, "head_lr": 3e-2, "epochs": EPOCHS, "weight_decay": 0.1,
    "warmup": 0.11, "clip": 0.5,
}  # fmt: skip

over_tasks = pytest.mark.parametrize("name", ["cola", "mnli", "stsb"])


def classifier(folder: Path, task: Task, head: dict[str, Tensor], precision: str) -> nn.Module:
    """transformers' own classifier over the encoder, with our head's start."""
    with quiet_transformers():
        model = RobertaForSequenceClassification.from_pretrained(
            folder, num_labels=task.num_outputs, dtype=DTYPES[precision], attn_implementation="eager"
        )
    model.classifier.load_state_dict(head)
    return model


Form = Callable[[Tensor, Tensor], Tensor]


def mixed_matrices(ours: Tensor, theirs: Tensor) -> Tensor:
    """TinyLoRA's P, whose matrices have an axis of their own in peft."""
    unfolded: Tensor = ours.unflatten(0, (theirs.shape[1], theirs.shape[0]))  # torch leaves unflatten untyped
    return unfolded.transpose(0, 1)


def blocks_of_a(ours: Tensor, theirs: Tensor) -> Tensor:
    """GraLoRA's A: from rows (m, j) and columns (n, i) to `[n, i, (j m)]`."""
    count = theirs.shape[0]
    blocks: Tensor = ours.unflatten(0, (-1, count)).unflatten(-1, (count, -1)).permute(2, 3, 1, 0)
    return blocks.flatten(-2)


def blocks_of_b(ours: Tensor, theirs: Tensor) -> Tensor:
    """GraLoRA's B: from rows (j, o) and columns (m, n) to `[j, (n m), o]`."""
    count = theirs.shape[0]
    blocks: Tensor = ours.unflatten(0, (count, -1)).unflatten(-1, (-1, count)).permute(0, 3, 2, 1)
    return blocks.flatten(1, 2)


@dataclass(frozen=True)
class Peer:
    """The settings of peft for a method.

    Attributes:
        config: peft's class.
        options: What it is given.
        freezes: A part of the names that stay frozen.
        ratio: LoRA+'s ratio of rates.
        targets: Our targets.
        modules: The same for peft.
        sizes: Our settings where they are not those of all.
        forms: By factor, how ours becomes of the shape of peft's; a view by default.
    """

    config: Callable[..., PeftConfig] = LoraConfig
    options: Mapping[str, Any] = field(default_factory=lambda: {"r": 4, "lora_alpha": 8})
    freezes: str = "none"
    ratio: float | None = None
    targets: str = "qv"
    modules: str = r".*\.(query|value)"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    forms: Mapping[str, Form] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What our cell is given."""
        return {**SETTINGS, "targets": self.targets, **self.sizes}


FFN = r".*layer\.\d+\.output\.dense"
LINEARS = r".*encoder\.layer.*\.(query|key|value|dense)"
PEERS = {
    "lora": Peer(),
    "lora-fa": Peer(freezes=".lora_A."),
    "rslora": Peer(options={"r": 4, "lora_alpha": 8, "use_rslora": True}),
    "lora-plus": Peer(ratio=16.0),
    "pissa": Peer(),  # peft starts them in float32 alone, which has a test of its own
    "olora": Peer(),
    "vera": Peer(VeraConfig, {"r": 4, "d_initial": 0.1}),
    "tinylora": Peer(TinyLoraConfig, {"r": 4, "u": 7}, forms={"P": mixed_matrices}),
    "dora": Peer(options={"r": 4, "lora_alpha": 8, "use_dora": True}, targets="attention+dense", modules=LINEARS),
    "ia3": Peer(IA3Config, {"feedforward_modules": FFN}, targets="kv+ffn", modules=rf"{FFN}|.*\.(key|value)"),
    "mica": Peer(freezes=".lora_B.", targets="attention+dense", modules=LINEARS),
    "delora": Peer(DeloraConfig, {"r": 4, "delora_lambda": 8}, targets="attention+dense", modules=LINEARS),
    # 5 does not divide the inputs, which peft fills up with zeros.
    "miss": Peer(
        MissConfig,
        {"r": 5},
        targets="attention+dense",
        modules=LINEARS,
        sizes={"rank": 5},
        forms={"D": lambda ours, _: ours.mT},
    ),
    "gralora": Peer(
        GraloraConfig,
        {"r": 4, "alpha": 8, "gralora_k": 2},
        targets="attention+dense",
        modules=LINEARS,
        sizes={"a": 2},
        forms={"A": blocks_of_a, "B": blocks_of_b},
    ),
}


def wrapped_by_peft(model: nn.Module, peer: Peer) -> nn.Module:
    """The classifier in peft's form of a method."""
    config = peer.config(target_modules=peer.modules, task_type="SEQ_CLS", **peer.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute with an older name
        wrapped: nn.Module = get_peft_model(model, config)
    return wrapped


def peer_of(method: str, model: nn.Module, start: dict[str, Tensor], precision: str) -> nn.Module:
    """The classifier as peft has the method, with our factors as start."""
    peer = PEERS[method]
    wrapped = wrapped_by_peft(model, peer).to(DTYPES[precision])
    with torch.no_grad():
        for name, value in peft_factors(wrapped).items():
            value.copy_(in_their_form(peer, name, start[name], value))
        if RECIPES[method].subtracts_start:
            for name, layer in lora_layers(wrapped).items():
                weight_of(layer).sub_(8 / 4 * start[f"{name}.B"] @ start[f"{name}.A"])
    for name, value in wrapped.named_parameters():
        if peer.freezes in name:
            value.requires_grad_(False)
    return wrapped


def weight_of(layer: LoraLayer) -> Tensor:
    """The frozen weight that a layer of peft's adapts."""
    return layer.get_base_layer().get_parameter("weight")


def lora_layers(wrapped: nn.Module) -> dict[str, LoraLayer]:
    """peft's adapted layers under our names."""
    return {
        name.removeprefix("base_model.model.roberta."): module
        for name, module in wrapped.named_modules()
        if isinstance(module, LoraLayer)
    }


def factors_of(pack: Pack) -> dict[str, Tensor]:
    """All factors of the one cell, trained and frozen, by `module.factor`."""
    (group,) = pack.bank.groups
    found = group.factors(group.block.matrix.detach())
    return {
        f"{module}.{name}": values[0, place].clone()
        for family, modules in group.families.items()
        for name, values in found[family].items()
        for place, module in enumerate(modules)
    }


THEIRS = {
    "lora_A": "A", "lora_B": "B", "vera_A": "A", "vera_B": "B", "vera_lambda_d": "d", "vera_lambda_b": "b",
    "lora_magnitude_vector": "m", "ia3_l": "", "tinylora_A": "A", "tinylora_B": "B", "tinylora_P": "P",
    "delora_A": "A", "delora_B": "B", "delora_lambda": "size", "delora_w_norm": "columns", "miss_block": "D",
    "gralora_A": "A", "gralora_B": "B",
}  # fmt: skip


def peft_factors(wrapped: nn.Module) -> dict[str, Tensor]:
    """peft's factors under our names; one that all layers share stands under the first layer's."""
    found: dict[str, Tensor] = {}
    for name, value in [*wrapped.named_parameters(), *wrapped.named_buffers()]:
        known = re.fullmatch(rf"base_model\.model\.roberta\.(.+)\.({'|'.join(THEIRS)})\.\S+", name)
        if known:
            found[f"{known[1]}.{THEIRS[known[2]] or ('stretch' if len(value) == 1 else 'gain')}"] = value
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in found))
    mixes = [value for name, value in wrapped.named_parameters() if name.startswith("base_model.tinylora_v")]
    return found | {f"{module}.v": value for module, value in zip(modules, mixes, strict=False)}


def in_their_form(peer: Peer, name: str, ours: Tensor, theirs: Tensor) -> Tensor:
    """Our factor in the shape of peft's, where a vector has one axis."""
    form = peer.forms.get(name.rpartition(".")[2])
    return ours.view_as(theirs) if form is None else form(ours, theirs)


def adapter_rates(model: nn.Module, cell: Cell) -> dict[Tensor, float]:
    """The rate of each parameter as peft's LoRA+ optimiser gives it, if the method is that."""
    ratio = PEERS.get(cell.method, Peer()).ratio
    if ratio is None:
        return {}
    assert isinstance(model, PeftModel)
    made = create_loraplus_optimizer(model, torch.optim.AdamW, lr=cell.lr, loraplus_lr_ratio=ratio)
    return {value: group["lr"] for group in made.param_groups for value in group["params"]}


def optimiser_for(model: nn.Module, cell: Cell, rates: Mapping[Tensor, float]) -> torch.optim.AdamW:
    """AdamW in groups as transformers' Trainer makes them, and the head with its own rate."""
    groups = []
    adapters = {**adapter_rates(model, cell), **rates}
    for name, value in model.named_parameters():
        if value.requires_grad:
            decay = 0.0 if name.endswith("bias") or "LayerNorm" in name else cell.weight_decay
            rate = cell.effective_head_lr if "classifier" in name else adapters.get(value, cell.lr)
            groups.append({"params": [value], "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, foreach=False)


def batches(cell: Cell, rows: int) -> Iterator[list[int]]:
    """The rows of every step, in the package's order."""
    for epoch in range(1, cell.epochs + 1):
        order = randomness.permutation(rows, cell.seed, "order", epoch).tolist()
        yield from (order[begin : begin + cell.batch_size] for begin in range(0, rows, cell.batch_size))


class Extra:
    """What a method adds to the loop; nothing here.

    Args:
        rates: The rates of parameters that are not the cell's.
    """

    def __init__(self, rates: Mapping[Tensor, float] | None = None) -> None:
        self.rates = rates or {}

    def penalty(self, step: int) -> Tensor | float:
        """What is added to the loss of a step (from 1)."""
        return 0.0

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step, before gradients are cleared."""


def their_losses(model: nn.Module, cell: Cell, table: TokenTable, extra: Extra | None = None) -> list[float]:
    """The loop that transformers' Trainer runs, without dropout; the loss of every step."""
    extra = extra or Extra()
    optimiser = optimiser_for(model, cell, extra.rates)
    schedule = get_linear_schedule_with_warmup(optimiser, WARM, STEPS)
    parameters = [value for value in model.parameters() if value.requires_grad]
    losses = []
    for step, rows in enumerate(batches(cell, len(table)), 1):
        loss = model(**inputs(table, rows, parameters[0].dtype)).loss + extra.penalty(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, cell.clip)
        optimiser.step()
        schedule.step()
        extra.after_step(step)
        losses.append(loss.item())
    return losses


def inputs(table: TokenTable, rows: Sequence[int], dtype: torch.dtype) -> dict[str, Tensor]:
    """A padded batch with its labels."""
    ids, mask = padded(table, rows)
    labels = torch.from_numpy(table.labels)[torch.tensor(rows)]
    labels = labels.to(dtype) if labels.is_floating_point() else labels
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def our_run(cell: Cell, folder: Path, task: Task) -> tuple[Pack, State, list[float]]:
    """The trained pack, how it started (frozen factors too), and the loss of every step."""
    backbone = backbones.load(str(folder), torch.device("cpu"), cell.precision, trains=cell.method == "full")
    pack = Pack([cell], backbone, task.num_outputs)
    trainer = trainer_of(pack, task, ROWS)
    start = State(factors_of(pack) if pack.bank.groups else {}, pack.state(0).head)
    untrained = logits_of(pack, task)
    (progress,) = trainer.run()
    assert len(progress.losses) == STEPS
    assert (logits_of(pack, task) - untrained).abs().max() > 0.05  # far enough for equal losses to mean something
    return pack, start, progress.losses


def assert_same(pack: Pack, ours: list[float], model: nn.Module, task: Task, extra: Extra | None = None) -> None:
    """Losses of every step and logits after the last agree with the other model's training, in float64."""
    cell = pack.cells[0]
    theirs = their_losses(model, cell, tokens(task, ROWS), extra)
    worst = farthest(ours, theirs)
    print(f"{cell.method} {task.name}: largest difference of a loss {worst:.2g} of the largest")
    assert worst < TOLERANCE
    torch.testing.assert_close(logits_of(pack, task)[0], their_logits(model, task), rtol=TOLERANCE, atol=10 * TOLERANCE)


def farthest(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference of a loss, in parts of the largest loss."""
    return max(abs(one - two) for one, two in zip(ours, theirs, strict=True)) / max(1.0, *theirs)


@torch.no_grad()
def their_logits(model: nn.Module, task: Task) -> Tensor:
    """`[rows, outputs]` in the table's order."""
    table = tokens(task)
    ids, mask = padded(table, range(len(table)))
    logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits


@pytest.mark.parametrize("name", ["mnli", "stsb"])
@pytest.mark.parametrize("method", PEERS)
def test_method_is_pefts(method: str, name: str, calm_folder: Path) -> None:
    task = tasks.get(name)
    cell = cell_of(method, name, precision="float64", **PEERS[method].settings())
    pack, start, ours = our_run(cell, calm_folder, task)
    model = peer_of(method, classifier(calm_folder, task, start.head, "float64"), start.adapter, "float64")
    trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert trainable == pack.adapter_params(0) + pack.head_params()
    assert_same(pack, ours, model, task)
    state = factors_of(pack)
    for factor, value in peft_factors(model).items():
        ours_in_form = in_their_form(PEERS[method], factor, state[factor], value)
        torch.testing.assert_close(ours_in_form, value.detach(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["cola", "stsb"])
@pytest.mark.parametrize("method", PEERS)
def test_in_float32_it_is_as_near_to_float64_as_peft(method: str, name: str, calm_folder: Path) -> None:
    task = tasks.get(name)
    # LoRA+'s B at 16 times such a rate is chaotic: one near-zero gradient decides, and on which side it does
    calm = {"lr": SETTINGS["lr"] / (PEERS[method].ratio or 1)}
    cell = cell_of(method, name, precision="float32", **PEERS[method].settings() | calm)
    pack, start, ours = our_run(cell, calm_folder, task)
    losses, logits = {}, {}
    for precision in ("float32", "float64"):
        model = peer_of(method, classifier(calm_folder, task, start.head, precision), start.adapter, precision)
        losses[precision] = their_losses(model, cell, tokens(task, ROWS))
        logits[precision] = their_logits(model, task).double()
    exact, size = logits["float64"], max(1.0, float(logits["float64"].abs().max()))
    far = farthest(ours, losses["float64"]), float((logits_of(pack, task)[0] - exact).abs().max()) / size
    theirs = farthest(losses["float32"], losses["float64"]), float((logits["float32"] - exact).abs().max()) / size
    print(f"{method} {name}: off by {far[0]:.2g}, {far[1]:.2g}; peft by {theirs[0]:.2g}, {theirs[1]:.2g}")
    assert far[0] < FACTOR * theirs[0] + FLOOR
    assert far[1] < FACTOR * theirs[1] + FLOOR


@over_tasks
def test_head_is_a_frozen_encoder_with_transformers_head(name: str, calm_folder: Path) -> None:
    task = tasks.get(name)
    pack, start, ours = our_run(cell_of("head", name, precision="float64", **SETTINGS), calm_folder, task)
    model = classifier(calm_folder, task, start.head, "float64")
    for parameter, value in model.named_parameters():
        value.requires_grad_("classifier" in parameter)
    assert_same(pack, ours, model, task)


@over_tasks
def test_bitfit_is_transformers_with_all_else_frozen(name: str, calm_folder: Path) -> None:
    task = tasks.get(name)
    cell = cell_of("bitfit", name, precision="float64", **SETTINGS | {"targets": "attention+dense"})
    pack, start, ours = our_run(cell, calm_folder, task)
    model = classifier(calm_folder, task, start.head, "float64")
    for parameter, value in model.named_parameters():
        trains = (
            parameter.startswith("roberta.encoder") and parameter.endswith(".bias") and "LayerNorm" not in parameter
        )
        value.requires_grad_("classifier" in parameter or trains)
    assert_same(pack, ours, model, task)


@over_tasks
def test_full_is_transformers_fine_tuning(name: str, calm_folder: Path) -> None:
    task = tasks.get(name)
    pack, start, ours = our_run(
        cell_of("full", name, precision="float64", **SETTINGS | {"lr": 5e-3}), calm_folder, task
    )
    assert_same(pack, ours, classifier(calm_folder, task, start.head, "float64"), task)
