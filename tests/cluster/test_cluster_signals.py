"""Grids on Ray under signals, to the command alone or to its whole process group: as without Ray, all is saved.

Ray's handler of SIGTERM would abort the command, and Ray's servers would die of signals to the group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_bench.errors import INTERRUPTED
from lora_bench.testing import make_data, make_model
from tests.cluster.test_cluster import ENVIRONMENT, wait_for

pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

CONFIG = """
name: signals
defaults: {model: MODEL, task: sst2, seed: 0, epochs: 2000, batch_size: 8, max_length: 16, lr: 1.0e-3}
blocks:
  - {method: lora, rank: 64}
"""
INLINE = 100 * 1024  # bytes of an answer, above which Ray's server has to be alive for the driver to get it
IGNORING = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a config, an encoder and rows."""
    path = tmp_path_factory.mktemp("signals")
    make_data(path / "rows", "sst2")
    (path / "grid.yaml").write_text(CONFIG.replace("MODEL", str(make_model(path / "tiny"))))
    return path


def start(folder: Path, results: str) -> subprocess.Popen[str]:
    """The command in a session of its own, with SIGINT ignored, as a shell starts it in the background."""
    words = ["run", "--config", "grid.yaml", "--data-dir", "rows", "--engine", "ray", "--results", results]
    command = [sys.executable, "-c", IGNORING, sys.executable, "-m", "lora_bench", *words]
    with (folder / "out").open("w") as out:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def interrupted(running: subprocess.Popen[str], *numbers: signal.Signals, group: bool = True) -> str:
    """Send signals to a command or to its group, and wait until it has ended and no process is left.

    Returns:
        What it has printed as errors.
    """
    processes = psutil.Process(running.pid).children(recursive=True)
    for number in numbers:
        (os.killpg if group else os.kill)(running.pid, number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == INTERRUPTED, errors
    _, left = psutil.wait_procs(processes, timeout=10)
    assert left == []
    return errors


@pytest.mark.parametrize(
    ("group", "numbers"),
    [
        (False, (signal.SIGTERM,)),  # as `kill` does
        (True, (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)),  # as terminals and schedulers do
    ],
    ids=["command", "group"],
)
def test_what_trains_is_saved_and_nothing_of_ray_is_seen(
    folder: Path, group: bool, numbers: tuple[signal.Signals, ...]
) -> None:
    results = folder / f"results-{group}"
    running = start(folder, results.name)
    wait_for(lambda: "epoch 1/" in (folder / "out").read_text(), running)
    began = time.time()
    errors = interrupted(running, *numbers, group=group)
    assert errors.startswith("Interrupted.")
    assert len(errors.splitlines()) == 1
    (tensors,) = (results / "states").glob("*/state.safetensors")
    assert tensors.stat().st_mtime >= began
    assert tensors.stat().st_size > 2 * INLINE


@pytest.mark.parametrize("process", ["gcs_server", "ray::RemoteWorker"])
def test_a_run_that_has_not_begun_to_train_ends_as_well(folder: Path, process: str) -> None:
    """While Ray starts, and while workers import torch."""

    def is_there() -> bool:
        children = psutil.Process(running.pid).children(recursive=True)
        return any(process in " ".join([child.name(), *child.cmdline()]) for child in children)

    running = start(folder, "early")
    wait_for(is_there, running)
    errors = interrupted(running, signal.SIGTERM)
    assert errors.startswith("Interrupted.")
    assert len(errors.splitlines()) == 1
