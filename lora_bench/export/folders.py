"""Exports as folders: a peft adapter or a merged transformers model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from lora_bench.engine.encoder import backbone as encoders
from lora_bench.export import card, classifier, low_rank
from lora_bench.export.trained import Trained
from lora_bench.export.writing import complete_folder


def write_peft(trained: Trained, out: Path, dtype: str) -> str:
    """Write `adapter_config.json`, `adapter_model.safetensors` and a card; return a line about what was written."""
    updates = low_rank.factors(trained.pack)
    model = classifier.untrained(trained)
    prefix, form = model.base_model_prefix, classifier.form_of(trained.pack)
    classifier.insert(model, trained.pack, {name: update.B @ update.A for name, update in updates.items()})
    difference = classifier.check(model, trained.pack)
    rank = next(iter(updates.values())).A.shape[0]
    linears = trained.pack.backbone.linears().keys()
    config = low_rank.config(rank, prefix, updates.keys(), linears, trained.cell.model, form.trained_modules)
    tensors = low_rank.tensors(prefix, updates, classifier.head_values(model, trained.pack))
    tensors = {name: value.to(getattr(torch, dtype)) for name, value in tensors.items()}
    with complete_folder(out) as folder:
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "adapter_model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
        _write_cards(folder, trained, card.peft_card(trained, dtype, rank))
    return f"a peft LoRA of rank {rank} over {trained.base}; {_difference_text(difference)}"


def write_merged(trained: Trained, out: Path, dtype: str) -> str:
    """Write a directory that transformers loads, with tokenizer and card; return a line about what was written."""
    model = classifier.untrained(trained)
    classifier.insert(model, trained.pack, trained.pack.deltas(0))
    difference = classifier.check(model, trained.pack)
    tokenizer = trained.tokenizer()
    with complete_folder(out) as folder:
        _save(model.to(getattr(torch, dtype)), folder)
        tokenizer.save_pretrained(folder)
        _write_cards(folder, trained, card.merged_card(trained, dtype))
    return f"{type(model).__name__} with {trained.cell.method} merged; {_difference_text(difference)}"


WRITERS: dict[str, Callable[[Trained, Path, str], str]] = {"peft": write_peft, "merged": write_merged}


def _write_cards(folder: Path, trained: Trained, text: str) -> None:
    """Write the model card, and beside it the score in the form that the Hub's leaderboards read."""
    (folder / "README.md").write_text(text, encoding="utf-8")
    for name, content in card.eval_result_files(trained).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def _save(model: PreTrainedModel, folder: Path) -> None:
    with encoders.quiet_transformers():
        model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)  # safetensors writes for the user alone


def _difference_text(difference: float) -> str:
    return f"float32 logits of six probe sequences differ by {difference:.1g} at most"
