"""lora-bench: train a whole grid of LoRA-family adapters over one frozen encoder at once.

To adapt a model in your own training loop: `from lora_bench import get_adapted_model`. To read results in a notebook:
`lora_bench.records(DIR)`, `lora_bench.record(DIR, ID)` and `lora_bench.report(DIR)`.
"""

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_bench.api import AdaptedModel, get_adapted_model, load_adapted_model
    from lora_bench.notebook import record, records, report  # two of them are packages that can be called

__version__ = "0.1.0"
BEGAN = time.perf_counter()  # by which `--debug` tells how long a run takes to start
_API = ("AdaptedModel", "get_adapted_model", "load_adapted_model")
__all__ = [
    "AdaptedModel",
    "__version__",
    "get_adapted_model",
    "load_adapted_model",
    "record",
    "records",
    "report",
]


def __getattr__(name: str) -> Any:
    """Import what a public name needs when it is first used: torch for the Python API, pandas for the others."""
    if name in ("records", "report"):
        return import_module(f"lora_bench.{name}")
    if name == "record":
        return import_module("lora_bench.notebook").record
    if name not in _API:
        raise AttributeError(f"module 'lora_bench' has no attribute '{name}'")
    return getattr(import_module("lora_bench.api"), name)
