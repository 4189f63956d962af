"""How a cell diverged, in words and figures, from the last steps of its record."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from lora_bench.records.schema import AnyFloat, TrainingStep
from lora_bench.text import counted

WINDOW = 20  # how many steps before the last are described (chosen)
GROWTH = 2.0  # a value that grew by less is described as steady (chosen)


def explain(steps: Sequence[TrainingStep]) -> list[str]:
    """Describe what the last steps of a cell that diverged show.

    Args:
        steps: `Record.last_steps`, at least one.

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
        f"In the {counted(len(window), 'step')} {when}:",
        f"the gradient norm {_trend([(step.step, float(step.grad_norm)) for step in window])};",
        f"the loss {_trend([(step.step, float(step.loss)) for step in window])};",
        f"the learning rate went from {float(window[0].lr):.3g} to {float(window[-1].lr):.3g}.",
    ]


def as_json_lines(steps: Sequence[TrainingStep]) -> str:
    """The steps as a JSON array, a step on each line, aligned, rounded to four digits; at most 80 columns wide."""
    width = len(str(steps[-1].step))
    rows = [
        f'    {{"step": {step.step:{width}}, "loss": {_rounded(step.loss):>9}, '
        f'"grad_norm": {_rounded(step.grad_norm):>9}, "lr": {_rounded(step.lr):>9}}}'
        for step in steps
    ]
    return "[\n" + ",\n".join(rows) + "\n  ]"


def _rounded(value: AnyFloat) -> str:
    return json.dumps(value) if isinstance(value, str) else f"{value:.4g}"


def _in_words(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    return f"{value:.3g}" if math.isfinite(value) else "infinite"


def _trend(values: Sequence[tuple[int, float]]) -> str:
    """How finite values, with the numbers of their steps, developed."""
    first_step, first = values[0]
    peak_step, peak = max(values, key=lambda pair: pair[1])
    lowest = min(value for _, value in values)
    if peak < GROWTH * first or peak <= first:
        return f"stayed between {lowest:.3g} and {peak:.3g}"
    times = f" {_fold(peak / first)}" if first > 0 else ""
    return f"grew{times}, from {first:.3g} (step {first_step}) to {peak:.3g} (step {peak_step})"


def _fold(ratio: float) -> str:
    number = f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}" if ratio < 1e6 else f"{ratio:.1e}"
    return f"{number}-fold"
