"""What all tests share."""

from __future__ import annotations

import signal

import hypothesis
import pytest
import torch

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
