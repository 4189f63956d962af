"""What a method is: which factors an adapted weight gets, how they start, and how they make A and B.

An adapted linear layer computes `y = W x + s · B A x + bias` with `A: [rank, in]`, `B: [out, rank]` and, unless the
method says otherwise, s = alpha / rank; a few methods also scale inputs or outputs, or shift outputs (`Update`). A
recipe names factors and composes these from them with batched products, so that one composition serves every cell and
every weight of one shape. Nothing here imports torch: `update` works with operators and methods of the tensors.
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


Side = Literal["input", "output"]
Decomposition = Literal["svd", "balanced-svd", "singular-vectors", "row-norms", "qr", "joint-svd"]


@dataclass(frozen=True)
class Basis:
    """Start from the pretrained weight W, times `gain`: as many leading directions as the factor has room for.

    On the input side a direction is a row (`[count, in]`), on the output side a column (`[out, count]`). With
    `Wᵀ = U S Vᵀ`, largest singular values first, and `W = Q R`:

    | decomposition      | input       | output                                                     |
    |--------------------|-------------|------------------------------------------------------------|
    | `svd`              | `(U S)ᵀ`    | `V`                                                        |
    | `balanced-svd`     | `(U √S)ᵀ`   | `V √S`                                                     |
    | `singular-vectors` | `Uᵀ`        | `V`                                                        |
    | `qr`               | rows of `R` | columns of `Q`                                             |
    | `joint-svd`        | –           | left singular vectors of the layer's joined [Wq, Wk, Wv]   |
    | `row-norms`        | –           | the norms of W's rows, one column                          |
    """

    decomposition: Decomposition
    side: Side
    gain: float = 1.0


@dataclass(frozen=True)
class FirstStep:
    """Start from the first step of full fine-tuning, `-η sign(∂ loss / ∂ W) = U S Vᵀ`, times `gain`.

    The loss is that of the first batch, without dropout, at the unadapted start with the cell's own head; η is the
    cell's rate at its first step of warm-up that is not zero. `input`: Vᵀ `[count, in]`; `core`: S `[count, count]`;
    `output`: U `[out, count]`. Zero until the training begins. Saved with the adapter, also where it is frozen: it
    cannot be made again without the data.
    """

    part: Literal["input", "core", "output"]
    gain: float = 1.0


Touch = Literal["gain", "stretch", "shift"]
Start = Zeros | Constant | Normal | Uniform | Orthonormal | Basis | FirstStep


@dataclass(frozen=True)
class Factor:
    """One matrix `[rows, cols]` of one adapted weight of one cell.

    `rate` multiplies the cell's learning rate; it is the same for all cells of a method, as is whether weight decay
    applies. A `shared` factor is frozen and drawn for (seed, size, factor): all weights with one of its size have the
    same.
    """

    name: str
    rows: int
    cols: int
    start: Start
    trainable: bool = True
    rate: float = 1.0
    shared: bool = False
    decays: bool = True

    @property
    def saved(self) -> bool:
        """Whether a saved adapter holds it."""
        return self.trainable or isinstance(self.start, FirstStep)


class Update(NamedTuple):
    """What a method makes of `W x + bias`: `gain ⊙ (W z + s · B A z + bias) + shift` with `z = stretch ⊙ x`.

    `A: [..., rank, in]` and `B: [..., out, rank]`, both or neither; `gain` and `shift`: `[..., out, 1]`; `stretch`:
    `[..., in, 1]`. What is None changes nothing. A weight that reads its input together with others (queries, keys and
    values) cannot be stretched.
    """

    A: Tensor | None = None
    B: Tensor | None = None
    gain: Tensor | None = None
    stretch: Tensor | None = None
    shift: Tensor | None = None


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
    normalises: ClassVar[bool] = False  # `gain` is the length of the rows of W + s B A; the bias is left as it is
    full_width: ClassVar[bool] = False  # A and B are as large as the weight: such cells have packs of their own

    @abstractmethod
    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """The factors that `cell` puts on a weight of this shape."""

    @abstractmethod
    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """The update from the factors by name; each `[cells, modules, rows, cols]`."""

    @abstractmethod
    def trainable(self, cell: Cell, shape: Shape) -> int:
        """The published formula: how many values train on a weight of this shape."""

    def scale(self, cell: Cell) -> float:
        """What B A is multiplied by: alpha / rank, or 1 for a method without either."""
        return 1.0 if cell.alpha is None or cell.rank is None else cell.alpha / cell.rank

    def touches(self, shape: Shape) -> tuple[Touch, ...]:
        """Which of `gain`, `stretch` and `shift` the update of a weight of this shape has, for the forecast of cost."""
        return ()

    def update_rank(self, cell: Cell) -> int | None:
        """The largest rank that the change of a weight can have; None: any."""
        return rank_of(cell) * (2 if self.subtracts_start else 1)

    def width(self, cell: Cell, shape: Shape) -> int:
        """Rows of A in the update of a weight of this shape."""
        return (cell.rank or 0) * (2 if self.subtracts_start else 1)

    def layout(self, cell: Cell) -> object:
        """What cells must have in common for their factors to be padded to one size, beside method and targets."""
        return None

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
