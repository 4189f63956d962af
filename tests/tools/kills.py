"""Kill a grid at random instants and at every named point, and run it again: the results must be as if never killed.

    python -m tests.tools.kills --kills 200            (in CI: --kills 20)
    python -m tests.tools.kills --kills 200 --sample   on the bundled encoder and data, as the smoke preset has them
    python -m tests.tools.kills --stages               a grid in which cells wait for others

One process imports torch; every run of the grid is a fork of it, so a run costs what it trains. The grid has 12 cells
in two packs, saved after every epoch.
"""

from __future__ import annotations

import argparse
import csv
import json
import operator
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import scipy.stats  # noqa: F401  (metrics import these when they are first asked for)
import sklearn.metrics  # noqa: F401
import torch

from lora_bench.grid.cells import Grid, expand
from lora_bench.grid.config import Config
from lora_bench.records import files
from lora_bench.run import checkpointing
from lora_bench.run import plan as plans
from lora_bench.run.executor import LocalExecutor
from lora_bench.run.interfaces import Options, Setup, View
from lora_bench.run.runner import Runner
from lora_bench.run.worker import Training
from lora_bench.testing import QuietView, make_data, make_model

TIMES = ("seconds", "tokens_per_second", "pack_seconds")
BLOCKS: tuple[dict[str, Any], ...] = (
    {"method": "head"},
    {"method": "lora", "rank": [2, 4]},
    {"method": "mini", "rank": [2, 4], "a": 8, "b": 6},
    {"method": "xs", "rank": 3},
)


# Three rates and two seeds search the rate of each block, which may add two rates; then RTE continues from SST-2.
STAGED: tuple[dict[str, Any], ...] = (
    {"method": "lora", "rank": 4, "lr": {"search": [1e-3, 4e-3, 1.6e-2], "seeds": [100, 101]}},
    {"method": "full", "lr": {"search": [1e-4, 4e-4, 1.6e-3], "seeds": [100, 101], "extend": False}},
)


@dataclass(frozen=True)
class Inputs:
    """An encoder and a folder of rows; `staged`: the other of the two grids."""

    model: str
    rows: str | None
    staged: bool = False

    def grid(self) -> Grid:
        """Twelve cells, or those that wait for others."""
        base: dict[str, Any] = {
            "model": self.model, "task": "sst2", "seed": [0, 1], "epochs": 3, "batch_size": 16, "max_length": 24,
            "lr": 4e-3,
        }  # fmt: skip
        if self.staged:
            base |= {"task": ["sst2", "rte"], "epochs": 2, "start": {"rte": "sst2"}}
        return expand(
            Config(name="kills", defaults=base, blocks=STAGED if self.staged else BLOCKS),
            {},
            plans.sources(),
            Path(self.rows) if self.rows else None,
        )


class Dying:
    """`os` as `files` sees it, of a process that dies just before the operation that `dies` chooses."""

    def __init__(self, dies: Callable[[str], bool]) -> None:
        self.dies = dies

    def __getattr__(self, name: str) -> Any:
        own = getattr(os, name)
        if name not in OPERATIONS:
            return own

        def operation(*args: Any, **values: Any) -> Any:
            if self.dies(point(name, args)):
                os.kill(os.getpid(), signal.SIGKILL)
            return own(*args, **values)

        return operation


OPERATIONS = ("open", "write", "fsync", "replace", "unlink", "rmdir", "utime")


def point(name: str, args: tuple[Any, ...]) -> str:
    """The name of an operation: what it does to what kind of file, ids left out."""
    if isinstance(args[0], int):
        return f"{name} {_kind(Path(f'/proc/self/fd/{args[0]}').readlink())}"
    kinds = [_kind(Path(part)) for part in args[:2] if isinstance(part, (str, Path))]
    return " ".join([name, *kinds])


def _kind(path: Path) -> str:
    parts = [part for part in path.parts if part in ("cells", "adapters", "states", "pending")]
    suffix = "tmp" if path.name.startswith(".") else path.suffix or "folder"
    return "/".join([*parts, suffix])


def train(inputs: Inputs, results: Path) -> None:
    """Run the grid to its end in this process."""
    plan = plans.make(inputs.grid(), results, 16)
    options, view = Options(results, offline=True), QuietView()
    Runner(plan, options, view, executor=LocalExecutor(WORKER(plan.setup(options), view))).run()


class Shared(Training):
    """Training that finds encoder and tables where the first process has put them, for speed."""

    kept: tuple[Any, Any] = (None, None)

    def __init__(self, setup: Setup, view: View) -> None:
        super().__init__(setup, view)
        self.loader._backbone, self.loader._tables = self.kept


WORKER = Shared


def warm(inputs: Inputs, results: Path) -> None:
    """Load what all runs need, once."""
    plan = plans.make(inputs.grid(), results, 16)
    made = Training(plan.setup(Options(results, offline=True)), QuietView())
    made.prepare(plan.packs[0])
    Shared.kept = made.loader._backbone, made.loader._tables


def fork(body: Callable[[], None]) -> int:
    """Run `body` in a child; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        body()
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child; its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_random(inputs: Inputs, results: Path, after: float) -> bool:
    """Whether the kill came before the end."""
    child = fork(lambda: train(inputs, results))
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return ended(child) == -signal.SIGKILL


def killed_at(inputs: Inputs, results: Path, dies: Callable[[str], bool]) -> bool:
    """Whether the process came to where it dies."""

    def body() -> None:
        files.os = Dying(dies)  # type: ignore[attr-defined, assignment]
        train(inputs, results)

    return ended(fork(body)) == -signal.SIGKILL


def outcome(results: Path) -> dict[str, Any]:
    """All that must be equal: the table without times, the adapters byte by byte, what else lies there."""
    with (results / "metrics.csv").open(newline="") as file:
        table = [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]
    timed = {"timing": None, "crc32": None}
    records = {path.name: json.loads(path.read_bytes()) | timed for path in (results / "cells").iterdir()}
    adapters = {
        str(path.relative_to(results)): path.read_bytes()
        for path in sorted((results / "adapters").rglob("*"))
        if path.is_file()
    }
    return {
        "table": table, "records": records, "adapters": adapters,
        "places": sorted(path.name for path in results.iterdir()),
    }  # fmt: skip


def points(inputs: Inputs, results: Path) -> list[str]:
    """The named points of a run, in the order in which they come."""
    log = results.with_suffix(".points")

    def noted(name: str) -> bool:
        with log.open("a") as file:
            file.write(name + "\n")
        return False

    killed_at(inputs, results, noted)
    return list(dict.fromkeys(log.read_text().splitlines()))


def trials(inputs: Inputs, root: Path, kills: int, every: int, duration: float) -> Iterator[tuple[str, Path, int]]:
    """What is done to each results folder: its name, the folder, how many kills it has seen when it is done."""
    draw, done, number = random.Random(7), 0, 0
    while done < kills:
        number += 1
        results, own = root / f"random-{number}", 0
        for _ in range(min(3, kills - done)):
            own += killed_at_random(inputs, results, draw.uniform(0, duration))
        done += own
        yield f"random {number}", results, own
    for name in points(inputs, root / "traced")[::every]:
        results = root / f"point-{name.replace(' ', '-').replace('/', '-')}"
        died = killed_at(inputs, results, partial(operator.eq, name))
        yield f"before {name}", results, int(died)


def main() -> int:
    """Compare every trial with an uninterrupted run; 0 if all are equal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="of the named points, every so many")
    parser.add_argument("--stages", action="store_true")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    checkpointing.EPOCH_INTERVAL = checkpointing.COST_FACTOR = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = Inputs("sample", None, wanted.stages)
        if not wanted.sample:
            rows = make_data(root / "rows", "sst2", "rte")
            inputs = Inputs(str(make_model(root / "tiny")), str(rows), wanted.stages)
        warm(inputs, root / "none")
        began = time.perf_counter()
        assert ended(fork(lambda: train(inputs, root / "uninterrupted"))) == 0
        duration = time.perf_counter() - began
        expected, wrong, counts = outcome(root / "uninterrupted"), [], [0, 0]
        for name, results, kills in trials(inputs, root, wanted.kills, wanted.every, duration):
            code = ended(fork(partial(train, inputs, results)))
            same = code == 0 and outcome(results) == expected
            counts = [counts[0] + kills, counts[1] + (kills if same else 0)]
            wrong += [] if same else [name]
            comparison = "equal to" if same else "DIFFERENT from"
            print(f"{name}: {kills} kills, exit {code}, {comparison} the uninterrupted run", flush=True)
        total = time.perf_counter() - began
    print(f"{counts[1]} of {counts[0]} kills came to the same end; a run takes {duration:.1f} s, all {total:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
