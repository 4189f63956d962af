"""Where this machine's tokens and measurements are kept."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """Where tokens are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lora-bench"


def calibration() -> Path:
    """What `bench --calibrate` measured of this machine's devices."""
    return folder() / "devices.json"
