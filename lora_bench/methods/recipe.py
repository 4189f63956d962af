"""What a method is: which factors an adapted weight gets, how they start, and how they make A and B.

An adapted linear layer computes `y = W x + s · B A x + bias` with `A: [rank, in]`, `B: [out, rank]` and, unless the
method says otherwise, s = alpha / rank. A recipe names factors and composes A and B from them with batched products, so
that one composition serves every cell and every weight of one shape. Nothing here imports torch: `update` works on
whatever has `@`, `*` and `.mT`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Shape(NamedTuple):
    """The size of an adapted weight, `[out, in]` as torch keeps it."""

    outputs: int
    inputs: int


@dataclass(frozen=True)
class Zeros:
    """Start at zero."""


@dataclass(frozen=True)
class Constant:
    """Start at one value."""

    value: float


@dataclass(frozen=True)
class Normal:
    """Start from N(0, std²), drawn for (seed, module, factor)."""

    std: float


@dataclass(frozen=True)
class Uniform:
    """Start from U(-bound, bound), drawn for (seed, module, factor)."""

    bound: float


@dataclass(frozen=True)
class Orthonormal:
    """Start from random orthonormal directions along the shorter side, times one number: entries of size `std`."""

    std: float


@dataclass(frozen=True)
class Basis:
    """Start from the pretrained weights, times `gain`: as many leading directions as the factor has room for.

    The input kinds have one row a direction, `[count, in]`, the output kinds one column, `[out, count]`.

    - `svd-input`, `svd-output`: `(U S)ᵀ` and `V` of `Wᵀ = U S Vᵀ`
    - `root-input`, `root-output`: `(U √S)ᵀ` and `V √S` of the same
    - `qr-input`, `qr-output`: the leading rows of R and columns of Q of `W = Q R`
    - `common-output`: left singular vectors of the layer's joined `[Wq | Wk | Wv]`
    """

    kind: Literal["svd-input", "svd-output", "root-input", "root-output", "qr-input", "qr-output", "common-output"]
    gain: float = 1.0


Start = Zeros | Constant | Normal | Uniform | Orthonormal | Basis


@dataclass(frozen=True)
class Factor:
    """One matrix `[rows, cols]` of one adapted weight of one cell.

    `rate` multiplies the cell's learning rate; it is the same for all cells of a method. A `shared` factor is frozen
    and drawn for (seed, size, factor): all weights with one of its size have the same.
    """

    name: str
    rows: int
    cols: int
    start: Start
    trainable: bool = True
    rate: float = 1.0
    shared: bool = False


class Update(NamedTuple):
    """`A: [..., rank, in]` and `B: [..., out, rank]` of the update `s · B A`."""

    A: Tensor
    B: Tensor


class Recipe(ABC):
    """A method. One instance a method; it keeps no state."""

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    parameters: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 16, "alpha": 16.0, "targets": "attention"}
    default_lr: ClassVar[float]
    trains_backbone: ClassVar[bool] = False
    subtracts_start: ClassVar[bool] = False  # the layer's update is B A less its value at the start

    @abstractmethod
    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """The factors that `cell` puts on a weight of this shape."""

    @abstractmethod
    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """A and B from the factors by name; each `[cells, modules, rows, cols]`."""

    @abstractmethod
    def trainable(self, cell: Cell, shape: Shape) -> int:
        """The published formula: how many values train on a weight of this shape."""

    def scale(self, cell: Cell) -> float:
        """What B A is multiplied by."""
        return (cell.alpha or rank_of(cell)) / rank_of(cell)

    def update_rank(self, cell: Cell) -> int:
        """The largest rank that the update can have."""
        return rank_of(cell) * (2 if self.subtracts_start else 1)

    @property
    def adapts(self) -> bool:
        """Whether the method puts factors on the backbone's weights."""
        return "targets" in self.parameters


def rank_of(cell: Cell) -> int:
    """The rank of a cell whose method has one."""
    if cell.rank is None:
        raise ValueError(f"{cell.method} needs a rank")
    return cell.rank


class Unadapted(Recipe):
    """A method that leaves the linear layers as they are: `head` and `full`."""

    parameters = frozenset()
    defaults: ClassVar[Mapping[str, int | float | str]] = {}

    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """None."""
        return ()

    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """There is none to make."""
        raise TypeError(f"{self.name} adapts no weight")

    def trainable(self, cell: Cell, shape: Shape) -> int:
        """No value of an adapter."""
        return 0
