"""What packs will cost before anything runs: seconds, bytes, and how many cells a pack should have. No torch.

A step's time is a sum of few terms, each a count times a device's coefficient (`devices.json`, measured by
`lora-bench bench --calibrate`): issuing kernels, products with frozen weights, activations moved, adapters, trained
values. Memory is counted from the shapes. Cells that have finished refine both (`Estimate.refined`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import median

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.errors import MISSING, BenchError
from lora_bench.files import is_folder
from lora_bench.methods.recipe import Shape
from lora_bench.models import location
from lora_bench.store import Record

ITEM = {"bf16": 2, "float32": 4, "float64": 8}
FILL = 0.92  # of the slots hold a token
WANTED = {"cuda": 2**15 * 85e6, "cpu": 2**13 * 85e6}  # slots x cells x linear weights from which more gain nothing
EVAL_SLOTS = {"cuda": 2**17, "cpu": 2**13}  # slots x cells of one batch of an evaluation
MOST = {"cuda": 512, "cpu": 16}
UNKNOWN_TOKENS = 40.0
WHOLE = 2.5  # kernels of a layer whose weights train, over those of a frozen one
TERMS = ("layer", "flop", "byte", "adapter_byte", "value", "setup")

Coefficients = Mapping[str, float]


@dataclass(frozen=True)
class Geometry:
    """The sizes of an encoder."""

    layers: int
    hidden: int
    inner: int
    heads: int
    embeddings: int  # rows of all tables

    @property
    def linear(self) -> int:
        """Values of all linear weights of the layers."""
        return self.layers * self.hidden * (4 * self.hidden + 2 * self.inner)

    def adapted(self, targets: str | None) -> list[Shape]:
        """The weights that a target set adapts in one layer; an own list of names counts as `attention`."""
        square = Shape(self.hidden, self.hidden)
        if targets is None:
            return []
        if targets == "attention+dense":
            return [square] * 4 + [Shape(self.inner, self.hidden), Shape(self.hidden, self.inner)]
        return [square] * (2 if targets == "qv" else 3)


@lru_cache(maxsize=64)
def geometry(model: str) -> Geometry | None:
    """The sizes of a model, from its config.json in the directory or the Hub's cache; None if it is not there."""
    folder = Path(location(model))
    path: object = folder / "config.json"
    if not is_folder(folder):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(model, "config.json")
    try:
        content = json.loads(Path(str(path)).read_text(encoding="utf-8"))
        hidden = int(content.get("hidden_size") or content["dim"])
        sizes = Geometry(
            int(content.get("num_hidden_layers") or content["n_layers"]), hidden,
            int(content.get("intermediate_size") or content.get("hidden_dim") or 4 * hidden),
            int(content.get("num_attention_heads") or content["n_heads"]),
            int(content["vocab_size"]) + int(content["max_position_embeddings"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return sizes if all(0 < size < 2**31 for size in vars(sizes).values()) else None


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
    if own is not None and own.is_file():
        tables.insert(0, _measured(own))
    name = "cpu" if device.startswith("cpu") else device
    return next((table[name][precision] for table in tables if precision in table.get(name, {})), None)


def _measured(own: Path) -> dict[str, dict[str, dict[str, float]]]:
    try:
        table = TypeAdapter(dict[str, dict[str, dict[str, FiniteFloat]]]).validate_json(own.read_bytes())
    except (ValidationError, OSError):
        table = {"": {"": {}}}
    if not all(each.keys() >= set(TERMS) for device in table.values() for each in device.values()):
        mend = "Delete it, then measure again: lora-bench bench --calibrate."
        raise BenchError(f"'{own}' is not what `bench --calibrate` wrote.", mend, MISSING)
    return table


@dataclass(frozen=True)
class Load:
    """What a pack asks of a device."""

    cells: int
    slots: float  # a step
    largest: float  # slots of an epoch's largest batch
    steps: int
    eval_slots: float  # an evaluation
    epochs: int
    values: int  # trained, of all cells
    frozen: int  # values of frozen factors
    adapted: int  # sum of inputs and outputs of all adapted weights
    rank: int
    model: Geometry
    item: int
    whole: bool

    def terms(self, slots: float) -> dict[str, float]:
        """What one training step of so many slots has of each term."""
        many, model = slots * self.cells, self.model
        width = model.layers * (45 * model.hidden + 12 * model.inner)
        return {
            "layer": model.layers * (WHOLE if self.whole else 1.0),
            "flop": many * model.linear * (6 if self.whole else 4),
            "byte": many * width * self.item,
            "adapter_byte": many * self.adapted * 4 * self.item,
            "value": float(self.values),
            "setup": 0.0,
        }

    def seconds(self, known: Coefficients) -> float:
        """The whole pack: set-up, training and an evaluation an epoch, which is the forward third of a step."""
        step = sum(known[term] * count for term, count in self.terms(self.slots).items())
        forward = self.terms(self.eval_slots) | {"value": 0.0}
        evaluation = sum(known[term] * count for term, count in forward.items()) / (2.5 if not self.whole else 3)
        return known["setup"] + self.steps * step + self.epochs * evaluation

    def bytes(self) -> float:
        """Device memory at its peak: weights, activations of the largest batch or an evaluation, what trains."""
        model, dense = self.model, self.adapted > self.model.layers * 6 * self.model.hidden
        tape = model.layers * ((8 if dense else 6) * model.hidden + model.inner)
        training = self.largest * self.cells * (tape + 3 * model.hidden + model.inner)
        evaluation = min(self.eval_slots * self.cells, EVAL_SLOTS["cuda"]) * (9 * model.hidden + 2 * model.inner)
        weights = model.linear + model.embeddings * model.hidden
        trained = self.values * 20 + self.frozen * 4 + 3 * self.cells * self.adapted * self.rank * self.item
        return (weights + max(training, evaluation)) * self.item + trained


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

    def load(self, cells: Sequence[Cell], model: Geometry) -> Load:
        """What a pack asks for."""
        first, task = cells[0], tasks.get(cells[0].task)
        tokens = (self.mean_tokens(first) or UNKNOWN_TOKENS) / FILL
        rows, eval_rows = self.rows.get((first.data, first.task), (task.train_rows, task.eval_rows))
        batch = min(first.batch_size, rows)
        steps = math.ceil(rows / first.batch_size)
        largest = 1 + task.token_spread * math.sqrt(2 * math.log(steps) / batch)  # of so many normal sums
        whole = methods.get(first.method).trains_backbone
        values, frozen, adapted = _trained(cells, model, task.num_outputs)
        return Load(
            cells=len(cells), slots=tokens * batch, largest=tokens * batch * largest,
            epochs=first.epochs, steps=steps * first.epochs, eval_slots=tokens * eval_rows,
            values=values + (model.linear + model.embeddings * model.hidden if whole else 0), frozen=frozen,
            adapted=adapted, rank=max(map(_width, cells), default=0), model=model,
            item=ITEM[first.precision], whole=whole,
        )  # fmt: skip

    def seconds(self, cells: Sequence[Cell], model: str) -> float | None:
        """The pack's time; None where the device, the model or the data's length is not known."""
        sizes = geometry(model)
        if self.known is None or sizes is None or self.mean_tokens(cells[0]) is None:
            return None
        return self.time * self.load(cells, sizes).seconds(self.known)

    def bytes(self, cells: Sequence[Cell], model: str) -> float | None:
        """The pack's peak memory on a GPU."""
        sizes = geometry(model)
        own = (self.known or {}).get("memory", 1.0)
        return None if sizes is None else self.memory * own * self.load(cells, sizes).bytes()

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
            seconds, size = plain.seconds(cells, model), plain.bytes(cells, model)
            if seconds and members[0].timing:
                times.append(members[0].timing.pack_seconds / (seconds * share))
            if size and members[0].timing and members[0].timing.peak_bytes and share == 1:
                memories.append(members[0].timing.peak_bytes / size)
        return replace(plain, time=median(times) if times else 1.0, memory=median(memories) if memories else 1.0)


def _known(cell: Cell) -> bool:
    """Whether this version has the cell's task and method; a results folder may hold others'."""
    return cell.task in tasks.TASKS and cell.method in methods.RECIPES


def _same(one: str, other: str) -> bool:
    """Whether two names are of one kind of device: all processors count as one."""
    return one == other or (one.startswith("cpu") and other.startswith("cpu"))


def _width(cell: Cell) -> int:
    """Rows of A in the cell's update."""
    return (cell.rank or 0) * (2 if methods.get(cell.method).subtracts_start else 1)


def _trained(cells: Sequence[Cell], model: Geometry, outputs: int) -> tuple[int, int, int]:
    """Values that train and frozen ones, of all cells; inputs and outputs of all weights that some cell adapts."""
    head = model.hidden * (model.hidden + 1) + outputs * (model.hidden + 1)
    values, frozen, widest = 0, 0, 0
    for cell in cells:
        recipe, shapes = methods.get(cell.method), model.adapted(cell.targets)
        factors = [factor for shape in shapes for factor in recipe.factors(cell, shape)] if recipe.adapts else []
        values += head
        for factor in factors:
            size = factor.rows * factor.cols * (1 if factor.shared else model.layers)
            values += size if factor.trainable else 0
            frozen += size if recipe.subtracts_start or not factor.trainable else 0
        widest = max(widest, model.layers * sum(sum(shape) for shape in shapes))
    return values, frozen, widest
