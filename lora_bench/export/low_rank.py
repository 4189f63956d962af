"""The update of a cell in the form of a standard peft LoRA: `ΔW = B A` for every adapted weight, and nothing else.

A method whose update has another form (a bias, gains, a fully trained encoder) is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import targets
from lora_bench.engine.encoder.product import Operands
from lora_bench.errors import USAGE, BenchError

TOLERANCE = 1e-5  # of an entry of B A, relative to the largest entry of ΔW (chosen)


@torch.no_grad()
def factors(pack: Pack) -> dict[str, Operands]:
    """Return A `[rank, in]` and B `[out, rank]` of each adapted weight by the module's name.

    B includes the scale. All weights have the same rank; smaller updates are padded with zeros.

    Raises:
        BenchError: Exit code 2 if the cell changes anything else, or its change of a weight is not B A.
    """
    updates = pack.bank.by_module(pack.bank.updates(pack.backbone.exact))
    deltas = pack.deltas(0)
    operands = {name: _reduced(Operands(updates[name].A[0], updates[name].B[0])) for name in deltas}
    operands = operands or _zero_update(pack)
    exact = all(_is_close(operands[name].B @ operands[name].A, delta) for name, delta in deltas.items())
    if pack.whole is not None or pack.bias_deltas(0) or not exact:
        raise BenchError(
            f"What '{pack.cells[0].method}' trains is not a LoRA: it changes more than W + B A.",
            "Use --to merged, which holds any change.",
            USAGE,
        )
    rank = max(1, *(update.A.shape[0] for update in operands.values()))
    return {name: _padded(update, rank) for name, update in operands.items()}


def _is_close(product: Tensor, delta: Tensor) -> bool:
    return bool((product - delta).abs().max() <= TOLERANCE * delta.abs().max())


def _zero_update(pack: Pack) -> dict[str, Operands]:
    """Return a zero update of one weight, for a cell that trains only its head: peft refuses an empty adapter."""
    name, linear = next((n, m) for n, m in pack.backbone.linears().items() if targets.within_layer(n))
    outputs, inputs = linear.weight.shape
    return {name: Operands(torch.zeros(1, inputs), torch.zeros(outputs, 1))}


def _reduced(update: Operands) -> Operands:
    """Return factors of the same product whose rank is at most the weight's smaller side."""
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


def config(
    rank: int, prefix: str, adapted: Collection[str], linears: Collection[str], base: str, head: Sequence[str]
) -> dict[str, Any]:
    """Return `adapter_config.json` with fields that every version of peft knows.

    `lora_alpha` equals `r`, so that peft scales by 1: the scale is in B.

    Args:
        rank: The rank of all updates.
        prefix: The name of the encoder within the classifier.
        adapted: The names of the adapted modules in the encoder.
        linears: The names of all linear modules in the encoder.
        base: The base model's name.
        head: The modules of the classifier that make its head.
    """
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": list(head),
        "target_modules": target_modules(prefix, adapted, linears),
    }


def target_modules(prefix: str, adapted: Collection[str], linears: Collection[str]) -> list[str]:
    """Return name endings that match exactly the adapted weights, or their full names where no endings do.

    peft adapts a module if its name is in the list, or ends with `.` and an item of the list.
    """
    endings = sorted({targets.within_layer(name) or name for name in adapted})
    matched = {name for name in linears if any(f".{name}".endswith(f".{ending}") for ending in endings)}
    return endings if matched == set(adapted) else sorted(f"{prefix}.{name}" for name in adapted)


def tensors(prefix: str, updates: Mapping[str, Operands], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the content of `adapter_model.safetensors`, with the names that peft expects.

    Args:
        prefix: The name of the encoder within the classifier.
        updates: A and B of each adapted module, by its name in the encoder.
        head: The parameters of the head, by their names in the classifier.
    """
    named = {f"base_model.model.{name}": value for name, value in head.items()}
    for name, update in updates.items():
        key = f"base_model.model.{prefix}.{name}"
        named[f"{key}.lora_A.weight"], named[f"{key}.lora_B.weight"] = update.A, update.B
    return {name: value.cpu().contiguous() for name, value in named.items()}
