"""How tokens are laid out in batches: what the engine does and the forecast counts with. No torch."""

from __future__ import annotations

EVAL_SLOTS = {"cuda": 2**17, "cpu": 2**13}  # tokens x cells of one batch of an evaluation


def window_size(longest: int) -> int:
    """W for sequences of at most `longest` tokens: the next power of two, at least 32."""
    return max(32, 1 << (longest - 1).bit_length())
