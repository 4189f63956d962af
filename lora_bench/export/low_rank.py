"""The update of a cell as a standard peft LoRA, if it is one: `ΔW = B A` for every adapted weight, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import targets
from lora_bench.engine.encoder.product import Operands
from lora_bench.errors import USAGE, BenchError
from lora_bench.export.classifier import HEAD

SAME = 1e-5  # relative to the largest entry of ΔW


@torch.no_grad()
def factors(pack: Pack) -> dict[str, Operands]:
    """A `[rank, in]` and B `[out, rank]` of each adapted weight, scale in B, one rank for all.

    Raises:
        BenchError: exit code 2 if the cell changes more than these weights, or not by B A.
    """
    made = pack.bank.by_module(pack.bank.updates(pack.backbone.exact))
    deltas = pack.deltas(0)
    own = {name: _smallest(Operands(made[name].A[0], made[name].B[0])) for name in deltas} or _nothing(pack)
    exact = all(_same(own[name].B @ own[name].A, delta) for name, delta in deltas.items())
    if pack.whole is not None or pack.bias_deltas(0) or not exact:
        raise BenchError(
            f"What '{pack.cells[0].method}' trains is no LoRA: it changes more than W + B A.",
            "Use --to merged, which holds any change.", USAGE,
        )  # fmt: skip
    rank = max(1, *(update.A.shape[0] for update in own.values()))
    return {name: _padded(update, rank) for name, update in own.items()}


def _same(product: Tensor, delta: Tensor) -> bool:
    return bool((product - delta).abs().max() <= SAME * delta.abs().max())


def _nothing(pack: Pack) -> dict[str, Operands]:
    """A zero update of one weight, where only the head trained: peft takes no adapter without a weight."""
    name, linear = next((n, m) for n, m in pack.backbone.linears().items() if targets.within_layer(n))
    outputs, inputs = linear.weight.shape
    return {name: Operands(torch.zeros(1, inputs), torch.zeros(outputs, 1))}


def _smallest(update: Operands) -> Operands:
    """The same product with no more rank than the weight can have."""
    outputs, inputs = update.B.shape[0], update.A.shape[1]
    if update.A.shape[0] <= min(outputs, inputs):
        return update
    product = update.B @ update.A
    if inputs <= outputs:
        return Operands(torch.eye(inputs, dtype=product.dtype, device=product.device), product)
    return Operands(product, torch.eye(outputs, dtype=product.dtype, device=product.device))


def _padded(update: Operands, rank: int) -> Operands:
    missing = rank - update.A.shape[0]
    return Operands(nn.functional.pad(update.A, (0, 0, 0, missing)), nn.functional.pad(update.B, (0, missing)))


def config(rank: int, prefix: str, adapted: Collection[str], linears: Collection[str], base: str) -> dict[str, Any]:
    """`adapter_config.json`, with what every version of peft knows and no more. `lora_alpha = r`: B is as it is."""
    return {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False,
        "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": [HEAD],
        "target_modules": target_modules(prefix, adapted, linears),
    }  # fmt: skip


def target_modules(prefix: str, adapted: Collection[str], linears: Collection[str]) -> list[str]:
    """Name endings that mean exactly the adapted weights; full names where no endings do.

    peft takes a name for a target if it is one of the list, or ends with `.` and one of it.
    """
    short = sorted({targets.within_layer(name) or name for name in adapted})
    meant = {name for name in linears if any(f".{name}".endswith(f".{ending}") for ending in short)}
    return short if meant == set(adapted) else sorted(f"{prefix}.{name}" for name in adapted)


def tensors(prefix: str, made: Mapping[str, Operands], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`adapter_model.safetensors`."""
    found = {f"base_model.model.{HEAD}.{name}": value for name, value in head.items()}
    for name, update in made.items():
        key = f"base_model.model.{prefix}.{name}"
        found[f"{key}.lora_A.weight"], found[f"{key}.lora_B.weight"] = update.A, update.B
    return {name: value.cpu().contiguous() for name, value in found.items()}
