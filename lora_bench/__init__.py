"""lora-bench: train a whole grid of LoRA-family adapters over one frozen encoder at once.

To adapt a model in your own training loop: `from lora_bench import get_adapted_model`.
"""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_bench.api import AdaptedModel, get_adapted_model, load_adapted_model

__version__ = "0.1.0"
BEGAN = time.perf_counter()  # by which `--debug` tells how long a run takes to start
__all__ = ["AdaptedModel", "__version__", "get_adapted_model", "load_adapted_model"]


def __getattr__(name: str) -> Any:
    """Import the Python API, and torch with it, when one of its names is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'lora_bench' has no attribute '{name}'")
    from lora_bench import api

    return getattr(api, name)
