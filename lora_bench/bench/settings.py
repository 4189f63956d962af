"""What a benchmark measures: the command line's options, checked. Does not need torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_bench import tasks
from lora_bench.errors import BenchError, unknown
from lora_bench.grid.cells import TASK_SOURCE
from lora_bench.models import DEFAULT_MODEL, SAMPLE

AUTO = "auto"
MIXES = ("lora", "mixed")
FULL = "full"  # the mix of one cell that trains the whole model; measured only on request
PEERS = ("trainer", "loop", "processes")
PRECISIONS = ("bf16", "float32")
PACKS = ("1", "8", "16", "32", "64", AUTO)
TASKS = ("sst2", "cola", "mrpc", "rte")
TARGETS = ("qv", "attention+dense")
PROCESS_COUNTS = (2, 4, 8)
SECONDS, QUICK_SECONDS = 6.0, 1.5
MAX_LENGTH = 128
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class BenchOptions:
    """The options as given; None stands for the default, which depends on `quick`."""

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
class BenchSettings:
    """What is measured.

    Attributes:
        name: The name of the files to write, without extension.
        packs: The numbers of cells per pack, or `auto`.
        process_counts: The numbers of peer processes at the same time.
        precision: None for bf16 on CUDA, else float32.
        seconds: The timed seconds of one measurement, all repeats together.
        threads: Processor threads of each side; None for as many as `run` has on this device. Quick benchmarks use
            one: the sample is too small to be divided, and two threads that wait for each other on a busy machine
            measure the machine.
    """

    name: str
    model: str
    data: str | Path
    tasks: tuple[str, ...]
    targets: tuple[str, ...]
    mixes: tuple[str, ...]
    packs: tuple[str, ...]
    peers: tuple[str, ...]
    process_counts: tuple[int, ...]
    precision: str | None
    batch_size: int
    seconds: float
    device: str
    threads: int | None = None
    max_length: int = MAX_LENGTH


def resolve_options(options: BenchOptions) -> BenchSettings:
    """Check the options and fill in the defaults.

    Raises:
        BenchError: An option has an invalid value (exit code 2).
    """
    quick = options.quick
    if options.batch_size < 1 or (options.seconds is not None and not 0 < options.seconds <= 3600):
        raise BenchError("--batch-size and --seconds are positive.", "Try --batch-size 32 --seconds 6.")
    name = options.name or ("quick" if quick else "bench")
    if not FILE_NAME.fullmatch(name):
        raise BenchError(f"--name '{name}' is not a valid file name.", "Use letters, digits, '.', '_' and '-'.")
    model = options.model or (SAMPLE if quick else DEFAULT_MODEL)
    task_names = options.task or (TASKS[:1] if quick else TASKS)
    return BenchSettings(
        name=name,
        model=model,
        data=options.data_dir or (SAMPLE if model == SAMPLE else TASK_SOURCE),
        tasks=tuple(dict.fromkeys(tasks.get(task).name for task in task_names)),
        targets=tuple(dict.fromkeys(options.targets or (TARGETS[:1] if quick else TARGETS))),
        mixes=_checked("mix", options.mix or MIXES, (*MIXES, FULL)),
        packs=_pack_sizes(options.pack or (PACKS[:2] if quick else PACKS)),
        peers=_peer_names(options.peers),
        process_counts=PROCESS_COUNTS[:1] if quick else PROCESS_COUNTS,
        precision=_checked("precision", [options.precision], PRECISIONS)[0] if options.precision else None,
        batch_size=options.batch_size,
        seconds=options.seconds or (QUICK_SECONDS if quick else SECONDS),
        device=options.device,
        threads=1 if quick else None,
    )


def _checked(kind: str, values: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the values, each once; an unknown one is an error that names the known ones."""
    for value in values:
        if value not in known:
            raise unknown(kind, value, known)
    return tuple(dict.fromkeys(values))


def _pack_sizes(values: Sequence[str]) -> tuple[str, ...]:
    for value in values:
        if value != AUTO and not (value.isdecimal() and 1 <= int(value) <= 4096):
            raise BenchError(f"--pack '{value}' is not a number of cells.", "Use --pack auto or a number from 1.")
    return tuple(dict.fromkeys(value if value == AUTO else str(int(value)) for value in values))


def _peer_names(option: str | None) -> tuple[str, ...]:
    """Split a list such as `trainer,loop`; `none` stands for no peer at all."""
    if option is None:
        return PEERS
    return _checked("peer", [name.strip() for name in option.split(",") if name.strip() not in ("", "none")], PEERS)
