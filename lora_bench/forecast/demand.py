"""What a pack asks of a device, counted from shapes: the terms of its seconds, and its bytes. No torch.

The counts follow the engine: ranks are padded to the largest of a product's adapters in the pack, a product's linears
have the room of the pack's widest targets, and whatever one cell of a pack does to outputs is done to all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.forecast.geometry import JOINED, Geometry
from lora_bench.methods.recipe import Basis, Factor, FirstStep, Normal, Orthonormal, Shape, Uniform

ITEM = {"bf16": 2, "float32": 4, "float64": 8}
PASSES = {"gain": 14, "stretch": 3, "shift": 3}  # over a product's outputs (or inputs) in a step: reads and writes
QR = 3  # values that are drawn in the time of one that is made orthonormal too
EXACT = 4  # bytes of what is kept in float32 beside a model in bf16 or float32

Bases = frozenset[tuple[str, str]]  # decompositions, by family and place in a layer
NONE: Bases = frozenset()


@dataclass(frozen=True)
class Adapters:
    """The adapters of a pack. Where nothing else is said, values of all cells and layers."""

    values: int = 0  # trained, with the padding, the heads within
    frozen: int = 0  # of frozen factors, of starts that are subtracted, of weights whose rows' lengths are wanted
    drawn: int = 0  # made at random, once for all cells that share them
    operands: int = 0  # of A and B as the encoder reads them
    remade: int = 0  # of the operands, those made at every step by products with matrices as large as weights
    bases: Bases = NONE  # singular value decompositions
    adapted: int = 0  # inputs and outputs of all weights that have an A and a B, of one cell
    inner: int = 0  # what A makes of a slot, of one cell
    dressed: int = 0  # passes over a slot's outputs for gain, stretch and shift, of one cell
    kept: int = 0  # a slot's outputs kept from before a gain, of one cell


def adapters(cells: Sequence[Cell], model: Geometry, outputs: int) -> Adapters:
    """What a pack's cells put on the encoder; heads have `outputs` outputs."""
    head = (model.hidden + outputs) * (model.hidden + 1)
    own = [cell for cell in cells if methods.get(cell.method).adapts]
    places = {place: shape for cell in own for place, shape in model.adapted(cell.targets).items()}
    widths = _widths(own, model)
    touched = {
        (_product(place), what)
        for cell in own
        for place, shape in model.adapted(cell.targets).items()
        for what in methods.get(cell.method).touches(shape)
    }
    stored = [_stored(list(group), model) for _, group in itertools.groupby(sorted(own, key=_kind), key=_kind)]
    trained, frozen, drawn = (sum(part) for part in zip(*stored, strict=True)) if stored else (0, 0, 0)
    sides = [(widths[_product(place)], shape, _product(place)) for place, shape in places.items()]
    room = {what: sum(_touched(what, s) for _, s, p in sides if (p, what) in touched) for what in PASSES}
    return Adapters(
        values=trained + len(cells) * head,
        frozen=frozen,
        drawn=drawn + head * len({cell.seed for cell in cells}),
        operands=len(cells) * model.layers * sum(width * sum(shape) for width, shape, _ in sides),
        remade=model.layers * sum(_remade(cell, model, widths) for cell in own),
        bases=frozenset(key for cell in own for key in _bases(cell, model)),
        adapted=model.layers * sum(sum(shape) for width, shape, _ in sides if width),
        inner=model.layers * sum(width for width, _, _ in sides),
        dressed=model.layers * sum(PASSES[what] * size for what, size in room.items()),
        kept=model.layers * room["gain"],
    )


def directions(bases: Bases, model: Geometry) -> int:
    """Singular directions of all these decompositions."""
    return model.layers * model.hidden * len(bases)  # every weight of a layer has `hidden` as its smaller side


def lasting(bases: Bases) -> Bases:
    """Those that an encoder keeps: a first step's are its pack's own."""
    return frozenset(key for key in bases if key[0] != "step")


def based(bases: Bases, model: Geometry) -> int:
    """Values that these decompositions keep."""
    sides = {place: sum(shape) for place, shape in model.adapted("attention+dense").items()}
    each = [model.hidden * (model.hidden if family == "common" else sides[place]) for family, place in lasting(bases)]
    return model.layers * sum(each)


def _product(place: str) -> str:
    return "mixed" if place in JOINED else place


def _kind(cell: Cell) -> tuple[str, ...]:
    """What cells have in common whose factors are stored together."""
    return cell.method, cell.targets or "", str(methods.get(cell.method).layout(cell))


def _touched(what: str, shape: Shape) -> int:
    return shape.inputs if what == "stretch" else shape.outputs


def _widths(cells: Sequence[Cell], model: Geometry) -> dict[str, int]:
    """Rows of A by product."""
    widths: dict[str, int] = {}
    for cell in cells:
        for place, shape in model.adapted(cell.targets).items():
            own = methods.get(cell.method).width(cell, shape)
            widths[_product(place)] = max(own, widths.get(_product(place), 0))
    return widths


def _remade(cell: Cell, model: Geometry, widths: dict[str, int]) -> int:
    """Operands of one layer, if they are multiplied by matrices as large as weights, or the weights by them."""
    recipe = methods.get(cell.method)
    places = model.adapted(cell.targets)
    mixes = recipe.full_width and any(recipe.trainable(cell, shape) > min(shape) for shape in places.values())
    if not (mixes or recipe.normalises):
        return 0
    return sum(widths[_product(place)] * sum(shape) for place, shape in places.items())


def _stored(cells: Sequence[Cell], model: Geometry) -> tuple[int, int, int]:
    """Trained, frozen and drawn values of the cells of one group, padded to the largest."""
    recipe, trained, frozen, drawn = methods.get(cells[0].method), 0, 0, 0
    places = model.adapted(cells[0].targets)
    for product, shape in {_product(place): shape for place, shape in places.items()}.items():
        weights = model.layers * sum(_product(place) == product for place in places)
        for versions in zip(*(recipe.factors(cell, shape) for cell in cells), strict=True):
            count = 1 if versions[0].shared else weights
            size = count * max(f.rows for f in versions) * max(f.cols for f in versions)
            trains = versions[0].trainable
            alike = isinstance(versions[0].start, Basis) and not trains and len(set(versions)) == 1
            trained += size * len(cells) if trains else 0
            frozen += 0 if trains and not recipe.subtracts_start else size * (1 if alike else len(cells))
            wanted = {(factor, cell.seed) for factor, cell in zip(versions, cells, strict=True)}
            drawn += count * sum(_drawn(factor) for factor, _ in wanted)
        frozen += shape.inputs * shape.outputs * weights if recipe.normalises else 0
    return trained, frozen, drawn


def _drawn(factor: Factor) -> int:
    """Values to draw for a factor of one weight."""
    many = {Normal: 1, Uniform: 1, Orthonormal: QR}.get(type(factor.start), 0)
    return many * factor.rows * factor.cols


def _bases(cell: Cell, model: Geometry) -> Iterator[tuple[str, str]]:
    """The singular value decompositions that a cell starts from; QR is cheap beside them."""
    for place, shape in model.adapted(cell.targets).items():
        for factor in methods.get(cell.method).factors(cell, shape):
            decomposition = factor.start.decomposition if isinstance(factor.start, Basis) else ""
            if isinstance(factor.start, FirstStep):
                yield "step", place
            elif decomposition == "joint-svd" and place in JOINED:
                yield "common", JOINED[0]
            elif decomposition in ("svd", "balanced-svd", "singular-vectors", "joint-svd"):
                yield "svd", place
