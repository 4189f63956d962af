"""What a benchmark measures: the command line's options, checked. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_bench import tasks
from lora_bench.errors import BenchError, unknown
from lora_bench.grid.cells import HUB
from lora_bench.models import DEFAULT_MODEL, SAMPLE

AUTO = "auto"
MIXES = ("lora", "mixed")
FULL = "full"  # the mix of one cell that trains the whole model; only if asked for
PEERS = ("trainer", "loop", "processes")
PRECISIONS = ("bf16", "float32")
PACKS = ("1", "8", "16", "32", "64", AUTO)
TASKS = ("sst2", "cola", "mrpc", "rte")
TARGETS = ("qv", "attention+dense")
CROWDS = (2, 4, 8)
SECONDS, QUICK_SECONDS = 6.0, 1.5
MAX_LENGTH = 128
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Wish:
    """The options as given; None is for the default, which depends on `quick`."""

    quick: bool = False
    model: str | None = None
    data_dir: Path | None = None
    task: Sequence[str] | None = None
    targets: Sequence[str] | None = None
    mix: Sequence[str] | None = None
    pack: Sequence[str] | None = None
    peers: str | None = None
    precision: str | None = None
    batch_size: int = 32
    seconds: float | None = None
    device: str = AUTO
    name: str | None = None


@dataclass(frozen=True)
class Choice:
    """What is measured. `seconds`: the timed seconds of one measurement, all repeats together.

    `crowds`: the numbers of peer processes at once. `precision` None: bf16 on CUDA, else float32. `threads`: of each
    side on a processor, None for torch's own choice. Quick takes one: the sample is too small to share out, and two
    threads that wait for each other on a busy machine measure the machine.
    """

    name: str
    model: str
    data: str
    tasks: tuple[str, ...]
    targets: tuple[str, ...]
    mixes: tuple[str, ...]
    packs: tuple[str, ...]
    peers: tuple[str, ...]
    crowds: tuple[int, ...]
    precision: str | None
    batch_size: int
    seconds: float
    device: str
    threads: int | None = None
    max_length: int = MAX_LENGTH


def choose(wish: Wish) -> Choice:
    """The choice behind the options.

    Raises:
        BenchError: exit code 2 for a value that is none.
    """
    if wish.batch_size < 1 or (wish.seconds is not None and not 0 < wish.seconds <= 3600):
        raise BenchError("--batch-size and --seconds are positive.", "Try --batch-size 32 --seconds 6.")
    name = wish.name or ("quick" if wish.quick else "bench")
    if not NAME.fullmatch(name):
        raise BenchError(f"--name '{name}' is no name of a file.", "Use letters, digits, '.', '_' and '-'.")
    model = wish.model or (SAMPLE if wish.quick else DEFAULT_MODEL)
    chosen = wish.task or (TASKS[:1] if wish.quick else TASKS)
    return Choice(
        name=name, model=model, data=str(wish.data_dir) if wish.data_dir else SAMPLE if model == SAMPLE else HUB,
        tasks=tuple(dict.fromkeys(tasks.get(each).name for each in chosen)),
        targets=tuple(dict.fromkeys(wish.targets or (TARGETS[:1] if wish.quick else TARGETS))),
        mixes=_known("mix", wish.mix or MIXES, (*MIXES, FULL)),
        packs=_packs(wish.pack or (PACKS[:2] if wish.quick else PACKS)),
        peers=_peers(wish.peers), crowds=CROWDS[:1] if wish.quick else CROWDS,
        precision=_known("precision", [wish.precision], PRECISIONS)[0] if wish.precision else None,
        batch_size=wish.batch_size, seconds=wish.seconds or (QUICK_SECONDS if wish.quick else SECONDS),
        device=wish.device, threads=1 if wish.quick else None,
    )  # fmt: skip


def _known(kind: str, values: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    for value in values:
        if value not in known:
            raise unknown(kind, value, known)
    return tuple(dict.fromkeys(values))


def _packs(values: Sequence[str]) -> tuple[str, ...]:
    for value in values:
        if value != AUTO and not (value.isdecimal() and 1 <= int(value) <= 4096):
            raise BenchError(f"--pack '{value}' is no number of cells.", "Use --pack auto or a number from 1.")
    return tuple(dict.fromkeys(value if value == AUTO else str(int(value)) for value in values))


def _peers(given: str | None) -> tuple[str, ...]:
    """`trainer,loop` as names; `none` for no peer at all."""
    if given is None:
        return PEERS
    return _known("peer", [part.strip() for part in given.split(",") if part.strip() not in ("", "none")], PEERS)
