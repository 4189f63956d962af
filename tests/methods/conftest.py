"""One tiny encoder for the tests of single methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_bench.contracts.kit import Workbench, save_encoder


@pytest.fixture(scope="package")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """The tiny encoder with dropout."""
    return Workbench(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="package")
def calm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout."""
    return save_encoder(tmp_path_factory.mktemp("calm"), dropout=0.0)
