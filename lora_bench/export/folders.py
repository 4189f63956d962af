"""Writing the two forms: a peft adapter and a merged transformers model, each whole or not at all."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import AutoTokenizer, PreTrainedModel

from lora_bench.data import hub
from lora_bench.engine.encoder import backbone as encoders
from lora_bench.errors import USAGE, BenchError
from lora_bench.export import card, classifier, low_rank
from lora_bench.export.trained import Trained


def write_peft(trained: Trained, out: Path, dtype: str) -> str:
    """`adapter_config.json`, `adapter_model.safetensors` and a card; says in a line what was written."""
    made = low_rank.factors(trained.pack)
    model = classifier.untrained(trained)
    prefix, head = model.base_model_prefix, trained.pack.state(0).head
    classifier.fold(model, trained.pack, {name: update.B @ update.A for name, update in made.items()})
    difference = classifier.check(model, trained.pack)
    rank = next(iter(made.values())).A.shape[0]
    config = low_rank.config(rank, prefix, made.keys(), trained.pack.backbone.linears().keys(), trained.base)
    tensors = {name: value.to(getattr(torch, dtype)) for name, value in low_rank.tensors(prefix, made, head).items()}
    with whole(out) as folder:
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "adapter_model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
        (folder / "README.md").write_text(card.peft(trained, dtype, rank), encoding="utf-8")
    return f"a peft LoRA of rank {rank} over {trained.base}; {_checked(difference)}"


def write_merged(trained: Trained, out: Path, dtype: str) -> str:
    """A directory that transformers loads by itself, with the tokenizer and a card; says in a line what was written."""
    model = classifier.untrained(trained)
    classifier.fold(model, trained.pack, trained.pack.deltas(0))
    difference = classifier.check(model, trained.pack)
    with whole(out) as folder:
        _save(model.to(getattr(torch, dtype)), folder)
        with encoders.quiet_transformers(), hub.hub_mode(trained.offline):
            AutoTokenizer.from_pretrained(trained.model, local_files_only=trained.offline).save_pretrained(folder)
        (folder / "README.md").write_text(card.merged(trained, dtype), encoding="utf-8")
    return f"{type(model).__name__} with {trained.cell.method} merged; {_checked(difference)}"


WRITERS: dict[str, Callable[[Trained, Path, str], str]] = {"peft": write_peft, "merged": write_merged}


def _save(model: PreTrainedModel, folder: Path) -> None:
    with encoders.quiet_transformers():
        model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)  # safetensors writes for the user alone


def _checked(difference: float) -> str:
    return f"float32 logits of six probe sequences differ by {difference:.1g} at most"


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` when all went well; nothing is left of it else.

    Raises:
        BenchError: exit code 2 if `out` is there and not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BenchError(f"'{out}' exists and is not an empty folder.", "Give --out a new folder.", USAGE)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.parent / f".{out.name[:64]}.{secrets.token_hex(6)}.tmp"
    folder.mkdir()
    try:
        yield folder
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
