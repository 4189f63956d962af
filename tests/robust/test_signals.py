"""The command under a signal: it saves, says so, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RUN = ["--preset", "smoke", "--task", "sst2", "--method", "head", "--seed", "0", "--epochs", "400", "--results", "out"]


def start(cwd: Path, *args: str) -> subprocess.Popen[str]:
    """The command in a process of its own, without a network."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "lora_bench", *args]
    env |= {"XDG_CACHE_HOME": str(cwd / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_that_is_ended_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    running = start(tmp_path, "run", *RUN)
    assert running.stdout is not None
    for line in running.stdout:
        if "epoch 2/400" in line:
            break
    began = time.monotonic()
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert time.monotonic() - began < 15  # 5 s and a step, on a machine that does other things too
    assert running.returncode == 130, errors
    assert errors.startswith("Interrupted.")
    assert "Traceback" not in errors
    (folder,) = (tmp_path / "out" / "states").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "state.safetensors"]
    told, _ = start(tmp_path, "plan", *RUN).communicate(timeout=60)
    assert "interrupted" in told
    assert "saved after" in told
