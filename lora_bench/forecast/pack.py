"""What a pack asks of a device, and how that becomes seconds and bytes. Does not need torch.

The time of a step is a sum of a few terms (`Demand.terms`). Each is a count times a coefficient of the device
(`devices.py`). Memory is counted from the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lora_bench.data import windows
from lora_bench.forecast import demand
from lora_bench.forecast.demand import FLOAT32_BYTES, ITEM_BYTES, NO_BASES, AdapterDemand, Bases
from lora_bench.forecast.families import Family
from lora_bench.forecast.geometry import Geometry

# What a rule for the encoder's weights takes beside the step of full fine-tuning. Neither was measured on a GPU. The
# seconds are chosen: what launching an operation from Python takes. The bytes of a trained value are counted: nine
# tensors of the matrix's size in float32 at the peak of a step in `engine/ruled_optimiser.py`.
OPERATION_SECONDS, RULED_VALUE_BYTES = 1e-5, 36

TRAINED_LAYER_KERNELS = 2.5  # kernels of a layer whose weights train, relative to those of a frozen layer
LIBRARY_BYTES = 2**27  # cuBLAS keeps 64 MiB for the stream of the training, and 64 for the default stream
# What a process takes on a card beside its tensors: the context of CUDA and the code of kernels (chosen; about as much
# on cards of the last years).
CONTEXT_BYTES = 2**29
MASK_WINDOWS = 8  # windows in whose multiples the trainer allocates dropout masks
# Several cells on padded rows launch a step's kernels this many times as long as one cell: each layer runs a second
# time in the backward pass (measured with MegatronBERT: 131 ms a step of four cells, 72 ms of one).
RECOMPUTED_LAUNCHES = 1.8
# The terms of a training step. The names are those in devices.json and in the files of `lora-bench bench`.
STEP_TERMS = ("layer", "flop", "byte", "adapter_byte", "adapter_flop", "dress_byte", "operand", "remade", "value")

Coefficients = Mapping[str, float]


@dataclass(frozen=True)
class RuleDemand:
    """What training the encoder's weights by a rule asks for.

    Attributes:
        directions: Singular directions of gradients that are computed in all steps.
        operations: Operations of a step of the optimiser, which are launched one after another.
    """

    directions: float
    operations: float


@dataclass(frozen=True)
class Demand:
    """What a pack asks of a device. A slot is a position of a window, with a token or empty.

    Attributes:
        cells: The number of cells.
        slots: Slots per step, of one cell.
        largest_slots: Slots of the largest batch of an epoch.
        steps: Training steps in all epochs.
        eval_slots: Slots of the larger of the evaluated splits.
        evaluations: Evaluations per epoch, in units of that split.
        epochs: The number of epochs.
        adapters: What the adapters need.
        geometry: The encoder's sizes.
        item_bytes: Bytes of a value in the pack's precision.
        trains_backbone: Whether the encoder's own weights train.
        rule: What a rule for the encoder's weights asks for, if they train by one.
        window: Slots of the windows that most batches have.
        longest: The tokens of the longest sequence of a usual batch: the width of its padded rows.
        rows: Sequences of a batch.
        family: How the encoder runs.
    """

    cells: int
    slots: float
    largest_slots: float
    steps: int
    eval_slots: float
    evaluations: float
    epochs: int
    adapters: AdapterDemand
    geometry: Geometry
    item_bytes: int
    trains_backbone: bool
    rule: RuleDemand | None
    window: int
    longest: float
    rows: int
    family: Family

    def terms(self, slots: float) -> dict[str, float]:
        """Return the count of each term in one training step.

        - `layer`: launched kernels, in layers.
        - `flop`: operations of the products with frozen weights.
        - `byte`: activations that are read and written.
        - `adapter_byte`: those that the adapters read and write.
        - `adapter_flop`: operations of the adapters' products.
        - `dress_byte`: activations read and written for gains, stretches and shifts.
        - `operand`: values of A and B.
        - `remade`: those of them that products with whole weights recompute.
        - `value`: trained values, with padding.

        Beside these, the set-up of a pack has `setup` (once), `direction` (singular directions of decompositions) and
        `draw` (random values), and an evaluation has `score` (the metric of each cell).

        Args:
            slots: The slots of the step, of one cell.
        """
        all_slots, geometry, adapters = slots * self.cells, self.geometry, self.adapters
        # Values that move per slot and layer, forward and backward. The coefficient is fitted with them, so that only
        # their ratio matters.
        width = geometry.layers * (45 * geometry.hidden + 12 * geometry.inner)
        return {
            "layer": geometry.layers * (TRAINED_LAYER_KERNELS if self.trains_backbone else 1.0),
            # 2 per weight forward, 2 for the gradient of activations, 2 for that of weights that train.
            "flop": all_slots * geometry.linear * (6 if self.trains_backbone else 4),
            "byte": all_slots * width * self.item_bytes,
            "adapter_byte": all_slots * adapters.adapted_width * 4 * self.item_bytes,
            "adapter_flop": slots * adapters.operands * 6,
            "dress_byte": all_slots * adapters.output_passes * self.item_bytes,
            "operand": float(adapters.operands),
            "remade": float(adapters.remade),
            "value": float(self.values),
        }

    @property
    def values(self) -> int:
        """The trained values of all cells."""
        return self.adapters.trained + (self.geometry.weights if self.trains_backbone else 0)

    def seconds(self, coefficients: Coefficients, kept: Bases = NO_BASES) -> float:
        """Return the time of the whole pack: set-up, training, and the evaluations of each epoch.

        Args:
            coefficients: Those of the device.
            kept: Bases that earlier packs have left in memory.
        """
        step = self.step_seconds(coefficients)
        forward = self._evaluation_seconds(coefficients)
        evaluation = self.evaluations * (forward + coefficients.get("score", 0.0) * self.cells)
        return self._setup_seconds(coefficients, kept) + self.steps * step + self.epochs * evaluation

    def step_seconds(self, coefficients: Coefficients) -> float:
        """Return the time of a training step of all cells."""
        launches = RECOMPUTED_LAUNCHES if self.family.recomputes and self.cells > 1 else 1.0
        update = 0.0 if self.rule is None else OPERATION_SECONDS * self.rule.operations
        return self._run_seconds(coefficients, self.terms(self.slots * self._padding), launches) + update

    def _evaluation_seconds(self, coefficients: Coefficients) -> float:
        """Return the time of the forward passes over all evaluated rows, in as many batches as they need."""
        slots = self.eval_slots * self._padding
        batches = math.ceil(slots * self.cells / windows.EVAL_SLOTS["cuda"])
        per_batch = {"layer": self.terms(0)["layer"] * batches, "value": 0.0}
        # The forward pass is a third of a step that trains all weights, and 1 / 2.5 of one with frozen weights.
        return self._run_seconds(coefficients, self.terms(slots) | per_batch, batches) / (
            3 if self.trains_backbone else 2.5
        )

    def _run_seconds(self, coefficients: Coefficients, counts: Mapping[str, float], launches: float) -> float:
        """Return the time of work.

        Args:
            coefficients: Those of the device.
            counts: The count of each term.
            launches: How often the kernels of a step are launched.
        """
        if self.family.way == "fused":
            return _weighted_sum(coefficients, counts)
        # Nothing waits for a kernel to be launched but the next launch, so the longer of both counts.
        on_device = self.family.work * _weighted_sum(coefficients, {**counts, "layer": 0.0})
        return max(on_device, self.family.host * self.geometry.layers * launches)

    @property
    def _padding(self) -> float:
        """The slots that are computed, over those of windows."""
        return self.rows * self.longest / self.slots if self.family.way == "padded" else 1.0

    def _setup_seconds(self, coefficients: Coefficients, kept: Bases) -> float:
        directions = demand.singular_directions(self.adapters.bases - kept, self.geometry)
        renewed = 0.0 if self.rule is None else self.rule.directions
        drawing = coefficients.get("draw", 0.0) * self.adapters.drawn
        return coefficients["setup"] + drawing + coefficients.get("direction", 0.0) * (directions + renewed)

    def bytes(self, kept: Bases = NO_BASES) -> float:
        """Return the peak of device memory: what is always there, and a training step or an evaluation.

        Args:
            kept: Bases that earlier packs have left in memory.
        """
        geometry, adapters = self.geometry, self.adapters
        bases = demand.basis_values(adapters.bases | kept, geometry)
        # A trained value takes 20 bytes: five in float32, among them the value, its gradient and AdamW's two moments.
        value_bytes = 20 + (0 if self.rule is None else RULED_VALUE_BYTES)
        permanent = geometry.weights * self.item_bytes + self.values * value_bytes
        permanent += FLOAT32_BYTES * (adapters.frozen + bases)
        permanent += self._mask_bytes
        # The kernels of the fused form recompute the attention weights in bf16; elsewhere they are kept.
        is_recomputed = self.family.way == "fused" and self.item_bytes == ITEM_BYTES["bf16"]
        width = self.longest if self.family.way == "padded" else self.window
        attention = 0 if is_recomputed else geometry.heads * width
        training = self.largest_slots * self._padding * self.cells * self._tape_values(attention)
        training += 2 * adapters.operands
        adapter_values = (adapters.kept_outputs + adapters.inner_width) / geometry.layers
        layer = 9 * geometry.hidden + max(2 * geometry.inner, 3 * attention) + adapter_values
        eval_slots = min(self.eval_slots * self.cells, windows.EVAL_SLOTS["cuda"])
        evaluation = eval_slots * layer + adapters.operands
        # A step holds two of each operand (the operand, and its gradient or that of the last step) beside the
        # activations; when those are freed, it holds four while the gradients are converted to float32.
        return LIBRARY_BYTES + permanent + self.item_bytes * max(training, evaluation, 4 * adapters.operands)

    @property
    def _mask_bytes(self) -> int:
        """The dropout masks of the largest batch, which all cells share: of hidden states and of attention weights."""
        if self.family.way == "padded":  # there they are made where they are needed
            return 0
        geometry = self.geometry
        hidden = (2 * geometry.layers + 1) * geometry.hidden
        attention = geometry.layers * geometry.heads * self.window
        windows = math.ceil(self.largest_slots / self.window / MASK_WINDOWS) * MASK_WINDOWS
        return windows * self.window * (hidden + attention)

    def _tape_values(self, attention: float) -> float:
        """Return the values per slot that a training step holds at its peak.

        Args:
            attention: The attention weights of a layer per slot, if they are kept.
        """
        geometry, adapters = self.geometry, self.adapters
        # What all layers keep for the backward pass ...
        values = float(geometry.layers * (6 * geometry.hidden + geometry.inner))
        values += adapters.kept_outputs + adapters.inner_width
        if adapters.adapted_width > geometry.layers * 6 * geometry.hidden:  # more than query, key and value are adapted
            values += geometry.layers * 2 * geometry.hidden
        values += (geometry.layers - 1) * attention  # the last layer keeps none: it computes first tokens only
        # ... and what the layer that is being computed holds beside it.
        inner = (3 if adapters.output_passes else 1) * geometry.inner
        now = max(3 * geometry.hidden + inner, 3 * attention)
        if self.family.recomputes and self.cells > 1:  # ... after which the backward pass computes each layer again
            return geometry.layers * geometry.hidden + self.family.memory * (values / geometry.layers + now)
        return self.family.memory * values + now


def _weighted_sum(coefficients: Coefficients, counts: Coefficients) -> float:
    return sum(coefficients.get(term, 0.0) * count for term, count in counts.items())
