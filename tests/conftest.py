"""What all tests share."""

from __future__ import annotations

import signal
from pathlib import Path

import hypothesis
import pytest
import torch

from lora_bench.testing import TinyBench, make_data, make_model

# Whether an example is slow says how busy the machine is, nothing of the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

# A shell starts background jobs with SIGINT ignored, `nohup` all with SIGHUP ignored. What tests start would inherit
# that, and not end by these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch on one thread: the models are tiny, and tests run in a process a core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny encoder and its tokenizer. Tests must not change it."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with SST-2's splits. Tests must not change it."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def bench(tiny_model: Path, tiny_rows: Path, tmp_path: Path) -> TinyBench:
    """An empty results folder over `tiny_model` and `tiny_rows`, which a module may override."""
    return TinyBench(tiny_model, tiny_rows, tmp_path / "results")
