"""One of several peer processes: trains until it is asked to stop, and records when it issued each step.

    python -m lora_bench.bench.worker FOLDER NUMBER

`processes.py` starts it; they communicate through files in the folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora_bench import tasks
from lora_bench.bench import peers
from lora_bench.bench.clock import MemoryMeter, synchronise, warm_up_steps
from lora_bench.bench.workload import BenchModel, Workload
from lora_bench.data.tokens import TokenTable
from lora_bench.engine.encoder.backbone import prepare_device


def write_job(folder: Path, peer: peers.Peer, workers: int) -> None:
    """Write what a worker process needs to `job.json` and `job.npz`.

    Args:
        folder: The folder to write to.
        peer: What the process trains.
        workers: The number of its data-loader workers.
    """
    table = peer.work.table
    arrays = {"ids": table.ids, "offsets": table.offsets, "labels": table.labels, "order": peer.work.order}
    np.savez(folder / "job.npz", **arrays if table.types is None else arrays | {"types": table.types})  # type: ignore[arg-type]
    job = {
        "location": peer.model.location,
        "offline": peer.model.offline,
        "task": peer.work.task.name,
        "pad_id": peer.work.pad_id,
        "precision": peer.work.precision,
        "targets": peer.targets,
        "device": str(peer.device),
        "workers": workers,
        "full": peer.full,
    }
    (folder / "job.json").write_text(json.dumps(job))


def read_job(folder: Path) -> tuple[peers.Peer, int]:
    """Read what `write_job` wrote.

    Returns:
        The peer, and the number of data-loader workers.
    """
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    with np.load(folder / "job.npz", allow_pickle=False) as file:
        arrays = dict(file)
    order = arrays.pop("order")
    table = TokenTable(**{"types": None, **arrays})
    work = Workload(tasks.get(job["task"]), table, job["pad_id"], order, job["precision"])
    model = BenchModel(job["location"], False, job["offline"])
    peer = peers.Peer(model, work, job["targets"], torch.device(job["device"]), 0.0, folder, job["full"])
    return peer, job["workers"]


def main(folder: Path, number: str) -> None:
    """Train; write `ready-NUMBER` after the warm-up and `done-NUMBER.json` at the end."""
    peer, workers = read_job(folder)
    prepare_device(peer.device)
    memory, start = MemoryMeter(peer.device), time.perf_counter()
    parent = os.getppid()
    stop_file, warm_up, steps = folder / "stop", warm_up_steps(peer.device), 0
    warm_up_seconds, stamps = 0.0, list[float]()

    def after_step() -> bool:
        nonlocal steps, warm_up_seconds
        steps += 1
        if steps == warm_up:
            synchronise(peer.device)
            warm_up_seconds = time.perf_counter() - start - build_seconds
            (folder / f"ready-{number}").touch()
        if steps >= warm_up:
            stamps.append(time.monotonic())
        return stop_file.exists() or os.getppid() != parent  # the program that measures was killed

    with peers.quiet(), memory.turn():
        trainer = peers.make_trainer(peer, peers.build_model(peer), workers, after_step)
        build_seconds = time.perf_counter() - start
        trainer.train()
    result = {
        "first": warm_up,  # the step of the first stamp
        "stamps": stamps,
        "build_seconds": build_seconds,
        "warm_up_seconds": warm_up_seconds,
        "peak_memory_bytes": memory.peak,
    }
    (folder / f"done-{number}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
