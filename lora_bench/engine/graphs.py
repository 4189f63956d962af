"""CUDA graphs of whole training steps, for packs so small that launching kernels may take longer than running them.

A step of a given batch shape is recorded the second time that it comes, and replayed from then on: the batch and its
dropout masks are copied to the memory that the graph reads. Batches of rare shapes are padded to the next larger
recorded shape with empty windows, which changes no number.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lora_bench.engine.device_memory import has_room_for_graphs
from lora_bench.engine.encoder.windows import Batch, Form
from lora_bench.engine.masks import Masks
from lora_bench.engine.shortage import is_shortage

MIN_STEPS = 50  # from so many steps on, recording a shape takes less time than it saves (chosen)
# Graphs are recorded for packs with at most this product of slots, cells and linear weights in a step. 85e6 are the
# linear weights of a base-sized encoder (12 layers of 768). The other factor, slots × cells, is chosen: with 57,000 of
# them and four methods a step took 71 ms on an H100, and a slow processor 69 ms to launch its kernels.
MAX_WORK = 2**16 * 85e6

DeviceStep = Callable[[Batch, Masks], Tensor]


def choose_shapes(counts: Mapping[Form, int], min_steps: int = MIN_STEPS) -> list[Form]:
    """Choose the shapes to record.

    Args:
        counts: How often each shape comes.
        min_steps: How many steps a recorded shape has to serve.

    Returns:
        Shapes of which each serves at least `min_steps` steps: its own, and those of smaller shapes of the same width
        that come too rarely.
    """
    rows = max((form.rows for form in counts), default=0)
    totals: Counter[tuple[int, int]] = Counter()
    for form, count in counts.items():
        totals[form.width, form.windows] += count
    chosen: list[Form] = []
    for width in sorted({width for width, _ in totals}):
        waiting = 0  # steps of smaller shapes that no chosen shape serves yet
        for windows in sorted(n for w, n in totals if w == width):
            waiting += totals[width, windows]
            if waiting >= min_steps:
                chosen.append(Form(width, windows, rows))
                waiting = 0
    return chosen


@dataclass
class RecordedStep:
    """A graph, the batch and the masks that it reads, and the values that it writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    masks: Masks
    output: Tensor


class StepGraphs:
    """Takes steps, and replays graphs for the shapes in `forms`.

    It has no reference to the trainer: such a cycle would hold a pack's memory until Python's garbage collector runs.

    Args:
        code_is_ours: Whether a step that cannot be recorded is an error. If not, steps are issued one after another
            instead: transformers' code may do something that a graph cannot hold, such as a copy from the host.

    Attributes:
        refusal: Why a step could not be recorded, in a line; None if all could.
    """

    def __init__(self, code_is_ours: bool) -> None:
        self.code_is_ours = code_is_ours
        self.forms: list[Form] = []
        self.refusal: str | None = None
        self._seen: set[Form] = set()
        self._recorded: dict[Form, RecordedStep] = {}
        self._pool: Any = None  # the graphs' memory pool: they never run at the same time, so they share one

    def padded_form(self, form: Form) -> Form:
        """The smallest recorded shape that a batch of this shape can be padded to, else the shape itself."""
        larger = [f for f in self.forms if f.width == form.width and f.windows >= form.windows and f.rows >= form.rows]
        return min(larger, key=lambda f: f.windows, default=form)

    def step(
        self,
        batch: Batch,
        device_step: DeviceStep,
        masks_for: Callable[[Form], Masks],
        draw_masks: Callable[[Masks], object],
    ) -> Tensor:
        """Take one step.

        Args:
            batch: The batch.
            device_step: The step itself, a function of the batch and its masks.
            masks_for: Gives the mask buffers for a batch shape.
            draw_masks: Fills them for this step.

        Returns:
            What `device_step` returns.
        """
        form = batch.shape
        # The first step of a shape is not recorded: it compiles kernels and allocates workspaces.
        if form in self.forms and form in self._seen and self._has_room(batch.slots.device):
            try:
                if form not in self._recorded:
                    self._recorded[form] = self._record(batch, device_step, masks_for(form))
                return self._replay(self._recorded[form], batch, draw_masks)
            except RuntimeError as error:
                if self.code_is_ours or form in self._recorded or is_shortage(error):
                    raise
                self.forms = [other for other in self.forms if other in self._recorded]
                self.refusal = str(error).partition("\n")[0]
        self._seen.add(form)
        masks = masks_for(form)
        draw_masks(masks)
        return device_step(batch, masks)

    def _has_room(self, device: torch.device) -> bool:
        """Whether there is memory for graphs. The first one decides: all others share what it takes."""
        if not self._recorded and not has_room_for_graphs(device):
            self.forms = []
        return bool(self.forms)

    def _record(self, batch: Batch, device_step: DeviceStep, masks: Masks) -> RecordedStep:
        """Record a step over copies of the batch's tensors. Nothing is computed until the graph is replayed."""
        inputs = replace(
            batch,
            slots=batch.slots.clone(),
            first=batch.first.clone(),
            labels=batch.labels.clone(),
            weights=batch.weights.clone(),
        )
        graph = torch.cuda.CUDAGraph()
        with _no_garbage_collection(), torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream()):
            output = device_step(inputs, masks)
        self._pool = self._pool or graph.pool()
        return RecordedStep(graph, inputs, masks, output)

    @staticmethod
    def _replay(recorded: RecordedStep, batch: Batch, draw_masks: Callable[[Masks], object]) -> Tensor:
        inputs = recorded.batch
        inputs.slots.copy_(batch.slots)
        inputs.first.copy_(batch.first)
        inputs.labels.copy_(batch.labels)
        inputs.weights.copy_(batch.weights)
        draw_masks(recorded.masks)
        recorded.graph.replay()
        return recorded.output.clone()  # the next replay overwrites it


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the garbage collector from freeing device memory during a recording, which would make it fail."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@cache
def training_stream(device: int) -> torch.cuda.Stream:
    """The stream that all trainers of a process use.

    cuBLAS allocates a workspace of 64 MiB for every stream that it sees, and never frees it.
    """
    return torch.cuda.Stream(device)
