"""What a pack asks of a device, and how that becomes seconds and bytes. Does not need torch.

The time of a step is a sum of a few terms (`Demand.terms`). Each is a count times a coefficient of the device
(`devices.py`). Memory is counted from the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lora_bench.data import windows
from lora_bench.forecast import demand, families
from lora_bench.forecast.demand import FLOAT32_BYTES, ITEM_BYTES, NO_BASES, AdapterDemand, Bases
from lora_bench.forecast.families import Family
from lora_bench.forecast.geometry import Geometry

# What launching an operation from Python takes, in a step of a rule for the encoder's weights; chosen.
OPERATION_SECONDS = 1e-5

TRAINED_LAYER_KERNELS = 2.5  # kernels of a layer whose weights train, relative to those of a frozen layer
# How many times as long a rule's step takes as AdamW's step on all weights, a single kernel: measured for LISA and
# GaLore on an H200 (31 ms for 125 million weights), without the decompositions.
RULED_STEP_PASSES = 24
# Bytes of a trained value, counted in `engine/` and by following the tensors of a step on a CPU. All are in float32.
VALUE_BYTES = 12  # throughout: the value and AdamW's two moments
WHOLE_VALUE_BYTES = 4  # throughout, where the whole encoder trains: the weight decay of the value
RULED_VALUE_BYTES = 10  # throughout, under a rule for its weights: the gradient, whether the value trains, its decay
GRADIENT_BYTES = 8  # at the end of a step: the gradient, once for each factor and once joined
LIBRARY_BYTES = 2**27  # cuBLAS keeps 64 MiB for the stream of the training, and 64 for the default stream
# GPU memory of a process besides its tensors: the context of CUDA and the code of kernels (chosen: about what recent
# cards need).
CONTEXT_BYTES = 2**29
# torch does not split a block of memory if less than 1 MiB would be left over. So each large tensor that a layer keeps
# wastes half of that, on average.
TENSORS_OF_LAYER, LARGE_TENSOR_BYTES = 10, 2**20
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
        tensors: Tensors of all weights in float32 that a step of the optimiser holds at its peak.
    """

    directions: float
    operations: float
    tensors: int


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
        - `adapter_byte`: activations that the adapters read and write.
        - `adapter_flop`: operations of the adapters' products.
        - `dress_byte`: activations read and written for gains, stretches and shifts.
        - `operand`: values of A and B.
        - `remade`: values of A and B that products with whole weights recompute.
        - `value`: trained values, with padding.

        Besides these, the set-up of a pack has `setup` (once), `direction` (singular directions of decompositions) and
        `draw` (random values), and an evaluation has `score` (the metric of each cell).

        Args:
            slots: The slots of the step, of one cell.
        """
        all_slots, geometry, adapters = slots * self.cells, self.geometry, self.adapters
        # Values that move per slot and layer, forward and backward. The coefficient is fitted with them, so that only
        # their ratio matters.
        width = geometry.layers * (45 * geometry.hidden + 12 * geometry.inner)
        # Weights that train run through transformers' code; where that runs anyway, `_run_seconds` counts its work.
        work = self._form.work / self.family.work
        return {
            "layer": geometry.layers * (TRAINED_LAYER_KERNELS if self.trains_backbone else 1.0),
            # 2 per weight forward, 2 for the gradient of activations, 2 for that of weights that train.
            "flop": work * all_slots * geometry.linear * (6 if self.trains_backbone else 4),
            "byte": work * all_slots * width * self.item_bytes,
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
        update = 0.0
        if self.rule is not None:
            update = OPERATION_SECONDS * self.rule.operations
            update += RULED_STEP_PASSES * coefficients["value"] * self.geometry.weights
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
        whole = geometry.weights if self.trains_backbone else 0
        bases = demand.basis_values(adapters.bases | kept, geometry)
        permanent = geometry.weights * max(self.item_bytes, FLOAT32_BYTES if whole else 0)
        permanent += VALUE_BYTES * self.values + whole * WHOLE_VALUE_BYTES + FLOAT32_BYTES * (adapters.frozen + bases)
        permanent += 0 if self.rule is None else RULED_VALUE_BYTES * whole
        permanent += self._mask_bytes
        evaluation = min(self.eval_slots * self.cells, windows.EVAL_SLOTS["cuda"]) * self._forward_values
        # A step holds the activations and each operand with its gradient; after these, the gradients of values.
        slots = self.largest_slots * self._padding * self.cells
        training = slots * self._step_values + 2 * adapters.operands
        update = 2 * adapters.operands * self.item_bytes + GRADIENT_BYTES * self.values
        ruled = 0 if self.rule is None else FLOAT32_BYTES * self.rule.tensors * whole
        activations = self.item_bytes * max(training, evaluation + adapters.operands)
        if slots * geometry.hidden * self.item_bytes > LARGE_TENSOR_BYTES:
            activations += TENSORS_OF_LAYER * geometry.layers * LARGE_TENSOR_BYTES / 2
        return LIBRARY_BYTES + permanent + max(activations, update, ruled)

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

    @property
    def _form(self) -> Family:
        """The family by which the encoder runs: `family`, unless its weights train."""
        return families.when_trained(self.family) if self.trains_backbone else self.family

    @property
    def _attention_values(self) -> float:
        """The attention weights of a layer per slot, where they are kept: the kernels for bf16 compute them again."""
        if self._form.way == "fused" and self.item_bytes == ITEM_BYTES["bf16"]:
            return 0
        return self.geometry.heads * (self.longest if self.family.way == "padded" else self.window)

    @property
    def _forward_values(self) -> float:
        """The values per slot that a layer holds at its peak in a pass that keeps nothing for the backward pass."""
        hidden, inner = self.geometry.hidden, self.geometry.inner
        # Its input; queries, keys and values; the attention's weights and output; the sum before each norm; the input
        # of the feed-forward part, and that part before and after its activation, and stretched.
        wide = 3 if ("ffn_down", "stretch") in self.adapters.touched else 2
        now = max(wide * inner + self._attention_values, 3 * self._attention_values)
        return 8 * hidden + now + self._adapter_values

    @property
    def _adapter_values(self) -> float:
        """The values per slot that the adapters of a layer keep."""
        return (self.adapters.kept_outputs + self.adapters.inner_width) / self.geometry.layers

    @property
    def _layer_values(self) -> float:
        """The values per slot that a layer keeps for the backward pass."""
        hidden, inner = self.geometry.hidden, self.geometry.inner
        # Two products keep their inputs if something that trains reads these; that of query, key and value always does.
        read = {"attn_out", "ffn_up"} if self.trains_backbone else self.adapters.products & {"attn_out", "ffn_up"}
        # Queries, keys and values, the sums before both norms, its output; the feed-forward part before its activation.
        return 6 * hidden + inner + len(read) * hidden + self._attention_values + self._adapter_values

    @property
    def _step_values(self) -> float:
        """The values per slot that a training step holds at its peak."""
        geometry, family, attention = self.geometry, self._form, self._attention_values
        hidden, inner, touched = geometry.hidden, geometry.inner, self.adapters.touched
        if not self.adapters.products and not self.trains_backbone:
            return self._forward_values  # nothing below the head needs a gradient
        if family.way != "fused":
            now = max(3 * hidden + inner, 3 * attention)  # what the layer that is being computed holds beside it
            if family.recomputes and self.cells > 1:  # the backward pass computes each layer again
                return geometry.layers * hidden + family.memory * (self._layer_values + now)
            return family.memory * (geometry.layers * self._layer_values - attention) + now
        # The last layer computes first tokens only, but for queries, keys, values and their attention.
        last = 3 * hidden + attention + self._adapter_values
        # The gradient of a gain takes a copy of the outputs' gradient and its product with the outputs.
        gain = 4 * hidden if ("qkv", "gain") in touched else 0
        is_scaled = bool({("ffn_down", "stretch"), ("ffn_up", "gain")} & touched)
        wide = 3 if is_scaled else 2 if "ffn_down" in self.adapters.products else 1
        now = max(
            last + 5 * hidden + gain + 3 * attention,  # in the attention of the last layer
            # One layer lower, where the output of the layer is not needed any more: in its feed-forward part, or in its
            # attention, when the wide gradient of that part is still there.
            2 * hidden + wide * inner,
            7 * hidden + inner + gain + 3 * attention,
        )
        return (geometry.layers - 1) * self._layer_values + now


def _weighted_sum(coefficients: Coefficients, counts: Coefficients) -> float:
    return sum(coefficients.get(term, 0.0) * count for term, count in counts.items())
