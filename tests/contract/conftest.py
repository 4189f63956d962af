"""One thread, tiny encoders on disk, and trained cells that several contracts look at."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from lora_bench.contracts.kit import Workbench, save_encoder
from tests.contract.contract_kit import BenchOf, Load, Trained


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """The tiny encoder with dropout, and cells trained on it once a session."""
    return Workbench(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def bench_of(tmp_path_factory: pytest.TempPathFactory) -> BenchOf:
    """The same over an encoder of another type."""
    return cache(lambda family: Workbench(tmp_path_factory.mktemp(family), family))


@pytest.fixture(scope="session")
def folder(bench: Workbench) -> Path:
    """The encoder as files."""
    return bench.folder


@pytest.fixture(scope="session")
def calm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout, so that others' code can be followed step by step."""
    return save_encoder(tmp_path_factory.mktemp("calm"), dropout=0.0)


@pytest.fixture(scope="session")
def load(bench: Workbench) -> Load:
    """The encoder in a precision; one copy serves all tests, as frozen weights may."""
    return bench.load


@pytest.fixture(scope="session")
def trained(bench: Workbench) -> Trained:
    """A cell of a method after two epochs of a task; trained once a session."""
    return bench.trained
