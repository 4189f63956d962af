"""Models and data that are only named: grids over them need no file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_bench.data import DataSource
from lora_bench.data.model_source import ModelSource
from lora_bench.grid.cells import Sources


def fake_sources(model: Callable[[str], str], data: Callable[[str, str], str]) -> Sources:
    """Sources from what gives the identity of a model by its name, and that of data by location and task."""

    def find_data(location: str | Path, task: str) -> tuple[DataSource, str]:
        return DataSource("folder", Path(location)), data(str(location), task)

    return Sources(lambda name: ModelSource(name, name, model(name), is_local=False), find_data)
