"""lora-bench: train a whole grid of LoRA-family adapters over one frozen encoder at once."""

__version__ = "0.1.0"
