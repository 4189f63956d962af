"""What packs will cost before anything runs: seconds, bytes, and how many cells a pack should have. No torch.

A step's time is a sum of few terms (`Demand.terms`), each a count (`demand.py`) times a device's coefficient
(`devices.json`, measured by `lora-bench bench --calibrate`); so is the set-up's. Memory is counted from the
shapes. Cells that have finished refine both (`Estimate.refined`).
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
from lora_bench.files import read_file
from lora_bench.forecast import demand
from lora_bench.forecast.demand import EXACT, NONE, Adapters, Bases
from lora_bench.forecast.geometry import Geometry, geometry
from lora_bench.store import Record

FILL = 0.92  # of the slots hold a token
WANTED = {"cuda": 2**15 * 85e6, "cpu": 2**13 * 85e6}  # slots x cells x linear weights from which more gain nothing
MOST = {"cuda": 512, "cpu": 16}
UNKNOWN_TOKENS = 40.0
WHOLE = 2.5  # kernels of a layer whose weights train, over those of a frozen one
HELD_OUT = 0.1  # of the train rows, at most, where the epoch is chosen by them
WORKSPACE = 2**27  # bytes that libraries keep
STEP = ("layer", "flop", "byte", "adapter_byte", "adapter_flop", "dress_byte", "operand", "remade", "value")
NEEDED = frozenset({"layer", "flop", "byte", "adapter_byte", "value", "setup"})  # the rest is 0 unless known

Coefficients = Mapping[str, float]


@lru_cache(maxsize=1)
def shipped() -> dict[str, dict[str, dict[str, float]]]:
    """Coefficients by device and precision."""
    content: dict[str, dict[str, dict[str, float]]] = json.loads(
        Path(__file__).with_name("devices.json").read_text(encoding="utf-8")
    )
    return content


def coefficients(device: str, precision: str, own: Path | None = None) -> Coefficients | None:
    """What is known of a device: measured here (`own`), else shipped; None if neither."""
    tables = [shipped()]
    if own is not None and os.path.lexists(own):
        tables.insert(0, _measured(own))
    name = "cpu" if device.startswith("cpu") else device
    found = [table[name][precision] for table in tables if precision in table.get(name, {})]
    return {term: value for known in reversed(found) for term, value in known.items()} or None


def _measured(own: Path) -> dict[str, dict[str, dict[str, float]]]:
    try:
        table = TypeAdapter(dict[str, dict[str, dict[str, FiniteFloat]]]).validate_json(read_file(own))
    except (ValueError, OSError):
        table = {"": {"": {}}}
    if not all(each.keys() >= NEEDED for device in table.values() for each in device.values()):
        hint = "Delete it, then measure again: lora-bench bench --calibrate."
        raise BenchError(f"'{own}' is not what `bench --calibrate` wrote.", hint, MISSING)
    return table


@dataclass(frozen=True)
class Demand:
    """What a pack asks of a device."""

    cells: int
    slots: float  # a step
    largest: float  # slots of an epoch's largest batch
    steps: int
    eval_slots: float  # of the larger split that is evaluated
    evaluations: float  # an epoch, of that split
    epochs: int
    adapters: Adapters
    model: Geometry
    item: int
    whole: bool
    window: int  # slots of the windows that most batches have

    def terms(self, slots: float) -> dict[str, float]:
        """What one training step of so many slots has of each term.

        `layer`: kernels issued, by layers. `flop`: products with frozen weights. `byte`: activations moved.
        `adapter_byte`: those that adapters read and write. `adapter_flop`: their products. `dress_byte`: activations
        moved for gains, stretches and shifts. `operand`: values of A and B. `remade`: those made by products with
        whole weights. `value`: trained ones, with padding. The set-up has `setup`, once a pack, `direction`, singular
        directions of decompositions, and `draw`, random values; an evaluation `score`, a metric of each cell.
        """
        many, model, own = slots * self.cells, self.model, self.adapters
        width = model.layers * (45 * model.hidden + 12 * model.inner)
        return {
            "layer": model.layers * (WHOLE if self.whole else 1.0),
            "flop": many * model.linear * (6 if self.whole else 4),
            "byte": many * width * self.item,
            "adapter_byte": many * own.adapted * 4 * self.item,
            "adapter_flop": slots * own.operands * 6,
            "dress_byte": many * own.dressed * self.item,
            "operand": float(own.operands),
            "remade": float(own.remade),
            "value": float(self.values),
        }

    @property
    def values(self) -> int:
        """Trained ones of all cells."""
        model = self.model
        return self.adapters.values + (model.linear + model.embeddings * model.hidden if self.whole else 0)

    def seconds(self, known: Coefficients, kept: Bases = NONE) -> float:
        """The whole pack: set-up, training and an evaluation an epoch, which is the forward third of a step.

        `kept`: bases that earlier packs have left.
        """
        step = _sum(known, self.terms(self.slots))
        evaluation = self.evaluations * (self._forward(known) + known.get("score", 0.0) * self.cells)
        return self._setup(known, kept) + self.steps * step + self.epochs * evaluation

    def _forward(self, known: Coefficients) -> float:
        """All rows of an evaluation, in as many batches as they need."""
        batches = math.ceil(self.eval_slots * self.cells / windows.EVAL_SLOTS["cuda"])
        issued = {"layer": self.terms(0)["layer"] * batches, "value": 0.0}
        return _sum(known, self.terms(self.eval_slots) | issued) / (3 if self.whole else 2.5)

    def _setup(self, known: Coefficients, kept: Bases) -> float:
        decomposed = demand.directions(self.adapters.bases - kept, self.model)
        return known["setup"] + known.get("draw", 0.0) * self.adapters.drawn + known.get("direction", 0.0) * decomposed

    def bytes(self, kept: Bases = NONE) -> float:
        """Device memory at its peak: what always lies there, and a step of the largest batch or an evaluation.

        A step has two of each operand (its gradient, or the last step's) beside the activations, four when these are
        gone and gradients are brought to float32. `kept`: bases that earlier packs have left.
        """
        model, own = self.model, self.adapters
        weights = model.linear + model.embeddings * model.hidden
        standing = weights * self.item + self.values * 20 + EXACT * (own.frozen + demand.based(own.bases | kept, model))
        tape = model.layers * (6 * model.hidden + model.inner) + own.kept + own.inner
        tape += model.layers * 2 * model.hidden if own.adapted > model.layers * 6 * model.hidden else 0
        attended = 0 if self.item == demand.ITEM["bf16"] else model.heads * self.window  # in a layer, but the last
        tape += (model.layers - 1) * attended
        tape += max(3 * model.hidden + (3 if own.dressed else 1) * model.inner, 3 * attended)
        training = self.largest * self.cells * tape + 2 * own.operands
        layer = 9 * model.hidden + max(2 * model.inner, 3 * attended) + (own.kept + own.inner) / model.layers
        evaluated = min(self.eval_slots * self.cells, windows.EVAL_SLOTS["cuda"])
        return WORKSPACE + standing + self.item * max(training, evaluated * layer + own.operands, 4 * own.operands)


def _sum(known: Coefficients, counts: Coefficients) -> float:
    return sum(known.get(term, 0.0) * count for term, count in counts.items())


@dataclass(frozen=True)
class Estimate:
    """What finished cells say of a device and of the data: measured over counted, and tokens a sequence."""

    known: Coefficients | None = None
    time: float = 1.0
    memory: float = 1.0
    tokens: Mapping[tuple[str, str, int], float] = field(default_factory=dict)
    rows: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    @property
    def start(self) -> float:
        """Seconds before the first pack: the libraries, the encoder, the data, kernels compiled."""
        return (self.known or {}).get("start", 0.0)

    def mean_tokens(self, cell: Cell) -> float | None:
        """Tokens a training sequence: as counted in this model's and data's records, else the task's usual number."""
        told = self.tokens.get((cell.data, cell.task, cell.max_length))
        usual = tasks.get(cell.task).mean_tokens
        return told if told is not None else None if usual is None else min(usual, cell.max_length)

    def demand(self, cells: Sequence[Cell], model: Geometry) -> Demand:
        """What a pack asks for."""
        first, task = cells[0], tasks.get(cells[0].task)
        tokens = (self.mean_tokens(first) or UNKNOWN_TOKENS) / FILL
        holds = any(cell.select == "held-out" for cell in cells)
        usual = round(task.train_rows * (1 - HELD_OUT if holds else 1)), task.eval_rows
        rows, eval_rows = self.rows.get((first.data, first.task), usual)
        held = rows * HELD_OUT if holds else 0.0
        batch = min(first.batch_size, rows)
        steps = math.ceil(rows / first.batch_size)
        largest = 1 + task.token_spread * math.sqrt(2 * math.log(steps) / batch)  # of so many normal sums
        return Demand(
            cells=len(cells), slots=tokens * batch, largest=tokens * batch * largest,
            epochs=first.epochs, steps=steps * first.epochs, eval_slots=tokens * max(eval_rows, held),
            evaluations=(eval_rows + held) / max(eval_rows, held, 1),
            adapters=demand.adapters(cells, model, task.num_outputs), model=model, item=demand.ITEM[first.precision],
            whole=methods.get(first.method).trains_backbone, window=_window(first, tokens * FILL, task.token_spread),
        )  # fmt: skip

    def seconds(self, cells: Sequence[Cell], model: str, kept: Bases = NONE) -> float | None:
        """The pack's time; None where the device, the model or the data's length is not known.

        `kept`: the bases that packs before it have left.
        """
        sizes = geometry(model)
        if self.known is None or sizes is None or self.mean_tokens(cells[0]) is None:
            return None
        return self.time * self.demand(cells, sizes).seconds(self.known, kept)

    def bases(self, cells: Sequence[Cell], model: str) -> Bases:
        """The bases that a pack leaves for those after it."""
        sizes = geometry(model)
        return NONE if sizes is None else demand.lasting(self.demand(cells, sizes).adapters.bases)

    def bytes(self, cells: Sequence[Cell], model: str, kept: Bases = NONE) -> float | None:
        """The pack's peak memory on a GPU, beside `kept`."""
        sizes = geometry(model)
        return None if sizes is None else self.memory * self.demand(cells, sizes).bytes(kept)

    def cells_a_pack(self, cell: Cell, kind: str, model: str) -> int:
        """How many cells fill a device of this kind (`cuda` or `cpu`) when they train on batches like this cell's."""
        slots = (self.mean_tokens(cell) or UNKNOWN_TOKENS) / FILL * cell.batch_size
        sizes = geometry(model)
        work = slots * (85e6 if sizes is None else sizes.linear)
        return max(1, min(MOST[kind], round(WANTED[kind] / work)))

    def refined(self, records: Iterable[Record], device: str, models: Mapping[str, str]) -> Estimate:
        """Corrected by what finished cells took on this device."""
        packs: dict[tuple[float, int, str], list[Record]] = {}
        tokens, rows = dict(self.tokens), dict(self.rows)
        for record in records:
            if record.timing is None or record.data is None or not _known(record.cell):
                continue
            counted = record.timing.tokens / record.cell.epochs / max(1, record.data.train_rows)
            tokens[record.cell.data, record.cell.task, record.cell.max_length] = counted
            rows[record.cell.data, record.cell.task] = record.data.train_rows, record.data.eval_rows
            if _same(record.environment.get("device", ""), device) and record.cell.model in models:
                packs.setdefault((record.timing.pack_seconds, record.timing.pack_size, record.cell.task), []).append(
                    record
                )
        plain = replace(self, tokens=tokens, rows=rows, time=1.0, memory=1.0)
        times, memories = [], []
        for members in packs.values():
            cells, model = [record.cell for record in members], models[members[0].cell.model]
            share = members[0].timing.pack_size / len(members) if members[0].timing else 1.0
            seconds, size = plain.seconds(cells, model, plain.bases(cells, model)), plain.bytes(cells, model)
            if seconds and members[0].timing:
                times.append(members[0].timing.pack_seconds / (seconds * share))
            if size and members[0].timing and members[0].timing.peak_bytes and share == 1:
                memories.append(members[0].timing.peak_bytes / size)
        return replace(plain, time=median(times) if times else 1.0, memory=median(memories) if memories else 1.0)


def _window(cell: Cell, mean: float, spread: float) -> int:
    """The windows' size if they hold nearly all sequences."""
    return windows.window_size(math.ceil(min(cell.max_length, mean * (1 + 2 * spread))))


def _known(cell: Cell) -> bool:
    """Whether this version has the cell's task and method; a results folder may hold others'."""
    return cell.task in tasks.TASKS and cell.method in methods.RECIPES


def _same(one: str, other: str) -> bool:
    """Whether two names are of one kind of device: all processors count as one."""
    return one == other or (one.startswith("cpu") and other.startswith("cpu"))
