"""CUDA graphs of whole training steps, for packs so small that issuing kernels takes longer than running them.

A step of a given shape is recorded once, the second time it comes, and replayed from then on: the batch and its
dropout masks are copied to where the graph reads them. Shapes that come rarely are padded to the next larger one with
empty windows, which changes no number.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lora_bench.engine.encoder.windows import Batch, Form
from lora_bench.engine.masks import Masks

WORTH = 50  # steps that repay the recording of a shape
SMALL = 2**15 * 85e6  # slots x cells x linear weights below which a step is bound by launches

Advance = Callable[[Batch, Masks], Tensor]


def choose(counts: Mapping[Form, int], worth: int = WORTH) -> list[Form]:
    """The shapes to record, given how often each comes: each serves those below it that come too rarely."""
    rows = max((form.rows for form in counts), default=0)
    totals: Counter[tuple[int, int]] = Counter()
    for form, count in counts.items():
        totals[form.width, form.windows] += count
    chosen: list[Form] = []
    for width in sorted({width for width, _ in totals}):
        waiting = 0
        for windows in sorted(n for w, n in totals if w == width):
            waiting += totals[width, windows]
            if waiting >= worth:
                chosen.append(Form(width, windows, rows))
                waiting = 0
    return chosen


@dataclass
class Recorded:
    """A graph, the batch and masks that it reads, and the losses that it writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    masks: Masks
    losses: Tensor


class Replays:
    """Takes steps, by replaying graphs for the shapes that were chosen.

    It keeps no way back to the trainer: a cycle would hold a pack's memory until Python looks for cycles.
    """

    def __init__(self) -> None:
        self.forms: list[Form] = []
        self._seen: set[Form] = set()
        self._recorded: dict[Form, Recorded] = {}
        self._pool: Any = None

    def fit(self, form: Form) -> Form:
        """The recorded shape that holds a batch of this one, else its own."""
        holding = [f for f in self.forms if f.width == form.width and f.windows >= form.windows and f.rows >= form.rows]
        return min(holding, key=lambda f: f.windows, default=form)

    def step(
        self, batch: Batch, advance: Advance, room: Callable[[Form], Masks], draw: Callable[[Masks], object]
    ) -> Tensor:
        """One step: `advance` with masks from `room` that `draw` has filled."""
        form = batch.shape
        if form in self.forms and form in self._seen:
            if form not in self._recorded:
                self._recorded[form] = self._record(batch, advance, room(form))
            return self._replay(self._recorded[form], batch, draw)
        self._seen.add(form)
        masks = room(form)
        draw(masks)
        return advance(batch, masks)

    def _record(self, batch: Batch, advance: Advance, masks: Masks) -> Recorded:
        own = replace(batch, slots=batch.slots.clone(), first=batch.first.clone(), labels=batch.labels.clone(),
                      weights=batch.weights.clone())  # fmt: skip
        graph = torch.cuda.CUDAGraph()
        with _nothing_freed(), torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream()):
            losses = advance(own, masks)
        self._pool = self._pool or graph.pool()
        return Recorded(graph, own, masks, losses)

    @staticmethod
    def _replay(recorded: Recorded, batch: Batch, draw: Callable[[Masks], object]) -> Tensor:
        own = recorded.batch
        own.slots.copy_(batch.slots)
        for mine, other in ((own.first, batch.first), (own.labels, batch.labels), (own.weights, batch.weights)):
            mine.copy_(other)
        draw(recorded.masks)
        recorded.graph.replay()
        return recorded.losses.clone()


@contextmanager
def _nothing_freed() -> Iterator[None]:
    """Keep the garbage collector from freeing device memory, which would spoil a recording."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
