"""What all tests share."""

from __future__ import annotations

import hypothesis
import pytest
import torch

# Whether an example is slow says how busy the machine is, nothing of the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch on one thread: the models are tiny, and tests run in a process a core."""
    torch.set_num_threads(1)
