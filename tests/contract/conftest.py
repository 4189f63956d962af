"""One thread, tiny encoders on disk, and trained cells that several contracts look at."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from contract_kit import Load, Run, Trained, cell_of, save_encoder, train

from lora_bench import tasks
from lora_bench.engine import backbone as backbones


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Torch on one thread, while these tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with dropout, as files."""
    return save_encoder(tmp_path_factory.mktemp("encoder"), dropout=0.1)


@pytest.fixture(scope="session")
def calm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout, so that others' code can be followed step by step."""
    return save_encoder(tmp_path_factory.mktemp("calm"), dropout=0.0)


@pytest.fixture(scope="session")
def load(folder: Path) -> Load:
    """The encoder in a precision; one copy serves all tests, as frozen weights may."""
    return cache(lambda precision: backbones.load(str(folder), torch.device("cpu"), precision))


@pytest.fixture(scope="session")
def trained(load: Load) -> Trained:
    """A cell of a method after two epochs of a task; trained once a session."""

    @cache
    def run(method: str, task: str, precision: str) -> Run:
        return train([cell_of(method, task, precision=precision)], load(precision), tasks.get(task))

    return run
