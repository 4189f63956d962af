"""What a pack's adapters ask of a device, counted from shapes. Does not need torch.

The counts follow the engine. A product is one matrix multiplication of a layer: query, key and value share one, every
other linear weight has its own. All cells of a pack are computed alike: the ranks of a product's adapters are padded to
the largest in the pack, a product has space for the widest targets of the pack, and if one cell scales or shifts a
product's outputs, those of all cells are scaled or shifted.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.forecast.geometry import JOINED, Geometry
from lora_bench.methods.recipe import Assigned, Basis, Factor, FirstStep, Normal, Orthonormal, Recipe, Shape, Uniform

ITEM_BYTES = {"bf16": 2, "float32": 4, "float64": 8}
FLOAT32_BYTES = 4  # frozen factors and bases are kept in float32, whatever the model's precision
# Reads and writes of a product's outputs (for `stretch`, of its inputs) in a training step. A shift has three; the sum
# over slots that is its gradient is slow: with eight, packs with BitFit on an H100 take what was measured.
PASSES = {"gain": 14, "stretch": 3, "shift": 8}
QR_DRAWS = 3  # an orthonormal value takes the time of three random ones; chosen

_VALUES = attrgetter("rank", "a", "b", "alpha", "init", "targets")

Bases = frozenset[tuple[str, str]]  # decompositions of weights: (family, role in a layer); see `_bases`
NO_BASES: Bases = frozenset()


@dataclass(frozen=True)
class AdapterDemand:
    """What the adapters of a pack need.

    Attributes:
        trained: Trained values of all cells and layers with padding, heads included.
        frozen: Values of frozen factors, of starts that are subtracted, and of the weights whose row norms are needed.
        drawn: Random values that are drawn; cells that share a start draw it once.
        operands: Values of A and B as the encoder reads them, of all cells and layers.
        remade: Those of the operands that are recomputed in every step by products with matrices as large as weights.
        bases: The decompositions of weights.
        adapted_width: Inputs and outputs of all weights that have an A and a B, of one cell.
        inner_width: The rows of A over all layers, of one cell: what A produces for a slot.
        output_passes: Reads and writes of a slot's outputs for gain, stretch and shift over all layers, of one cell.
        kept_outputs: Outputs of a slot before the gain that are kept for the backward pass, of one cell.
        products: The products of a layer that have adapters, with or without an A and a B.
        touched: What is done to inputs and outputs of products beside that, as (product, what); see `PASSES`.
    """

    trained: int = 0
    frozen: int = 0
    drawn: int = 0
    operands: int = 0
    remade: int = 0
    bases: Bases = NO_BASES
    adapted_width: int = 0
    inner_width: int = 0
    output_passes: int = 0
    kept_outputs: int = 0
    products: frozenset[str] = frozenset()
    touched: frozenset[tuple[str, str]] = frozenset()


def count_adapters(cells: Sequence[Cell], geometry: Geometry, outputs: int) -> AdapterDemand:
    """Count what the adapters and heads of a pack need.

    Args:
        cells: The pack.
        geometry: The encoder's sizes.
        outputs: The number of outputs of a head.
    """
    adapters = Counter((_adapter(cell, geometry), cell.seed) for cell in cells if methods.of(cell).adapts)
    kinds = list(dict.fromkeys(adapter for adapter, _ in adapters))
    shapes = {role: shape for adapter in kinds for role, shape in adapter.shapes.items()}
    ranks: dict[str, int] = {}  # the rows of A by product: the largest of its adapters
    for adapter in kinds:
        ranks |= {product: max(rank, ranks.get(product, 0)) for product, rank in adapter.ranks.items()}
    touched = frozenset[tuple[str, str]]().union(*(adapter.touched for adapter in kinds))
    groups = itertools.groupby(sorted(adapters, key=_storage), key=_storage)
    stored = [_stored_values({member: adapters[member] for member in group}, geometry) for _, group in groups]
    trained, frozen, drawn = (sum(counts) for counts in zip(*stored, strict=True)) if stored else (0, 0, 0)
    sides = [(ranks[_product(role)], shape, _product(role)) for role, shape in shapes.items()]
    touched_width = {
        touch: sum(_touched_width(touch, shape) for _, shape, product in sides if (product, touch) in touched)
        for touch in PASSES
    }
    remade = sum(
        count * ranks[_product(role)] * sum(shape)
        for (adapter, _), count in adapters.items()
        if adapter.remakes
        for role, shape in adapter.shapes.items()
    )
    head = _head_values(geometry, outputs)
    return AdapterDemand(
        trained=trained + len(cells) * head,
        frozen=frozen,
        drawn=drawn + head * len({cell.seed for cell in cells}),
        operands=len(cells) * geometry.stored_layers * sum(rank * sum(shape) for rank, shape, _ in sides),
        remade=geometry.stored_layers * remade,
        bases=NO_BASES.union(*(adapter.bases for adapter in kinds)),
        adapted_width=geometry.layers * sum(sum(shape) for rank, shape, _ in sides if rank),
        inner_width=geometry.layers * sum(rank for rank, _, _ in sides),
        output_passes=geometry.layers * sum(PASSES[touch] * width for touch, width in touched_width.items()),
        kept_outputs=geometry.layers * touched_width["gain"],
        products=frozenset(map(_product, shapes)),
        touched=touched,
    )


@dataclass(frozen=True, eq=False)
class _Adapter:
    """What the counts need to know of an adapter. There is one object for each method and its settings.

    Attributes:
        storage: What adapters have in common whose factors are stored together.
        recipe: The method.
        shapes: The weights of a layer that it adapts, by role.
        ranks: The rows of A, by product.
        touched: What it does to inputs and outputs beside its product, as (product, what).
        factors: Its factors by product. Equal factors are one object.
        remakes: Whether every step recomputes its operands by products with matrices as large as weights.
        bases: The decompositions that it starts from.
        trained: The values of a layer that train.
        once: The values that all weights train together.
        compact_bytes: The bytes of a layer in a saved adapter.
    """

    storage: tuple[str, ...]
    recipe: Recipe
    shapes: Mapping[str, Shape]
    ranks: Mapping[str, int]
    touched: frozenset[tuple[str, str]]
    factors: Mapping[str, tuple[Factor, ...]]
    remakes: bool
    bases: Bases
    trained: int
    once: int
    compact_bytes: int


@dataclass(frozen=True)
class _Settings:
    """A method and its settings; two cells that differ in rates, seeds or tasks alone have the same."""

    recipe: Recipe
    values: tuple[object, ...]
    cell: Cell = field(compare=False)


def _adapter(cell: Cell, geometry: Geometry) -> _Adapter:
    return _adapter_of(_Settings(methods.of(cell), _VALUES(cell), cell), geometry)


@lru_cache(maxsize=2**16)
def _adapter_of(settings: _Settings, geometry: Geometry) -> _Adapter:
    recipe, cell = settings.recipe, settings.cell
    shapes = geometry.adapted(cell.targets)
    ranks: dict[str, int] = {}
    for role, shape in shapes.items():
        ranks[_product(role)] = max(recipe.width(cell, shape), ranks.get(_product(role), 0))
    factors = {role: tuple(map(_interned, recipe.factors(cell, shape))) for role, shape in shapes.items()}
    # Counted for every method, so that a formula that fails is reported before anything trains.
    counts = [(recipe.trainable(cell, shape), min(shape)) for shape in shapes.values()]
    multiplies_bases = recipe.full_width and any(trained > directions for trained, directions in counts)
    return _Adapter(
        storage=(cell.method, cell.targets or "", str(recipe.layout(cell))),
        recipe=recipe,
        shapes=shapes,
        ranks=ranks,
        touched=frozenset((_product(role), touch) for role, shape in shapes.items() for touch in recipe.touches(shape)),
        factors={_product(role): of_role for role, of_role in factors.items()},
        remakes=multiplies_bases or recipe.normalises,
        bases=frozenset(_bases(factors)),
        trained=sum(trained for trained, _ in counts),
        once=recipe.once(cell, set(shapes.values())),
        compact_bytes=sum(recipe.compact_bytes(cell, shape) for shape in shapes.values()),
    )


@lru_cache(maxsize=2**16)
def _interned(factor: Factor) -> Factor:
    """The one object of equal factors."""
    return factor


def adapter_values(cell: Cell, geometry: Geometry) -> int:
    """Return the values that a cell's adapter trains, as records count them: without the head."""
    if not methods.of(cell).adapts:
        return 0
    adapter = _adapter(cell, geometry)
    return geometry.stored_layers * adapter.trained + adapter.once


def saved_bytes(cell: Cell, geometry: Geometry, outputs: int) -> int:
    """Return the bytes of the values in a saved adapter and its head, in float32; without the encoder's."""
    head = FLOAT32_BYTES * _head_values(geometry, outputs)
    if not methods.of(cell).adapts:
        return head
    adapter = _adapter(cell, geometry)
    return geometry.stored_layers * adapter.compact_bytes + FLOAT32_BYTES * adapter.once + head


def _head_values(geometry: Geometry, outputs: int) -> int:
    """The values of a head: a linear layer of the encoder's width and one with `outputs` outputs, both with biases."""
    return (geometry.hidden + outputs) * (geometry.hidden + 1)


def singular_directions(bases: Bases, geometry: Geometry) -> int:
    """Return the number of singular directions that are computed for these decompositions."""
    # The smaller side of every weight of a layer is `hidden`. The other families cost little beside these.
    decomposed = sum(family in ("svd", "common", "step") for family, _ in bases)
    return geometry.stored_layers * geometry.hidden * decomposed


def lasting_bases(bases: Bases) -> Bases:
    """Return the decompositions that stay in memory for later packs; that of a first step belongs to its pack."""
    return frozenset(basis for basis in bases if basis[0] != "step")


def basis_values(bases: Bases, geometry: Geometry) -> int:
    """Return the number of values that stay in memory for these decompositions."""
    shapes = geometry.adapted("attention+dense")
    # The lengths of the vectors that are kept for each direction.
    lengths = [
        geometry.hidden if family == "common" else shapes[role].outputs if family == "left" else sum(shapes[role])
        for family, role in lasting_bases(bases)
    ]
    return geometry.stored_layers * geometry.hidden * sum(lengths)


def _product(role: str) -> str:
    """Return the product that a weight belongs to."""
    return "qkv" if role in JOINED else role


def _storage(member: tuple[_Adapter, int]) -> tuple[str, ...]:
    return member[0].storage


def _touched_width(touch: str, shape: Shape) -> int:
    return shape.inputs if touch == "stretch" else shape.outputs


def _stored_values(members: Mapping[tuple[_Adapter, int], int], geometry: Geometry) -> tuple[int, int, int]:
    """Return the trained, the frozen and the drawn values of one group of cells, padded to the largest cell.

    Args:
        members: How many cells there are of each adapter and seed.
        geometry: The encoder's sizes.
    """
    first, cells = next(iter(members))[0], sum(members.values())
    recipe, trained, frozen, drawn = first.recipe, 0, 0, 0
    counted: set[tuple[object, ...]] = set()  # the shared factors that train, which several products may have
    for product, shape in {_product(role): shape for role, shape in first.shapes.items()}.items():
        weights = geometry.stored_layers * sum(_product(role) == product for role in first.shapes)
        # The same factor of all cells of the group.
        for factors in zip(*(adapter.factors[product] for adapter, _ in members), strict=True):
            one = factors[0]
            if one.shared and one.trainable:
                key = (one.name, *((factor.rows, factor.cols) for factor in factors))
                if key in counted:
                    continue
                counted.add(key)
            count = 1 if one.shared else weights
            size = count * max(factor.rows for factor in factors) * max(factor.cols for factor in factors)
            # A frozen basis that is the same for all cells is stored once.
            is_same = all(factor is one for factor in factors)
            stored_once = isinstance(one.start, Basis) and not one.trainable and is_same
            trained += size * cells if one.trainable else 0
            # The assignment is an int64, and a step has the value and its entry in a table beside it: as four values.
            frozen += 3 * size * cells if isinstance(one.start, Assigned) else 0
            frozen += size * cells * sum(factor == one.name for factor in recipe.memory.values())
            frozen += 0 if one.trainable and not recipe.subtracts_start else size * (1 if stored_once else cells)
            distinct = {(id(factor), seed): factor for factor, (_, seed) in zip(factors, members, strict=True)}
            drawn += count * sum(map(_drawn_values, distinct.values()))
        frozen += shape.inputs * shape.outputs * weights if recipe.normalises else 0
    return trained, frozen, drawn


def _drawn_values(factor: Factor) -> int:
    """Return the random values to draw for a factor of one weight."""
    draws = {Normal: 1, Uniform: 1, Assigned: 1, Orthonormal: QR_DRAWS}.get(type(factor.start), 0)
    return draws * factor.rows * factor.cols


def _bases(factors: Mapping[str, Iterable[Factor]]) -> Iterator[tuple[str, str]]:
    """Yield the decompositions that an adapter starts from, as (family, role).

    The families: `svd` and `qr` of a weight; `common`, the singular vectors of a layer's joined weights for queries,
    keys and values; `left`, the singular vectors of another weight that stand in for these; `step`, of a gradient.

    Args:
        factors: The adapter's factors by role.
    """
    for role, of_role in factors.items():
        for factor in of_role:
            decomposition = factor.start.decomposition if isinstance(factor.start, Basis) else ""
            if isinstance(factor.start, FirstStep):
                yield "step", role
            elif decomposition == "joint-svd" and role in JOINED:
                yield "common", JOINED[0]
            elif decomposition == "joint-svd":
                yield from (("svd", role), ("left", role))
            elif decomposition in ("svd", "balanced-svd", "singular-vectors", "minor-svd", "minor-vectors"):
                yield "svd", role
            elif decomposition == "qr":
                yield "qr", role
