"""A runner whose cells take no training: real plan, owner, store and files around a worker that makes up records.

Imports no torch, so that many processes start fast.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_bench import provenance
from lora_bench.cell import Cell
from lora_bench.grid.cells import Grid, expand
from lora_bench.grid.config import Config
from lora_bench.records.seal import describe
from lora_bench.records.store import read_records
from lora_bench.run import checkpoints
from lora_bench.run import plan as plans
from lora_bench.run.executor import LocalExecutor
from lora_bench.run.interfaces import Job, Options, RunContext
from lora_bench.run.outcome import Outcome
from lora_bench.run.plan import Plan
from lora_bench.run.runner import Runner
from lora_bench.run.signals import Stopper
from lora_bench.testing import QuietView, make_record


def save_checkpoint(
    results: Path,
    name: str,
    cells: Sequence[checkpoints.CellEntry] = (),
    tensors: bytes = b"values",
    steps: int = 3,
    fingerprint: Mapping[str, str] | None = None,
) -> Path:
    """Save a checkpoint, by default one without cells."""
    return checkpoints.save(results, name, make_manifest(cells, tensors, steps, fingerprint), tensors)


def make_manifest(
    cells: Sequence[checkpoints.CellEntry], tensors: bytes, steps: int = 3, fingerprint: Mapping[str, str] | None = None
) -> checkpoints.CheckpointManifest:
    """The manifest of a checkpoint."""
    return checkpoints.CheckpointManifest(
        steps=steps,
        seconds=1.0,
        fingerprint=dict(fingerprint or {}),
        cells=tuple(cells),
        files=describe({checkpoints.TENSORS: tensors}),
    )


ADAPTER = {name: name.encode() for name in ("head.safetensors", "adapter.json")}


class NoRun:
    """The context of a pack that belongs to no run: nothing of it is written."""

    def __init__(self) -> None:
        self.stopper = Stopper()

    def check(self) -> None:
        """It may go on."""

    def save(self, manifest: checkpoints.CheckpointManifest, tensors: bytes) -> None:
        """Nothing is kept."""

    def publish(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing is kept."""


class StubWorker:
    """Says of every cell that it is done, by `name`. `on_cells` is called with each pack and may fail."""

    def __init__(
        self, plan: Plan, name: str = "stub", on_cells: Callable[[Sequence[Cell]], None] | None = None
    ) -> None:
        self.plan, self.name, self.on_cells = plan, name, on_cells or (lambda cells: None)
        self.trained: list[str] = []

    def prepare(self, cells: tuple[Cell, ...]) -> None:
        """Nothing to load."""

    def train(self, job: Job, context: RunContext) -> Iterator[list[Outcome]]:
        """Save the pack as it would be in mid-training, then end it."""
        context.check()
        cells = job.cells
        self.on_cells(cells)
        entries = [
            checkpoints.CellEntry(
                id=cell.id,
                position=position,
                code="",
                record_time=job.record_times.get(cell.id, 0),
                steps=3,
                steps_taken=3,
            )
            for position, cell in enumerate(cells)
        ]
        context.save(make_manifest(entries, b"values" * 99), b"values" * 99)
        self.trained += [cell.id for cell in cells]
        for_code = {cell.id: {**self.environment(), **provenance.current(cell.method)} for cell in cells}
        yield [Outcome(make_record(0.5, cell=cell, environment=for_code[cell.id]), ADAPTER) for cell in cells]

    def is_memory(self, error: BaseException) -> bool:
        """Whether memory ran out."""
        return isinstance(error, MemoryError)

    def forget(self) -> None:
        """Nothing to give back."""

    def environment(self) -> dict[str, str]:
        """Who made the record."""
        return {"device": self.name}


def grid(seeds: int, ranks: Sequence[int] = (1, 2), **defaults: Any) -> Grid:
    """A grid on the bundled sample: a pack a seed, a LoRA cell a rank."""
    base = {"model": "sample", "task": "wnli", "method": "lora", "seed": list(range(seeds)), "rank": list(ranks)}
    return expand(Config(name="stub", defaults=base | defaults, blocks=({},)), {}, plans.sources())


def runner(
    results: Path, made: Grid, name: str = "stub", on_cells: Callable[[Sequence[Cell]], None] | None = None,
    retry: Sequence[str] = (), stopper: Stopper | None = None,
) -> Runner:  # fmt: skip
    """A runner of the grid into the folder, in packs of at most 16."""
    plan = plans.make(made, results, 16, retry)
    return Runner(plan, Options(results), QuietView(), stopper, LocalExecutor(StubWorker(plan, name, on_cells)))


def worker_of(running: Runner) -> StubWorker:
    """The worker of a runner."""
    assert isinstance(running.executor, LocalExecutor)
    assert isinstance(running.executor.worker, StubWorker)
    return running.executor.worker


def wait_for_file(for_path: Path, seconds: float = 60.0) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + seconds
    while not for_path.exists():
        assert time.monotonic() < end, f"{for_path.name} does not come"
        time.sleep(0.005)


def child(body: Callable[[], object]) -> int:
    """Run `body` in a fork; its id."""
    made = os.fork()
    if made:
        return made
    try:
        body()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


QUIET = ["adapters", "cells", "metrics.csv"]


def statuses(results: Path) -> dict[int | None, str]:
    """How the cells ended, by rank."""
    return {record.cell.rank: record.status for record in read_records(results).records}


def reasons(results: Path) -> list[str | None]:
    """Why cells failed."""
    return sorted({record.reason for record in read_records(results).records}, key=str)


def left(results: Path) -> list[str]:
    """What lies in the folder."""
    return sorted(path.name for path in results.iterdir())
