"""What packs will cost before anything runs: seconds, bytes, and how many cells a pack should have. No torch needed.

The time of a step is a sum of a few terms (`Demand.terms`). Each is a count (`demand.py`) times a coefficient of the
device (`devices.json`, measured by `lora-bench bench --calibrate`), and so is the time of the set-up. Memory is counted
from the shapes. Finished cells refine both (`Estimate.refined`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import median

from pydantic import FiniteFloat, TypeAdapter

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.data import windows
from lora_bench.errors import MISSING, BenchError
from lora_bench.forecast import demand
from lora_bench.forecast.demand import FLOAT32_BYTES, ITEM_BYTES, NO_BASES, AdapterDemand, Bases
from lora_bench.forecast.geometry import Geometry, load_geometry
from lora_bench.records.files import read_file
from lora_bench.records.schema import Record

SLOT_FILL = 0.92  # the fraction of slots that hold a token; chosen, windows of whole sequences are never quite full
# Slots × cells × linear weights of a step beyond which larger packs gain nothing. 85e6 are RoBERTa-base's weights.
FULL_LOAD = {"cuda": 2**15 * 85e6, "cpu": 2**13 * 85e6}
MAX_CELLS = {"cuda": 512, "cpu": 16}
UNKNOWN_TOKENS = 40.0  # per sequence, of a task whose mean is not known; chosen
UNKNOWN_ROWS = 10_000, 1_000  # of training and evaluation where they are not known, for the memory alone; chosen
TRAINED_LAYER_KERNELS = 2.5  # kernels of a layer whose weights train, relative to those of a frozen layer
HELD_OUT_FRACTION = 0.1  # of the training rows, at most, if the epoch is chosen by them
LIBRARY_BYTES = 2**27  # of device memory that libraries keep; chosen
# The terms of a training step. The names are those in devices.json and in the files of `lora-bench bench`.
STEP_TERMS = ("layer", "flop", "byte", "adapter_byte", "adapter_flop", "dress_byte", "operand", "remade", "value")
# Coefficients that every calibration must have; the others count as 0 if they are not known.
REQUIRED_TERMS = frozenset({"layer", "flop", "byte", "adapter_byte", "value", "setup"})

Coefficients = Mapping[str, float]


@lru_cache(maxsize=1)
def shipped_coefficients() -> dict[str, dict[str, dict[str, float]]]:
    """Return the coefficients of the package, by device and precision."""
    content: dict[str, dict[str, dict[str, float]]] = json.loads(
        Path(__file__).with_name("devices.json").read_text(encoding="utf-8")
    )
    return content


def device_coefficients(device: str, precision: str, measured: Path | None = None) -> Coefficients | None:
    """Return the coefficients of a device.

    Args:
        device: its name as in records; all processors count as one device, `cpu`.
        precision: `bf16` or `float32`.
        measured: what `bench --calibrate` wrote on this machine. Its values replace the shipped ones.

    Returns:
        The coefficients; None if the device is not known.

    Raises:
        BenchError: `measured` is not such a file.
    """
    tables = [shipped_coefficients()]
    if measured is not None and os.path.lexists(measured):
        tables.append(_read_measured(measured))
    name = "cpu" if device.startswith("cpu") else device
    known = [table[name][precision] for table in tables if precision in table.get(name, {})]
    return {term: value for coefficients in known for term, value in coefficients.items()} or None


def _read_measured(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    try:
        table = TypeAdapter(dict[str, dict[str, dict[str, FiniteFloat]]]).validate_json(read_file(path))
    except (ValueError, OSError):
        table = {"": {"": {}}}  # lacks every required term
    if not all(terms.keys() >= REQUIRED_TERMS for device in table.values() for terms in device.values()):
        hint = "Delete it, then measure again: lora-bench bench --calibrate."
        raise BenchError(f"'{path}' is not what `bench --calibrate` wrote.", hint, MISSING)
    return table


@dataclass(frozen=True)
class Demand:
    """What a pack asks of a device. A slot is a position of a window, with a token or empty.

    Attributes:
        cells: the number of cells.
        slots: slots per step, of one cell.
        largest_slots: slots of the largest batch of an epoch.
        steps: training steps in all epochs.
        eval_slots: slots of the larger of the evaluated splits.
        evaluations: evaluations per epoch, in units of that split.
        epochs: the number of epochs.
        adapters: what the adapters need.
        geometry: the encoder's sizes.
        item_bytes: bytes of a value in the pack's precision.
        trains_backbone: whether the encoder's own weights train.
        window: slots of the windows that most batches have.
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
    window: int

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
            slots: the slots of the step, of one cell.
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
        geometry = self.geometry
        backbone = geometry.linear + geometry.embeddings * geometry.hidden if self.trains_backbone else 0
        return self.adapters.trained + backbone

    def seconds(self, coefficients: Coefficients, kept: Bases = NO_BASES) -> float:
        """Return the time of the whole pack: set-up, training, and the evaluations of each epoch.

        Args:
            coefficients: those of the device.
            kept: bases that earlier packs have left in memory.
        """
        step = _weighted_sum(coefficients, self.terms(self.slots))
        forward = self._evaluation_seconds(coefficients)
        evaluation = self.evaluations * (forward + coefficients.get("score", 0.0) * self.cells)
        return self._setup_seconds(coefficients, kept) + self.steps * step + self.epochs * evaluation

    def _evaluation_seconds(self, coefficients: Coefficients) -> float:
        """Return the time of the forward passes over all evaluated rows, in as many batches as they need."""
        batches = math.ceil(self.eval_slots * self.cells / windows.EVAL_SLOTS["cuda"])
        per_batch = {"layer": self.terms(0)["layer"] * batches, "value": 0.0}
        # The forward pass is a third of a step that trains all weights, and 1 / 2.5 of one with frozen weights.
        return _weighted_sum(coefficients, self.terms(self.eval_slots) | per_batch) / (
            3 if self.trains_backbone else 2.5
        )

    def _setup_seconds(self, coefficients: Coefficients, kept: Bases) -> float:
        directions = demand.singular_directions(self.adapters.bases - kept, self.geometry)
        drawing = coefficients.get("draw", 0.0) * self.adapters.drawn
        return coefficients["setup"] + drawing + coefficients.get("direction", 0.0) * directions

    def bytes(self, kept: Bases = NO_BASES) -> float:
        """Return the peak of device memory: what is always there, and a training step or an evaluation.

        Args:
            kept: bases that earlier packs have left in memory.
        """
        geometry, adapters = self.geometry, self.adapters
        weights = geometry.linear + geometry.embeddings * geometry.hidden
        bases = demand.basis_values(adapters.bases | kept, geometry)
        # A trained value takes 20 bytes: five in float32, among them the value, its gradient and AdamW's two moments.
        permanent = weights * self.item_bytes + self.values * 20 + FLOAT32_BYTES * (adapters.frozen + bases)
        # Outside of bf16 no kernel recomputes the attention weights, so they are kept from the forward pass.
        attention = 0 if self.item_bytes == ITEM_BYTES["bf16"] else geometry.heads * self.window
        training = self.largest_slots * self.cells * self._tape_values(attention) + 2 * adapters.operands
        adapter_values = (adapters.kept_outputs + adapters.inner_width) / geometry.layers
        layer = 9 * geometry.hidden + max(2 * geometry.inner, 3 * attention) + adapter_values
        eval_slots = min(self.eval_slots * self.cells, windows.EVAL_SLOTS["cuda"])
        evaluation = eval_slots * layer + adapters.operands
        # A step holds two of each operand (the operand, and its gradient or that of the last step) beside the
        # activations; when those are freed, it holds four while the gradients are converted to float32.
        return LIBRARY_BYTES + permanent + self.item_bytes * max(training, evaluation, 4 * adapters.operands)

    def _tape_values(self, attention: int) -> int:
        """Return the values per slot that a training step holds at its peak.

        Args:
            attention: the attention weights of a layer per slot, if they are kept.
        """
        geometry, adapters = self.geometry, self.adapters
        # What all layers keep for the backward pass ...
        values = geometry.layers * (6 * geometry.hidden + geometry.inner)
        values += adapters.kept_outputs + adapters.inner_width
        if adapters.adapted_width > geometry.layers * 6 * geometry.hidden:  # more than query, key and value are adapted
            values += geometry.layers * 2 * geometry.hidden
        values += (geometry.layers - 1) * attention  # the last layer keeps none: it computes first tokens only
        # ... and what the layer that is being computed holds beside it.
        inner = (3 if adapters.output_passes else 1) * geometry.inner
        return values + max(3 * geometry.hidden + inner, 3 * attention)


def _weighted_sum(coefficients: Coefficients, counts: Coefficients) -> float:
    return sum(coefficients.get(term, 0.0) * count for term, count in counts.items())


@dataclass(frozen=True)
class Estimate:
    """Estimates the costs of packs on a device, from its coefficients and from finished cells.

    Attributes:
        coefficients: those of the device; None if it is not known.
        time_factor: measured over computed seconds of finished packs.
        memory_factor: measured over computed bytes of finished packs.
        tokens: the mean tokens of a training sequence by (data, task, max_length), from records.
        rows: the rows of (training, evaluation) by (data, task), from records or files.
    """

    coefficients: Coefficients | None = None
    time_factor: float = 1.0
    memory_factor: float = 1.0
    tokens: Mapping[tuple[str, str, int], float] = field(default_factory=dict)
    rows: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    @property
    def start_seconds(self) -> float:
        """The seconds before the first pack: importing, loading the encoder and the data, compiling kernels."""
        return (self.coefficients or {}).get("start", 0.0)

    def mean_tokens(self, cell: Cell) -> float | None:
        """Return the mean tokens of a training sequence; None if they are not known.

        They are those counted in records of the same data, else the usual number of the task.
        """
        counted = self.tokens.get((cell.data, cell.task, cell.max_length))
        if counted is not None:
            return counted
        usual = tasks.of(cell).mean_tokens
        return None if usual is None else min(usual, cell.max_length)

    def _rows(self, cell: Cell, holds_out: bool = False) -> tuple[int, int] | None:
        """Return the rows of (training, evaluation); None if they are not known."""
        task = tasks.of(cell)
        usual = None
        if task.train_rows is not None and task.eval_rows is not None:
            usual = round(task.train_rows * (1 - HELD_OUT_FRACTION if holds_out else 1)), task.eval_rows
        return self.rows.get((cell.data, cell.task), usual)

    def demand(self, cells: Sequence[Cell], geometry: Geometry) -> Demand:
        """Return what a pack asks of a device."""
        first, task = cells[0], tasks.of(cells[0])
        slots_per_row = (self.mean_tokens(first) or UNKNOWN_TOKENS) / SLOT_FILL
        holds_out = any(cell.select == "held-out" for cell in cells)
        rows, eval_rows = self._rows(first, holds_out) or UNKNOWN_ROWS
        held_out_rows = rows * HELD_OUT_FRACTION if holds_out else 0.0
        batch = min(first.batch_size, rows)
        steps = math.ceil(rows / first.batch_size)
        # The number of tokens in a batch is about normal; this is the expected largest of `steps` draws, over the mean.
        largest = 1 + task.token_spread * math.sqrt(2 * math.log(steps) / batch)
        return Demand(
            cells=len(cells),
            slots=slots_per_row * batch,
            largest_slots=slots_per_row * batch * largest,
            steps=steps * first.epochs,
            eval_slots=slots_per_row * max(eval_rows, held_out_rows),
            evaluations=(eval_rows + held_out_rows) / max(eval_rows, held_out_rows, 1),
            epochs=first.epochs,
            adapters=demand.count_adapters(cells, geometry, task.num_outputs),
            geometry=geometry,
            item_bytes=ITEM_BYTES[first.precision],
            trains_backbone=methods.of(first).trains_backbone,
            window=_window_size(first, slots_per_row * SLOT_FILL, task.token_spread),
        )

    def seconds(self, cells: Sequence[Cell], model: str, kept: Bases = NO_BASES) -> float | None:
        """Return the time of a pack; None if the device, the model or the length of the data is not known.

        Args:
            cells: the pack.
            model: the model's location.
            kept: the bases that earlier packs have left in memory.
        """
        geometry = load_geometry(model)
        lengths = self.mean_tokens(cells[0]), self._rows(cells[0])
        if self.coefficients is None or geometry is None or None in lengths:
            return None
        return self.time_factor * self.demand(cells, geometry).seconds(self.coefficients, kept)

    def bases(self, cells: Sequence[Cell], model: str) -> Bases:
        """Return the bases that a pack leaves in memory for later packs."""
        geometry = load_geometry(model)
        return NO_BASES if geometry is None else demand.lasting_bases(self.demand(cells, geometry).adapters.bases)

    def bytes(self, cells: Sequence[Cell], model: str, kept: Bases = NO_BASES) -> float | None:
        """Return the peak of GPU memory of a pack, the bases in `kept` included; None if the model is not known."""
        geometry = load_geometry(model)
        return None if geometry is None else self.memory_factor * self.demand(cells, geometry).bytes(kept)

    def cells_per_pack(self, cell: Cell, kind: str, model: str) -> int:
        """Return how many cells fill a device.

        Args:
            cell: a cell whose batches are like those of all cells of the pack.
            kind: `cuda` or `cpu`.
            model: the model's location.
        """
        slots = (self.mean_tokens(cell) or UNKNOWN_TOKENS) / SLOT_FILL * cell.batch_size
        geometry = load_geometry(model)
        load = slots * (85e6 if geometry is None else geometry.linear)
        return max(1, min(MAX_CELLS[kind], round(FULL_LOAD[kind] / load)))

    def refined(self, records: Iterable[Record], device: str, models: Mapping[str, str]) -> Estimate:
        """Return the estimate corrected by finished cells.

        Args:
            records: finished cells. Tokens and rows are taken from all of them, times and memory from those that ran on
                this device.
            device: the device's name, as in records.
            models: the location of each model by its name in cells.
        """
        packs: dict[tuple[float, int, str], list[Record]] = {}
        tokens, rows = dict(self.tokens), dict(self.rows)
        for record in records:
            if record.timing is None or record.data is None or not _is_supported(record.cell):
                continue
            counted = record.timing.tokens / record.cell.epochs / max(1, record.data.train_rows)
            tokens[record.cell.data, record.cell.task, record.cell.max_length] = counted
            rows[record.cell.data, record.cell.task] = record.data.train_rows, record.data.eval_rows
            if _is_same_device(record.environment.get("device", ""), device) and record.cell.model in models:
                # Records do not name their pack; the cells of one share its seconds.
                key = (record.timing.pack_seconds, record.timing.pack_size, record.cell.task)
                packs.setdefault(key, []).append(record)
        plain = replace(self, tokens=tokens, rows=rows, time_factor=1.0, memory_factor=1.0)
        time_ratios, memory_ratios = [], []
        for members in packs.values():
            cells, model, timing = [record.cell for record in members], models[members[0].cell.model], members[0].timing
            if timing is None:
                continue
            # Some records of the pack may be missing.
            share = timing.pack_size / len(members)
            seconds, size = plain.seconds(cells, model, plain.bases(cells, model)), plain.bytes(cells, model)
            if seconds:
                time_ratios.append(timing.pack_seconds / (seconds * share))
            if size and timing.peak_bytes and share == 1:
                memory_ratios.append(timing.peak_bytes / size)
        return replace(
            plain,
            time_factor=median(time_ratios) if time_ratios else 1.0,
            memory_factor=median(memory_ratios) if memory_ratios else 1.0,
        )


def _window_size(cell: Cell, mean: float, spread: float) -> int:
    """Return the size of windows that hold nearly all sequences, up to two standard deviations above the mean."""
    return windows.window_size(math.ceil(min(cell.max_length, mean * (1 + 2 * spread))))


def _is_supported(cell: Cell) -> bool:
    """Whether this version has the cell's task and method; a results folder may contain those of other versions."""
    return cell.task in tasks.TASKS and cell.method in methods.RECIPES


def _is_same_device(first: str, second: str) -> bool:
    """Whether two names are of one kind of device: all processors count as one."""
    return first == second or (first.startswith("cpu") and second.startswith("cpu"))
