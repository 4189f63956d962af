"""How a cell diverged, in words, from the last steps of its record."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_bench.records.schema import TrainingStep
from lora_bench.text import counted

WINDOW = 20  # how many steps before the last are described (chosen)
GROWTH = 2.0  # a value that grew by less is described as steady (chosen)


def explain(steps: Sequence[TrainingStep], head_lr: float) -> list[str]:
    """Describe what the last steps of a cell that diverged show.

    Args:
        steps: `Record.last_steps`, at least one.
        head_lr: The learning rate of the head relative to the cell's, which is the one of the steps.

    Returns:
        Lines of at most 72 characters.
    """
    *before, last = steps
    if math.isfinite(float(last.loss)) and math.isfinite(float(last.grad_norm)):
        before, when = [*before, last], "up to then"
        lines = ["All steps were finite, but not the outputs after the epoch."]
    else:
        when, loss, norm = "before that", _in_words(float(last.loss)), _in_words(float(last.grad_norm))
        lines = [f"At step {last.step} the loss was {loss} and the gradient norm {norm}."]
    window = before[-WINDOW:]
    if not window:
        return [*lines, "No earlier step is recorded."]
    return [
        *lines,
        f"In the {counted(len(window), 'step')} {when}:" if window[1:] else f"In the only step {when}:",
        f"the gradient norm {_trend([float(step.grad_norm) for step in window])};",
        f"the loss {_trend([float(step.loss) for step in window])};",
        f"the learning rate {_trend([float(step.lr) for step in window])}.",
        *([f"The head's learning rate was {head_lr:.3g} times that."] if head_lr != 1 else []),
    ]


def _in_words(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    return f"{value:.3g}" if math.isfinite(value) else "infinite"


def _trend(values: Sequence[float]) -> str:
    """How finite values developed."""
    first, peak, lowest = f"{values[0]:.3g}", f"{max(values):.3g}", f"{min(values):.3g}"
    if peak == lowest:
        return f"was {peak}"
    if max(values) < GROWTH * values[0] or max(values) <= values[0]:
        return f"stayed between {lowest} and {peak}"
    times = f" {_fold(max(values) / values[0])}" if values[0] > 0 else ""
    in_between = "" if max(values) == values[-1] else " at most"
    return f"grew{times}, from {first} to {peak}{in_between}"


def _fold(ratio: float) -> str:
    number = f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}" if ratio < 1e6 else f"{ratio:.1e}"
    return f"{number}-fold"
