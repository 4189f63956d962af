"""A package that can be called: `lora_bench.records(DIR)` and `lora_bench.report(DIR)` read a results folder.

Both names are packages as well. Python lets a module have a class of its own, which says what a call does.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A package whose call is that of the function of its name in `lora_bench.notebook`."""

    def __call__(self, results: str | Path) -> Any:
        """Read a results folder."""
        return getattr(import_module("lora_bench.notebook"), self.__name__.rpartition(".")[2])(results)
