"""Predicts what packs will cost: seconds, bytes, and how many cells a pack should have. No torch needed.

`demand.py` and `pack.py` count what a pack asks for. Finished cells correct the prediction (`Estimate.refined`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from statistics import NormalDist, median
from typing import NamedTuple

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.data import windows
from lora_bench.forecast import families
from lora_bench.forecast.demand import (
    FLOAT32_BYTES,
    ITEM_BYTES,
    NO_BASES,
    Bases,
    count_adapters,
    lasting_bases,
    saved_bytes,
)
from lora_bench.forecast.geometry import Geometry, load_geometry
from lora_bench.forecast.pack import Coefficients, Demand, RuleDemand
from lora_bench.forecast.schedule import PackTime
from lora_bench.methods.rules import FisherPosterior, SampledPosterior
from lora_bench.records.schema import Record

# Operations in a step of the optimiser under a rule, and those that each projected weight adds; counted on a CPU.
RULE_OPERATIONS, PROJECTION_OPERATIONS = 96, 5
USUAL_FRACTION = 0.98  # of the sequences fit into a window, as in the engine (`encoder/windows.USUAL`)
# The fraction of slots that hold a token: about that of six tasks of GLUE. The many sequences of an evaluation's batch
# fill windows better than the 32 of a training batch do.
SLOT_FILL, EVAL_SLOT_FILL = 0.92, 0.97
# Slots × cells × linear weights of a step beyond which larger packs gain nothing. 85e6 are RoBERTa-base's weights.
FULL_LOAD = {"cuda": 2**15 * 85e6, "cpu": 2**13 * 85e6}
MAX_CELLS = {"cuda": 512, "cpu": 16}  # of a full pack, however small the encoder (chosen); see `grid.cells.packs`
# What is assumed of a task of which nothing is known, to predict its memory; both were chosen.
UNKNOWN_TOKENS = 40.0  # in a sequence
UNKNOWN_ROWS = 10_000, 1_000  # of training and of evaluation
HELD_OUT_FRACTION = 0.1  # of the training rows, kept from training where they select the epoch (chosen)
# Bytes of a record with its row of metrics.csv, of each epoch and each prediction in a record, and of a saved adapter
# beyond its values: from the records of results/minilm.
RECORD_BYTES, EPOCH_BYTES, PREDICTION_BYTES, ADAPTER_BYTES = 1900, 150, 4, 2000

Cost = tuple[float | None, float | None]  # seconds and peak bytes, None where they cannot be predicted

_SHARED = attrgetter("model", "data", "task", "batch_size", "epochs", "max_length", "precision")
_OWN = attrgetter("method", "rank", "a", "b", "alpha", "init", "targets", "select")


def pack_kind(cells: Sequence[Cell]) -> tuple[object, ...]:
    """Return what a pack's costs depend on: packs of one kind cost the same."""
    return (*_SHARED(cells[0]), frozenset(Counter(map(_OWN, cells)).items()))


class PackCost(NamedTuple):
    """What a pack costs.

    Attributes:
        seconds: Its time; None if the device, the model or the length of the data is not known.
        bytes: The peak of GPU memory, including the bases that earlier packs have left there; None if the model is
            not known.
        bases: The bases that it leaves in memory for later packs.
    """

    seconds: float | None
    bytes: float | None
    bases: Bases


@dataclass(frozen=True)
class Estimate:
    """Estimates the costs of packs on a device, from its coefficients and from finished cells.

    Attributes:
        coefficients: The coefficients of the device; None if the device is not known.
        time_factor: The ratio of measured to predicted seconds of finished packs.
        memory_factor: The ratio of measured to predicted bytes of finished packs.
        tokens: The mean tokens of a training sequence by (data, task, max_length), from records.
        rows: The rows of (training, evaluation) by (data, task), from records or files.
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
        # Evaluations in units of training sequences.
        splits = eval_rows * task.eval_length, rows * HELD_OUT_FRACTION if holds_out else 0.0
        batch = min(first.batch_size, rows)
        steps = math.ceil(rows / first.batch_size)
        # The number of tokens in a batch is about normal; this is the expected largest of `steps` draws, over the mean.
        largest = 1 + task.token_spread * math.sqrt(2 * math.log(steps) / batch)
        return Demand(
            cells=len(cells),
            slots=slots_per_row * batch,
            largest_slots=slots_per_row * batch * largest,
            steps=steps * first.epochs,
            eval_slots=slots_per_row * SLOT_FILL / EVAL_SLOT_FILL * max(splits),
            evaluations=sum(splits) / max(*splits, 1),
            epochs=first.epochs,
            adapters=count_adapters(cells, geometry, task.num_outputs),
            geometry=geometry,
            item_bytes=ITEM_BYTES[first.precision],
            trains_backbone=methods.of(first).trains_backbone,
            rule=_rule_demand(first, steps * first.epochs, geometry),
            window=_window_size(first, slots_per_row * SLOT_FILL, task.token_spread),
            longest=_longest(first, slots_per_row * SLOT_FILL, task.token_spread, batch),
            rows=batch,
            family=families.of(geometry.model_type),
        )

    def cost(self, cells: Sequence[Cell], model: str, kept: Bases = NO_BASES) -> PackCost:
        """Return what a pack costs.

        Args:
            cells: The pack.
            model: The model's location.
            kept: The bases that earlier packs have left in memory.
        """
        geometry = load_geometry(model)
        if geometry is None:
            return PackCost(None, None, NO_BASES)
        demand = self.demand(cells, geometry)
        seconds = self._seconds(cells, demand, kept)
        return PackCost(seconds, self.memory_factor * demand.bytes(kept), lasting_bases(demand.adapters.bases))

    def _seconds(self, cells: Sequence[Cell], demand: Demand, kept: Bases) -> float | None:
        """Return the time of a pack, given what it asks of the device; None where `seconds` returns None."""
        if self.coefficients is None or None in (self.mean_tokens(cells[0]), self._rows(cells[0])):
            return None
        seconds = demand.seconds(self.coefficients, kept) + self._posterior_seconds(cells, demand.geometry)
        return self.time_factor * seconds

    def _posterior_seconds(self, cells: Sequence[Cell], geometry: Geometry) -> float:
        """Return the time of fitting and averaging over the posteriors of a pack's cells, one cell after another.

        A fit is a pass over the training rows, an evaluation one over the evaluated rows, in batches of training. A
        pass is a forward and, where factors are uncertain, a backward for each class: a half step each.
        """
        outputs = tasks.of(cells[0]).num_outputs
        counts = Counter((cell.method, cell.rank, cell.targets) for cell in cells if methods.of(cell).posterior)
        if outputs == 1 or self.coefficients is None or not counts:
            return 0.0
        holds_out = cells[0].select == "held-out"
        rows, eval_rows = self._rows(cells[0], holds_out) or UNKNOWN_ROWS
        evaluated = (rows * (HELD_OUT_FRACTION if holds_out else 0) + eval_rows) / cells[0].batch_size
        batches = rows / cells[0].batch_size + evaluated
        seconds = 0.0
        for cell in {(cell.method, cell.rank, cell.targets): cell for cell in cells}.values():
            posterior = methods.of(cell).posterior
            if posterior is not None:
                step = self.demand([cell], geometry).step_seconds(self.coefficients)
                halves, passes = 1, batches
                match posterior:
                    case FisherPosterior(over):
                        halves += outputs if over == "factors" else 0
                    case SampledPosterior(draws):
                        passes = draws * evaluated
                seconds += counts[cell.method, cell.rank, cell.targets] * passes * halves / 2 * step
        return seconds

    def seconds(self, cells: Sequence[Cell], model: str, kept: Bases = NO_BASES) -> float | None:
        """Return the time of a pack; None if the device, the model or the length of the data is not known."""
        return self.cost(cells, model, kept).seconds

    def costs(self, packs: Iterable[Sequence[Cell]], model_of: Callable[[Sequence[Cell]], str]) -> list[Cost]:
        """Return what packs take, one after another.

        A basis is computed once and stays in memory as long as its encoder does.

        Args:
            packs: The packs.
            model_of: Returns the location of a pack's model.
        """
        bases: dict[tuple[str, str], Bases] = {}
        known: dict[object, PackCost] = {}  # packs of one kind cost the same
        costs = []
        for pack in packs:
            model, precision = model_of(pack), pack[0].precision
            present = bases.get((model, precision), NO_BASES)
            key = (pack_kind(pack), present)
            cost = known.get(key) or known.setdefault(key, self.cost(pack, model, present))
            costs.append((cost.seconds, cost.bytes))
            # Only one encoder is in memory at a time; the bases of another one are gone.
            bases = {(model, precision): present | cost.bases}
        return costs

    def times(
        self, packs: Iterable[Sequence[Cell]], model_of: Callable[[Sequence[Cell]], str]
    ) -> list[PackTime | None]:
        """Return how the times of packs divide among devices and among parts; None where they are not known.

        Args:
            packs: The packs.
            model_of: Returns the location of a pack's model.
        """
        known: dict[object, PackTime | None] = {}
        times = []
        for pack in packs:
            kind = pack_kind(pack)
            if kind not in known:
                known[kind] = self._pack_time(pack, model_of(pack))
            times.append(known[kind])
        return times

    def _pack_time(self, cells: Sequence[Cell], model: str) -> PackTime | None:
        geometry = load_geometry(model)
        if geometry is None:
            return None
        demand = self.demand(cells, geometry)
        bases = lasting_bases(demand.adapters.bases)
        whole = self._seconds(cells, demand, bases)
        if whole is None:
            return None
        lacking = {basis: self._seconds(cells, demand, bases - {basis}) for basis in sorted(bases)}
        costs = tuple((basis, seconds - whole) for basis, seconds in lacking.items() if seconds is not None)
        middle = len(cells) // 2
        halves = [self.seconds(half, model, bases) for half in (cells[:middle], cells[middle:]) if middle]
        # What the halves take beyond the pack does not depend on how many cells there are.
        fixed = sum(half for half in halves if half is not None) - whole
        return PackTime(len(cells), whole, min(whole, max(0.0, fixed)), (model, cells[0].precision), costs)

    def bases(self, cells: Sequence[Cell], model: str) -> Bases:
        """Return the bases that a pack leaves in memory for later packs."""
        return self.cost(cells, model).bases

    def bytes(self, cells: Sequence[Cell], model: str, kept: Bases = NO_BASES) -> float | None:
        """Return the peak of GPU memory of a pack, the bases in `kept` included; None if the model is not known."""
        return self.cost(cells, model, kept).bytes

    def disk(self, cells: Sequence[Cell], model: str, saves: bool) -> float | None:
        """Return the bytes of a pack's records and adapters; None if the model is not known.

        Args:
            cells: The pack.
            model: The model's location.
            saves: Whether the trained adapters are saved.
        """
        geometry = load_geometry(model)
        if geometry is None:
            return None
        _, eval_rows = self._rows(cells[0]) or UNKNOWN_ROWS
        record = RECORD_BYTES + EPOCH_BYTES * cells[0].epochs + PREDICTION_BYTES * eval_rows
        saved = [cell for cell in cells if saves and not methods.of(cell).trains_backbone]
        return len(cells) * record + sum(_adapter_bytes(cell, geometry) for cell in saved)

    def disk_of_starts(self, cell: Cell, model: str, saves: bool) -> float:
        """Return the bytes that a cell takes beyond `disk` while others continue from it; 0 for an unknown model.

        Args:
            cell: The cell.
            model: The model's location.
            saves: Whether the trained adapters are saved.
        """
        geometry, is_whole = load_geometry(model), methods.of(cell).trains_backbone
        if geometry is None or (saves and not is_whole):
            return 0.0
        return _adapter_bytes(cell, geometry) + is_whole * geometry.weights * FLOAT32_BYTES

    def cells_per_pack(self, cell: Cell, kind: str, model: str) -> int:
        """Return how many cells fill a device.

        Args:
            cell: A cell whose batches are like those of all cells of the pack.
            kind: `cuda` or `cpu`.
            model: The model's location.
        """
        slots = (self.mean_tokens(cell) or UNKNOWN_TOKENS) / SLOT_FILL * cell.batch_size
        geometry = load_geometry(model)
        load = slots * (85e6 if geometry is None else geometry.linear)
        return max(1, min(MAX_CELLS[kind], round(FULL_LOAD[kind] / load)))

    def refined(self, records: Iterable[Record], device: str, models: Mapping[str, str]) -> Estimate:
        """Return the estimate corrected by finished cells.

        Args:
            records: Finished cells. Tokens and rows are taken from all of them, times and memory from those that ran on
                this device.
            device: The device's name, as in records.
            models: The location of each model by its name in cells.
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


def _rule_demand(cell: Cell, steps: int, geometry: Geometry) -> RuleDemand | None:
    """Return what a rule for the encoder's weights asks for; None without one."""
    rule = methods.of(cell).weights(cell)
    if rule is None:
        return None
    active = 1.0 if rule.layers is None else min(1.0, rule.layers.count / geometry.layers)
    linears = geometry.stored_layers * len(geometry.adapted("attention+dense"))
    projection, is_factor = rule.projection, rule.projection is not None and rule.projection.is_factor
    tensors = 7 + rule.is_early + (not is_factor)  # counted in `RuledAdamW.step`
    if projection is None:
        return RuleDemand(0.0, RULE_OPERATIONS, tensors)
    operations = RULE_OPERATIONS + PROJECTION_OPERATIONS * active * linears
    # A layer that does not train at all steps has, on average, half a gap left after its last decomposition.
    gaps = steps * active / projection.gap
    renewals = math.ceil(gaps) if rule.layers is None else gaps + 0.5
    return RuleDemand(renewals * geometry.hidden * linears, operations, tensors)


def _adapter_bytes(cell: Cell, geometry: Geometry) -> float:
    """Return the bytes of a saved adapter with its head."""
    return ADAPTER_BYTES + saved_bytes(cell, geometry, tasks.of(cell).num_outputs)


def _window_size(cell: Cell, mean: float, spread: float) -> int:
    """Return the size of windows that hold nearly all sequences: 98% of them, whose lengths are about log-normal."""
    deviation = math.sqrt(math.log(1 + spread**2))
    usual = mean * math.exp(NormalDist().inv_cdf(USUAL_FRACTION) * deviation - deviation**2 / 2)
    return windows.window_size(math.ceil(min(cell.max_length, usual)))


def _longest(cell: Cell, mean: float, spread: float, rows: int) -> float:
    """Return the expected tokens of the longest of some sequences, whose lengths are about normal (Blom 1958)."""
    deviations = NormalDist().inv_cdf((rows - 0.375) / (rows + 0.25))
    return min(cell.max_length, mean * (1 + spread * deviations))


def _is_supported(cell: Cell) -> bool:
    """Whether this version has the cell's task and method; a results folder may contain those of other versions."""
    return cell.task in tasks.TASKS and cell.method in methods.RECIPES


def _is_same_device(first: str, second: str) -> bool:
    """Whether two names are of one kind of device: all processors count as one."""
    return first == second or (first.startswith("cpu") and second.startswith("cpu"))
