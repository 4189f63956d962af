"""Tests that need a GPU; without one they are skipped, but for those that Triton's interpreter can run."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = "test_products.py" if os.environ.get("TRITON_INTERPRET") == "1" else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is in this folder where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.path.parts and item.path.name != INTERPRETED:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
