"""lora-bench: train a whole grid of LoRA-family adapters over one frozen encoder at once.

For a training loop of one's own: `from lora_bench import get_adapted_model`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_bench.api import AdaptedModel, get_adapted_model, load_adapted_model

__version__ = "0.1.0"
__all__ = ["AdaptedModel", "__version__", "get_adapted_model", "load_adapted_model"]


def __getattr__(name: str) -> Any:
    """The Python API; torch is imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'lora_bench' has no attribute '{name}'")
    from lora_bench import api

    return getattr(api, name)
