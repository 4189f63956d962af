"""Writing the two forms, a peft adapter and a merged transformers model; a folder is written whole or not at all."""

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

MARK = ".export"  # ends the name of a folder that is not whole yet


def write_peft(trained: Trained, out: Path, dtype: str) -> str:
    """`adapter_config.json`, `adapter_model.safetensors` and a card; says in a line what was written."""
    made = low_rank.factors(trained.pack)
    model = classifier.untrained(trained)
    prefix, head = model.base_model_prefix, trained.pack.state(0).head
    classifier.fold(model, trained.pack, {name: update.B @ update.A for name, update in made.items()})
    difference = classifier.check(model, trained.pack)
    rank = next(iter(made.values())).A.shape[0]
    config = low_rank.config(rank, prefix, made.keys(), trained.pack.backbone.linears().keys(), trained.cell.model)
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
    tokenizer = trained.tokenizer()
    with whole(out) as folder:
        _save(model.to(getattr(torch, dtype)), folder)
        tokenizer.save_pretrained(folder)
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

    What an export that was killed has left beside `out` is removed by the next one to the same `out`.

    Raises:
        BenchError: exit code 2 if `out` is there and not an empty folder, 3 if it cannot be written.
    """
    with _reported(out):
        target = Path(os.path.realpath(out))  # a link to an empty folder is as good as the folder
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BenchError(f"'{out}' exists and is not an empty folder.", "Give --out a new folder.", USAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        room = target.parent / f"{_beginning(target)}{secrets.token_hex(6)}{MARK}"
        folder, lock = room / "whole", _lock(room)
        try:
            folder.mkdir(parents=True)
            with suppress(OSError, NotImplementedError):  # where there are no locks, nothing is swept either
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
            files.remove(room)


@contextmanager
def _reported(out: Path) -> Iterator[None]:
    """What hinders the writing of `out`, as an error in two lines, whichever library says so."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _unwritable(out, error) from error
    except Exception as error:
        if type(error) is not Exception:  # tokenizers has no class of its own for what the system refuses
            raise
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: Exception) -> BenchError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else probe.one_line(error)
    return BenchError(
        f"'{out}' cannot be written: {why}.", "Give --out a folder on a disk that has room and may be written.", MISSING
    )


def _beginning(target: Path) -> str:
    """How the names of unfinished folders of a target begin."""
    return f".{target.name[:32]}."


def _lock(room: Path) -> FileLock:
    """What a process holds while it fills the folder; the system takes it from one that has died."""
    return FileLock(room / "lock")


def _sweep(target: Path) -> None:
    """Remove what killed exports to a target have left beside it."""
    for room in files.listing(target.parent):
        if room.name.startswith(_beginning(target)) and room.name.endswith(MARK) and not room.is_symlink():
            with suppress(OSError, NotImplementedError), _lock(room).acquire(blocking=False):
                files.remove(room)
