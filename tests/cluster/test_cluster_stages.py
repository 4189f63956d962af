"""A grid in which cells wait for others, on Ray: what cells continue from travels to the workers and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_bench.errors import DONE
from lora_bench.testing import make_data, make_model
from tests.cluster.test_cluster import content, ended, start

pytest.importorskip("ray")

CONFIG = """
name: stages
defaults:
  model: MODEL
  task: [sst2, cola]
  method: [lora, full]
  rank: 2
  epochs: 1
  batch_size: 8
  max_length: 16
  lr: {search: [1.0e-3, 4.0e-3], seeds: [100], extend: false}
  start: {cola: sst2}
"""


def test_a_staged_grid_ends_as_alone(tmp_path: Path) -> None:
    """Every pack is one cell, so that none depends on which cells happen to be ready together."""
    model = make_model(tmp_path / "tiny")
    make_data(tmp_path / "rows", "sst2", "cola")
    (tmp_path / "grid.yaml").write_text(CONFIG.replace("MODEL", str(model)))
    one = ("--pack", "1")
    assert ended(start(tmp_path, "alone", *one)) == (DONE, "")
    assert ended(start(tmp_path, "ray", *one, "--engine", "ray")) == (DONE, "")
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
    assert len(content(tmp_path / "alone")["records"]) == 2 * (2 * 2 + 2)
