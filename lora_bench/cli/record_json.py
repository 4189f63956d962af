"""A record as JSON that is laid out for reading."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lora_bench.records.divergence import explain
from lora_bench.records.schema import AnyFloat, Record, TrainingStep
from lora_bench.text import counted


def record_as_json(record: Record) -> str:
    """Return a record as JSON for reading: predictions are counted, a diverged cell's last steps stand at the end.

    Each of these steps is on a line of its own, and `what_happened` says in words what they show.
    """
    content = record.model_dump(mode="json", exclude={"last_steps"})
    content["predictions"] = counted(len(record.predictions), "value")
    text = json.dumps(content, indent=2)
    if not record.last_steps:
        return text
    steps = _steps_as_json(record.last_steps)
    explanation = json.dumps(
        {"what_happened": explain(record.last_steps, record.cell.effective_head_lr / record.cell.lr)}, indent=2
    )
    return "".join(
        [text.removesuffix("\n}"), ',\n  "last_steps": ', steps, ",", explanation.removeprefix("{")],
    )


def _steps_as_json(steps: Sequence[TrainingStep]) -> str:
    """Return a JSON array with a step on each line, aligned and rounded; up to step 999,999 at most 80 columns wide."""
    width = len(str(steps[-1].step))
    rows = [
        f'    {{"step": {step.step:{width}}, "loss": {_rounded(step.loss):>9}, '
        f'"grad_norm": {_rounded(step.grad_norm):>9}, "lr": {_rounded(step.lr, 3):>8}}}'
        for step in steps
    ]
    return "[\n" + ",\n".join(rows) + "\n  ]"


def _rounded(value: AnyFloat, digits: int = 4) -> str:
    return json.dumps(value) if isinstance(value, str) else f"{value:.{digits}g}"
