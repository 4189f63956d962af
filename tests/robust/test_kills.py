"""Killed at random instants and at named points, a grid ends as if never killed: `tests.tools.kills`, in short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("options", [["--kills", "14", "--every", "8"], ["--stages", "--kills", "6", "--every", "60"]])
def test_killed_grids_end_as_uninterrupted_ones(options: list[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.tools.kills", *options]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    same, kills = re.search(r"(\d+) of (\d+) kills came to the same end", ran.stdout).groups()  # type: ignore[union-attr]
    assert same == kills
    assert int(kills) >= (6 if "--stages" in options else 20)
