"""One of several peer processes: trains until it is told to stop, and notes when each step ended.

    python -m lora_bench.bench.worker FOLDER NUMBER

`crowd.py` starts it; they talk through files in the folder.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora_bench import tasks
from lora_bench.bench import peers
from lora_bench.bench.clock import WARM, Memory, synchronise
from lora_bench.bench.workload import Model, Work
from lora_bench.data.tokens import TokenTable
from lora_bench.engine.encoder.backbone import select


def write_job(folder: Path, peer: peers.Peer, workers: int) -> None:
    """Leave what a worker needs in the folder."""
    table = peer.work.table
    arrays = {"ids": table.ids, "offsets": table.offsets, "labels": table.labels, "order": peer.work.order}
    np.savez(folder / "job.npz", **arrays if table.types is None else arrays | {"types": table.types})  # type: ignore[arg-type]
    job = {
        "location": peer.model.location, "offline": peer.model.offline, "task": peer.work.task.name,
        "pad_id": peer.work.pad_id, "precision": peer.work.precision, "targets": peer.targets,
        "device": str(peer.device), "workers": workers,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))


def read_job(folder: Path) -> tuple[peers.Peer, int]:
    """What `write_job` left: the peer, and the number of its data loader's workers."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    with np.load(folder / "job.npz", allow_pickle=False) as file:
        arrays = dict(file)
    order = arrays.pop("order")
    work = Work(tasks.get(job["task"]), TokenTable(**{"types": None, **arrays}), job["pad_id"], order, job["precision"])
    model = Model(job["location"], False, job["offline"])
    return peers.Peer(model, work, job["targets"], torch.device(job["device"]), 0.0, folder), job["workers"]


def main(folder: Path, number: str) -> None:
    """Train; write `ready-NUMBER` once warm and `done-NUMBER.json` at the end."""
    peer, workers = read_job(folder)
    select(peer.device)
    memory, start = Memory(peer.device), time.perf_counter()
    memory.begin()
    stop, warm, steps = folder / "stop", WARM.get(peer.device.type, 5), 0
    stamps: list[float] = []

    def after_step() -> bool:
        nonlocal steps
        steps += 1
        if steps == warm:
            synchronise(peer.device)
            (folder / f"ready-{number}").touch()
        if steps >= warm:
            stamps.append(time.monotonic())
        return stop.exists()

    with peers.quiet():
        made = peers.make_trainer(peer, peers.build(peer), workers, after_step)
        built = time.perf_counter() - start
        made.train()
    told = {"first": warm, "stamps": stamps, "build_seconds": built, "peak_memory_bytes": memory.peak()}
    (folder / f"done-{number}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
