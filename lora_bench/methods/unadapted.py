"""What methods without an adapter have in common: they leave the linear layers as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from lora_bench.methods.recipe import Factor, Recipe, Shape, Update

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Unadapted(Recipe):
    """A method that adds nothing to the linear layers: it trains the head alone, or the encoder's own weights."""

    parameters = frozenset()
    defaults: ClassVar[Mapping[str, int | float | str]] = {}

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return no factors."""
        return ()

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Raise TypeError: there is no update."""
        raise TypeError(f"{self.name} adapts no weight")

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return 0: there is no adapter."""
        return 0
