"""Adapted weights that are computed together."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from lora_bench.methods.recipe import Shape


class Family(NamedTuple):
    """Adapted weights of one shape, stacked so that one operation composes all of their adapters.

    Attributes:
        name: The name of the product in a fused encoder, else the shape.
        shape: The shape of each weight.
        products: The adapted linears of each product, by name: all products have the same number J of them. In a fused
            encoder there is one product per layer; elsewhere each weight is a product of its own, and J is 1.
    """

    name: str
    shape: Shape
    products: tuple[tuple[str, ...], ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the weights, product by product."""
        return tuple(itertools.chain.from_iterable(self.products))


def by_shape(linears: Mapping[str, nn.Linear], targets: Collection[str]) -> list[Family]:
    """One family per shape of the target weights, each weight a product of its own."""
    shapes: dict[Shape, list[tuple[str, ...]]] = {}
    for name, linear in linears.items():
        if name in targets:
            shapes.setdefault(Shape(*linear.weight.shape), []).append((name,))
    return [Family(f"{shape.outputs}x{shape.inputs}", shape, tuple(products)) for shape, products in shapes.items()]


def by_product(
    linears: Mapping[str, nn.Linear], targets: Collection[str], products: Mapping[str, Iterable[Sequence[str]]]
) -> list[Family]:
    """One family per matrix product that has a target weight.

    Args:
        linears: The model's linear layers by name.
        targets: The weights to adapt. One that is a target in some layer is part of the family in every layer, so that
            the layers' operands can be stacked; where it is no target its adapters are zero.
        products: For each product its linears, layer by layer.
    """
    families = []
    for name, layers in products.items():
        rows = [tuple(row) for row in layers]
        columns = [column for column in range(len(rows[0])) if any(row[column] in targets for row in rows)]
        if columns:
            adapted = tuple(tuple(row[column] for column in columns) for row in rows)
            families.append(Family(name, Shape(*linears[adapted[0][0]].weight.shape), adapted))
    return families
