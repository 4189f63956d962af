"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch on one thread: the models are tiny, and tests run in a process a core."""
    torch.set_num_threads(1)
