"""Mutation testing itself: what a weak test misses is found, what it sees is not counted against it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULE = "def free(age: int) -> bool:\n    return age < 6\n"
WEAK = "from tickets import free\ndef test_free():\n    assert free(5) and not free(30)\n"


def test_what_a_weak_test_misses_is_found(tmp_path: Path) -> None:
    (tmp_path / "tickets.py").write_text(MODULE)
    (tmp_path / "test_tickets.py").write_text(WEAK)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.tools.mutants", "--root", str(tmp_path), "tickets.py"]
    ran = subprocess.run(
        [*command, "--tests", "test_tickets.py"], env=env, capture_output=True, text=True, timeout=100, check=False
    )
    *alive, total = ran.stdout.splitlines()
    assert alive == ["  line 2: age < 6  ->  age <= 6", "  line 2: 6  ->  7"], ran.stderr
    assert total.startswith("tickets.py: 1 of 3 mutants killed, 33.3%")
    assert ran.returncode == 1
    assert (tmp_path / "tickets.py").read_text() == MODULE
