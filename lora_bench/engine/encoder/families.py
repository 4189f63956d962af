"""Adapted weights that are handled together."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from lora_bench.methods.recipe import Shape


class Family(NamedTuple):
    """Weights of one shape: slots (layers) of one or several linears side by side."""

    name: str
    shape: Shape
    slots: tuple[tuple[str, ...], ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """The weights, slot by slot."""
        return tuple(itertools.chain.from_iterable(self.slots))


def by_shape(linears: Mapping[str, nn.Linear], wanted: Collection[str]) -> list[Family]:
    """The wanted weights of each shape, one a slot."""
    shapes: dict[Shape, list[tuple[str, ...]]] = {}
    for name, linear in linears.items():
        if name in wanted:
            shapes.setdefault(Shape(*linear.weight.shape), []).append((name,))
    return [Family(f"{shape.outputs}x{shape.inputs}", shape, tuple(slots)) for shape, slots in shapes.items()]


def by_product(
    linears: Mapping[str, nn.Linear], wanted: Collection[str], products: Mapping[str, Iterable[Sequence[str]]]
) -> list[Family]:
    """The wanted weights of each product: `products` gives, layer by layer, the linears that one product makes.

    A linear that is wanted in one layer has its place in every layer.
    """
    found = []
    for name, layers in products.items():
        rows = [tuple(row) for row in layers]
        places = [place for place in range(len(rows[0])) if any(row[place] in wanted for row in rows)]
        if places:
            slots = tuple(tuple(row[place] for place in places) for row in rows)
            found.append(Family(name, Shape(*linears[slots[0][0]].weight.shape), slots))
    return found
