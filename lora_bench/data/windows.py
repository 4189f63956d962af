"""The layout of tokens in batches, shared by the engine and the forecast. This module does not import torch."""

from __future__ import annotations

EVAL_SLOTS = {"cuda": 2**17, "cpu": 2**13}  # tokens × cells of an evaluation batch (chosen)


def window_size(longest: int) -> int:
    """Return the window size W for sequences of at most `longest` tokens: the next power of two, at least 32."""
    return max(32, 1 << (longest - 1).bit_length())
