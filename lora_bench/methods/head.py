"""Head only, the control row: the head has more parameters than most adapters, so its effect must be seen alone."""

from __future__ import annotations

from lora_bench.methods.unadapted import Unadapted


class Head(Unadapted):
    """Trains only the classification head."""

    name = "head"
    title = "Head only (control)"
    source = "control row, ours"
    kind = "controls"
    default_lr = 1e-3


RECIPE = Head()
