"""Exports as folders: a peft adapter or a merged transformers model. A folder is written completely or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save
from transformers import PreTrainedModel

from lora_bench.engine.encoder import backbone as encoders
from lora_bench.engine.encoder import probe
from lora_bench.errors import MISSING, USAGE, BenchError
from lora_bench.export import card, classifier, low_rank
from lora_bench.export.trained import Trained
from lora_bench.records import files

SUFFIX = ".export"  # of the name of a folder that is not complete yet


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


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `out` if the block succeeds and is removed otherwise.

    The temporary folder of an export that was killed is removed by the next export to the same `out`.

    Raises:
        BenchError: exit code 2 if `out` is there and not an empty folder, 3 if it cannot be written.
    """
    with _write_errors(out):
        target = Path(os.path.realpath(out))  # `out` may be a link to an empty folder
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BenchError(f"'{out}' exists and is not an empty folder.", "Give --out a new folder.", USAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        temporary = target.parent / f"{_prefix(target)}{secrets.token_hex(6)}{SUFFIX}"
        folder, lock = temporary / "content", _lock(temporary)
        try:
            folder.mkdir(parents=True)
            with suppress(OSError, NotImplementedError):  # without locks, `_remove_abandoned` removes nothing
                lock.acquire(blocking=False)
            yield folder
            for path in (*files.listing(folder), folder):
                files.sync(path)
            if target.exists():
                target.rmdir()
            folder.rename(target)
            files.sync(target.parent)
        finally:
            lock.release()
            files.remove(temporary)


@contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    """Turn an error of writing `out` into a BenchError, whichever library raises it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _unwritable(out, error) from error
    except Exception as error:
        if type(error) is not Exception:  # tokenizers raises a bare Exception for errors of the system
            raise
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: Exception) -> BenchError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else probe.one_line(error)
    return BenchError(
        f"'{out}' cannot be written: {reason}.",
        "Give --out a folder on a disk that has room and may be written.",
        MISSING,
    )


def _prefix(target: Path) -> str:
    """Return the beginning of the names of a target's temporary folders."""
    return f".{target.name[:32]}."


def _lock(temporary: Path) -> FileLock:
    """Return the lock of a process that fills a temporary folder; the system frees it if the process dies."""
    return FileLock(temporary / "lock")


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary folders that killed exports to a target have left beside it."""
    for folder in files.listing(target.parent):
        if folder.name.startswith(_prefix(target)) and folder.name.endswith(SUFFIX) and not folder.is_symlink():
            with suppress(OSError, NotImplementedError), _lock(folder).acquire(blocking=False):
                files.remove(folder)
