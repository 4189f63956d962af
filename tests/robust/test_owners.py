"""Several processes on one results folder: one owns it, a dead owner is succeeded, a woken one refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_bench.errors import INTERRUPTED, MISSING

HERE = Path(__file__).parent


def outcome(kind: str, tmp_path: Path) -> dict[str, Any]:
    """What the processes did, forked from a fresh one."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.tools.owners", kind, str(tmp_path / "results")]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_of_sixteen_processes_one_trains_and_the_others_are_refused(tmp_path: Path) -> None:
    found = outcome("crowd", tmp_path)
    assert set(found["codes"]) == {0, MISSING}  # who comes when the first has ended finds nothing to do
    assert len(found["trained"]) == len(set(found["trained"])) == 100
    assert sorted(found["rows"]) == sorted(found["trained"]) == sorted(found["makers"])
    assert found["left"] == ["metrics.csv"]


def test_a_paused_owner_that_wakes_is_refused(tmp_path: Path) -> None:
    found = outcome("paused", tmp_path)
    assert "is in use by process" in found["early"]  # while its lease lasts nobody succeeds it
    assert set(found["makers"].values()) == {"second"}
    assert found["unchanged"]
    assert found["code"] == MISSING
    assert "was suspended so long" in found["error"]
    assert len(found["rows"]) == 2
    assert found["left"] == ["metrics.csv"]


def test_a_dead_owners_folder_is_free_at_once(tmp_path: Path) -> None:
    found = outcome("dead", tmp_path)
    assert found["code"] == -signal.SIGKILL
    assert set(found["makers"].values()) == {"second"}
    assert found["seconds"] < 20
    assert found["left"] == ["metrics.csv"]


def test_the_first_signal_lets_a_pack_end_and_the_second_does_not(tmp_path: Path) -> None:
    """Nothing held: at once, nothing recorded. Held: what has ended is published. A later one: an end at once."""
    for name, (code, records) in outcome("signalled", tmp_path).items():
        assert code == INTERRUPTED, name
        assert records == (2 if name.startswith("held") else 0), name
