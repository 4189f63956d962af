"""lora-bench: train a whole grid of LoRA-family adapters over one frozen encoder at once.

To adapt a model in your own training loop: `from lora_bench import get_adapted_model`. To read results in a notebook:
`lora_bench.load_records(DIR)`, `load_record(DIR, ID)` and `load_report(DIR)`.
"""

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_bench.api import AdaptedModel, get_adapted_model, load_adapted_model
    from lora_bench.notebook import load_record, load_records, load_report

__version__ = "0.1.0"
BEGAN = time.perf_counter()  # by which `--debug` tells how long a run takes to start
_MODULES = dict.fromkeys(("AdaptedModel", "get_adapted_model", "load_adapted_model"), "lora_bench.api") | dict.fromkeys(
    ("load_record", "load_records", "load_report"), "lora_bench.notebook"
)
__all__ = [
    "AdaptedModel",
    "__version__",
    "get_adapted_model",
    "load_adapted_model",
    "load_record",
    "load_records",
    "load_report",
]


def __getattr__(name: str) -> Any:
    """Import what a public name needs when it is first used: torch for the Python API, pandas for the others."""
    if name not in _MODULES:
        raise AttributeError(f"module 'lora_bench' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
