"""What a pack's adapters ask of a device, counted from shapes. Does not need torch.

The counts follow the engine. A product is one matrix multiplication of a layer: query, key and value share one, every
other linear weight has its own. The ranks of a product's adapters are padded to the largest in the pack, a product has
space for the widest targets of the pack, and whatever one cell of a pack does to a product's outputs is computed for
all cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.forecast.geometry import JOINED, Geometry
from lora_bench.methods.recipe import Basis, Factor, FirstStep, Normal, Orthonormal, Shape, Uniform

ITEM_BYTES = {"bf16": 2, "float32": 4, "float64": 8}
FLOAT32_BYTES = 4  # frozen factors and bases are kept in float32, whatever the model's precision
# Reads and writes of a product's outputs (for `stretch`, of its inputs) in a training step.
PASSES = {"gain": 14, "stretch": 3, "shift": 3}
QR_DRAWS = 3  # an orthonormal value takes the time of three random ones; chosen

Bases = frozenset[tuple[str, str]]  # decompositions of weights: (family, role in a layer)
NO_BASES: Bases = frozenset()


@dataclass(frozen=True)
class AdapterDemand:
    """What the adapters of a pack need.

    Attributes:
        trained: trained values of all cells and layers with padding, heads included.
        frozen: values of frozen factors, of starts that are subtracted, and of the weights whose row norms are needed.
        drawn: random values that are drawn; cells that share a start draw it once.
        operands: values of A and B as the encoder reads them, of all cells and layers.
        remade: those of the operands that are recomputed in every step by products with matrices as large as weights.
        bases: the singular value decompositions.
        adapted_width: inputs and outputs of all weights that have an A and a B, of one cell.
        inner_width: the rows of A over all layers, of one cell: what A produces for a slot.
        output_passes: reads and writes of a slot's outputs for gain, stretch and shift over all layers, of one cell.
        kept_outputs: outputs of a slot before the gain that are kept for the backward pass, of one cell.
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


def count_adapters(cells: Sequence[Cell], geometry: Geometry, outputs: int) -> AdapterDemand:
    """Count what the adapters and heads of a pack need.

    Args:
        cells: the pack.
        geometry: the encoder's sizes.
        outputs: the number of outputs of a head.
    """
    # A head is a linear layer of the encoder's width and one with `outputs` outputs, both with biases.
    head = (geometry.hidden + outputs) * (geometry.hidden + 1)
    adapting = [cell for cell in cells if methods.of(cell).adapts]
    shapes = {role: shape for cell in adapting for role, shape in geometry.adapted(cell.targets).items()}
    ranks = _padded_ranks(adapting, geometry)
    touched = {
        (_product(role), touch)
        for cell in adapting
        for role, shape in geometry.adapted(cell.targets).items()
        for touch in methods.of(cell).touches(shape)
    }
    groups = itertools.groupby(sorted(adapting, key=_storage_key), key=_storage_key)
    stored = [_stored_values(list(group), geometry) for _, group in groups]
    trained, frozen, drawn = (sum(counts) for counts in zip(*stored, strict=True)) if stored else (0, 0, 0)
    sides = [(ranks[_product(role)], shape, _product(role)) for role, shape in shapes.items()]
    touched_width = {
        touch: sum(_touched_width(touch, shape) for _, shape, product in sides if (product, touch) in touched)
        for touch in PASSES
    }
    return AdapterDemand(
        trained=trained + len(cells) * head,
        frozen=frozen,
        drawn=drawn + head * len({cell.seed for cell in cells}),
        operands=len(cells) * geometry.layers * sum(rank * sum(shape) for rank, shape, _ in sides),
        remade=geometry.layers * sum(_remade_values(cell, geometry, ranks) for cell in adapting),
        bases=frozenset(basis for cell in adapting for basis in _bases(cell, geometry)),
        adapted_width=geometry.layers * sum(sum(shape) for rank, shape, _ in sides if rank),
        inner_width=geometry.layers * sum(rank for rank, _, _ in sides),
        output_passes=geometry.layers * sum(PASSES[touch] * width for touch, width in touched_width.items()),
        kept_outputs=geometry.layers * touched_width["gain"],
    )


def singular_directions(bases: Bases, geometry: Geometry) -> int:
    """Return the number of singular directions in these decompositions."""
    # The smaller side of every weight of a layer is `hidden`.
    return geometry.layers * geometry.hidden * len(bases)


def lasting_bases(bases: Bases) -> Bases:
    """Return the decompositions that stay in memory for later packs; that of a first step belongs to its pack."""
    return frozenset(basis for basis in bases if basis[0] != "step")


def basis_values(bases: Bases, geometry: Geometry) -> int:
    """Return the number of values that stay in memory for these decompositions."""
    widths = {role: sum(shape) for role, shape in geometry.adapted("attention+dense").items()}
    per_layer = [
        geometry.hidden * (geometry.hidden if family == "common" else widths[role])
        for family, role in lasting_bases(bases)
    ]
    return geometry.layers * sum(per_layer)


def _product(role: str) -> str:
    """Return the product that a weight belongs to."""
    return "qkv" if role in JOINED else role


def _storage_key(cell: Cell) -> tuple[str, ...]:
    """Return what cells must have in common for their factors to be stored together."""
    return cell.method, cell.targets or "", str(methods.of(cell).layout(cell))


def _touched_width(touch: str, shape: Shape) -> int:
    return shape.inputs if touch == "stretch" else shape.outputs


def _padded_ranks(cells: Sequence[Cell], geometry: Geometry) -> dict[str, int]:
    """Return the rows of A by product: the largest of its adapters."""
    ranks: dict[str, int] = {}
    for cell in cells:
        for role, shape in geometry.adapted(cell.targets).items():
            rank = methods.of(cell).width(cell, shape)
            ranks[_product(role)] = max(rank, ranks.get(_product(role), 0))
    return ranks


def _remade_values(cell: Cell, geometry: Geometry, ranks: dict[str, int]) -> int:
    """Return the operands of one layer that every step recomputes by products with matrices as large as weights."""
    recipe = methods.of(cell)
    shapes = geometry.adapted(cell.targets)
    # Counted for every method, so that a formula that fails is reported before anything trains.
    counts = [(recipe.trainable(cell, shape), min(shape)) for shape in shapes.values()]
    multiplies_bases = recipe.full_width and any(trained > directions for trained, directions in counts)
    if not (multiplies_bases or recipe.normalises):
        return 0
    return sum(ranks[_product(role)] * sum(shape) for role, shape in shapes.items())


def _stored_values(cells: Sequence[Cell], geometry: Geometry) -> tuple[int, int, int]:
    """Return the trained, the frozen and the drawn values of one group of cells, padded to the largest cell."""
    recipe, trained, frozen, drawn = methods.of(cells[0]), 0, 0, 0
    shapes = geometry.adapted(cells[0].targets)
    for product, shape in {_product(role): shape for role, shape in shapes.items()}.items():
        weights = geometry.layers * sum(_product(role) == product for role in shapes)
        # The same factor of all cells of the group.
        for factors in zip(*(recipe.factors(cell, shape) for cell in cells), strict=True):
            count = 1 if factors[0].shared else weights
            size = count * max(factor.rows for factor in factors) * max(factor.cols for factor in factors)
            trains = factors[0].trainable
            # A frozen basis that is the same for all cells is stored once.
            stored_once = isinstance(factors[0].start, Basis) and not trains and len(set(factors)) == 1
            trained += size * len(cells) if trains else 0
            frozen += 0 if trains and not recipe.subtracts_start else size * (1 if stored_once else len(cells))
            distinct = {(factor, cell.seed) for factor, cell in zip(factors, cells, strict=True)}
            drawn += count * sum(_drawn_values(factor) for factor, _ in distinct)
        frozen += shape.inputs * shape.outputs * weights if recipe.normalises else 0
    return trained, frozen, drawn


def _drawn_values(factor: Factor) -> int:
    """Return the random values to draw for a factor of one weight."""
    draws = {Normal: 1, Uniform: 1, Orthonormal: QR_DRAWS}.get(type(factor.start), 0)
    return draws * factor.rows * factor.cols


def _bases(cell: Cell, geometry: Geometry) -> Iterator[tuple[str, str]]:
    """Yield the singular value decompositions that a cell starts from; a QR decomposition is cheap beside them."""
    for role, shape in geometry.adapted(cell.targets).items():
        for factor in methods.of(cell).factors(cell, shape):
            decomposition = factor.start.decomposition if isinstance(factor.start, Basis) else ""
            if isinstance(factor.start, FirstStep):
                yield "step", role
            elif decomposition == "joint-svd" and role in JOINED:
                yield "common", JOINED[0]
            elif decomposition in ("svd", "balanced-svd", "singular-vectors", "minor-vectors", "joint-svd"):
                yield "svd", role
