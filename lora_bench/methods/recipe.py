"""What a method is: the factors of an adapted weight, how they start, and how A and B are composed of them.

An adapted linear layer computes `y = W x + s · B A x + bias` with `A: [rank, in]`, `B: [out, rank]` and, unless the
method says otherwise, s = alpha / rank; a few methods also scale inputs or outputs, or shift outputs (`Update`). A
recipe names its factors and composes A and B from them with batched products, so that one composition serves every cell
and every weight of one shape. Nothing here imports torch: `update` uses operators and methods of the tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeVar

from lora_bench.errors import BenchError
from lora_bench.methods.rules import TrainingRules

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


T = TypeVar("T")


class Shape(NamedTuple):
    """The size of an adapted weight, `[out, in]` as in torch."""

    outputs: int
    inputs: int


@dataclass(frozen=True)
class Zeros:
    """Start at zero."""


@dataclass(frozen=True)
class Constant:
    """Start with every entry at one value."""

    value: float


@dataclass(frozen=True)
class Normal:
    """Start from N(0, std²). The draw is a function of seed, module and factor."""

    std: float


@dataclass(frozen=True)
class Uniform:
    """Start from U(-bound, bound). The draw is a function of seed, module and factor."""

    bound: float


@dataclass(frozen=True)
class Orthonormal:
    """Start from random orthonormal directions along the shorter side, scaled so that entries have the size `std`."""

    std: float


@dataclass(frozen=True)
class Fold:
    """Start with 1 where j ≡ i modulo the number of rows, for row i and column j, and 0 elsewhere.

    So each row sums the inputs of one residue class.
    """


@dataclass(frozen=True)
class Blocks:
    """Start with 1 where the column is in the row's slice and 0 elsewhere. Rows have equal, consecutive slices."""


@dataclass(frozen=True)
class LogUniform:
    """Start from the logarithms of U(low, high). The draw is a function of seed, module and factor."""

    low: float
    high: float


@dataclass(frozen=True)
class Fresh:
    """Start from the singular value decomposition of a fresh linear layer, U(±1/√columns) `[rows, columns]`.

    `directions`: the right singular vectors as rows; `log-values`: the logarithms of the singular values, one column.
    Both are of one draw, a function of seed and module.
    """

    part: Literal["directions", "log-values"]
    columns: int


@dataclass(frozen=True)
class Noise:
    """N(0, 1), drawn anew for every step as a function of seed, step, module and factor; 0 outside of training.

    For a frozen factor, which is not saved.
    """


Side = Literal["input", "output"]
Decomposition = Literal[
    "svd",
    "balanced-svd",
    "singular-vectors",
    "minor-svd",
    "minor-vectors",
    "row-norms",
    "column-norms",
    "qr",
    "joint-svd",
]


@dataclass(frozen=True)
class Basis:
    """Start from a decomposition of the pretrained weight W, times `gain`.

    On the input side the factor is `[count, in]` and a direction is a row, on the output side it is `[out, count]` and
    a direction is a column. With `Wᵀ = U S Vᵀ`, the largest singular values first, and `W = Q R`:

    | decomposition      | input: rows           | output: columns                                            |
    |--------------------|-----------------------|------------------------------------------------------------|
    | `svd`              | first of `(U S)ᵀ`     | first of `V`                                               |
    | `balanced-svd`     | first of `(U √S)ᵀ`    | first of `V √S`                                            |
    | `singular-vectors` | first of `Uᵀ`         | first of `V`                                               |
    | `minor-svd`        | last of `(U S)ᵀ`      | last of `V`                                                |
    | `minor-vectors`    | last of `Uᵀ`          | last of `V`                                                |
    | `qr`               | first of `R`          | first of `Q`                                               |
    | `joint-svd`        | –                     | first left singular vectors of the layer's [Wq, Wk, Wv]    |
    | `row-norms`        | –                     | one: the norms of W's rows                                 |
    | `column-norms`     | one: norms of columns | –                                                          |

    The engine fixes the signs of singular vectors, and refuses a count that is larger than the number of directions.
    """

    decomposition: Decomposition
    side: Side
    gain: float = 1.0


@dataclass(frozen=True)
class FirstStep:
    """Start from the first step of full fine-tuning, `-η sign(∂ loss / ∂ W) = U S Vᵀ`, times `gain`.

    The loss is that of the first batch, without dropout, of the unadapted model with the cell's own head; η is the
    cell's first learning rate of the warm-up that is not zero. `input`: Vᵀ `[count, in]`; `core`: S `[count, count]`;
    `output`: U `[out, count]`. Such a factor is zero until training begins. It is saved with the adapter even if it is
    frozen, as it cannot be computed again without the data.
    """

    part: Literal["input", "core", "output"]
    gain: float = 1.0


@dataclass(frozen=True)
class Assigned:
    """Consist of entries of the factor `to` `[1, d]`, which trains and which all weights share.

    Each entry is one of `to`, divided by the square root of the number of times that one is used. Which one is drawn
    from the seed, so that over all weights of a cell each entry of `to` is used equally often, or once more. Such a
    factor does not train itself: its values follow those of `to`.
    """

    to: str


Touch = Literal["gain", "stretch", "shift"]
Start = (
    Zeros
    | Constant
    | Normal
    | Uniform
    | Orthonormal
    | LogUniform
    | Fresh
    | Noise
    | Fold
    | Blocks
    | Basis
    | FirstStep
    | Assigned
)


@dataclass(frozen=True)
class Factor:
    """One matrix of one adapted weight of one cell.

    Attributes:
        name: Its name, unique within the method.
        rows: The number of rows.
        cols: The number of columns.
        start: How it starts.
        trainable: Whether it trains.
        rate: What the cell's learning rate is multiplied by; the same for all cells of a method.
        shared: Whether all weights for which it has the same size share it. It is drawn as a function of seed, size and
            factor. If it trains, it is one matrix, counted and saved once, and the weights' gradients are summed.
        decays: Whether weight decay applies; the same for all cells of a method.
        is_sparse: Whether only some of its values get a gradient at a time, so that others may never move.
    """

    name: str
    rows: int
    cols: int
    start: Start
    trainable: bool = True
    rate: float = 1.0
    shared: bool = False
    decays: bool = True
    is_sparse: bool = False

    @property
    def saved(self) -> bool:
        """Whether a saved adapter contains it."""
        return self.trainable or isinstance(self.start, FirstStep)


class Update(NamedTuple):
    """How a method changes `W x + bias`: to `gain ⊙ (W z + s · B A z + bias) + shift` with `z = stretch ⊙ x`.

    `A: [..., rank, in]` and `B: [..., out, rank]`, both or neither; `gain` and `shift`: `[..., out, 1]`; `stretch`:
    `[..., in, 1]`. A part that is None changes nothing. A weight that shares its input with others (queries, keys and
    values) cannot be stretched.
    """

    A: Tensor | None = None
    B: Tensor | None = None
    gain: Tensor | None = None
    stretch: Tensor | None = None
    shift: Tensor | None = None


# What methods change, in the order in which lists show it.
Kind = Literal[
    "low-rank pairs",
    "inside frozen factors",
    "shared factors",
    "rank schedules",
    "scales and shifts",
    "whole weights",
    "posteriors",
    "controls",
    "other methods",
]


PARAMETERS = frozenset({"rank", "a", "b", "alpha", "init", "targets"})  # the fields of a cell that some methods lack


class Recipe(TrainingRules, ABC):
    """A method. There is one instance of each method, without state. `TrainingRules` has what few methods need.

    Attributes:
        name: The name in commands, configs and records.
        title: The name in tables.
        source: Where the method was published.
        kind: What the method changes; lists are grouped by it.
        parameters: The fields of a cell that the method has.
        defaults: Their default values.
        default_lr: The default learning rate.
        trains_backbone: Whether the encoder itself trains.
        starts_as_base: Whether the model without training is the pretrained one.
        subtracts_start: Whether the layer's update is B A minus its value at the start.
        normalises: Whether `gain` is the norm of the rows of W + s B A; the bias is then left as it is.
        full_width: Whether A and B are as large as the weight. Such cells have packs of their own.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    kind: ClassVar[Kind] = "other methods"
    parameters: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "targets"})
    defaults: ClassVar[Mapping[str, int | float | str]] = {"rank": 16, "alpha": 16.0, "targets": "attention"}
    default_lr: ClassVar[float]
    trains_backbone: ClassVar[bool] = False
    starts_as_base: ClassVar[bool] = True
    subtracts_start: ClassVar[bool] = False
    normalises: ClassVar[bool] = False
    full_width: ClassVar[bool] = False

    @abstractmethod
    def factors(self, cell: Cell, shape: Shape) -> tuple[Factor, ...]:
        """Return the factors that a cell adds to a weight of this shape."""

    @abstractmethod
    def update(self, factors: Mapping[str, Tensor]) -> Update:
        """Compose the update from the factors, given by name as `[cells, modules, rows, cols]`."""

    @abstractmethod
    def trainable(self, cell: Cell, shape: Shape) -> int:
        """Return how many values train for a weight of this shape alone, by the published formula."""

    def once(self, cell: Cell, shapes: Collection[Shape]) -> int:
        """Return how many values train in the factors that weights share, by the published formula.

        They are counted once for a cell, beside `trainable` for each weight.

        Args:
            cell: The cell.
            shapes: The different shapes of the weights that it adapts.
        """
        return 0

    def scale(self, cell: Cell) -> float:
        """Return the factor s of B A: alpha / rank, or 1 for a method that lacks one of them."""
        return 1.0 if cell.alpha is None or cell.rank is None else cell.alpha / cell.rank

    def touches(self, shape: Shape) -> tuple[Touch, ...]:
        """Return which of `gain`, `stretch` and `shift` the update has for this shape; costs are predicted from it."""
        return ()

    def update_rank(self, cell: Cell) -> int | None:
        """Return the largest rank that the change of a weight can have; None for any rank."""
        return rank_of(cell) * (2 if self.subtracts_start else 1)

    def width(self, cell: Cell, shape: Shape) -> int:
        """Return the number of rows of A in the update of a weight of this shape."""
        return (cell.rank or 0) * (2 if self.subtracts_start else 1)

    def layout(self, cell: Cell) -> object:
        """Return a hashable key: cells of one method and targets are stacked, zero-padded, if their keys are equal."""
        return None

    def compact(self, cell: Cell, name: str, value: Tensor) -> Mapping[str, Tensor]:
        """Return the parts of a factor that a saved adapter holds, by name; `{"": value}` is the factor as it is."""
        return {"": value}

    def restore(self, cell: Cell, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        """Return a factor that gives the same update as the one of which `compact` returned these parts."""
        return parts[""]

    def compact_bytes(self, cell: Cell, shape: Shape) -> int:
        """Return the bytes of one weight in a saved float32 adapter, without the factors that weights share."""
        return 4 * self.trainable(cell, shape)

    @property
    def adapts(self) -> bool:
        """Whether the method adds factors to the encoder's weights."""
        return "targets" in self.parameters


def _given(cell: Cell, name: str, value: T | None) -> T:
    if value is None:
        raise ValueError(f"{cell.method} needs {name}")
    return value


def rank_of(cell: Cell) -> int:
    """Return the rank of a cell whose method has one."""
    return _given(cell, "rank", cell.rank)


def a_of(cell: Cell) -> int:
    """Return the parameter a of a cell whose method has it."""
    return _given(cell, "a", cell.a)


def b_of(cell: Cell) -> int:
    """Return the parameter b of a cell whose method has it."""
    return _given(cell, "b", cell.b)


def alpha_of(cell: Cell) -> float:
    """Return the alpha of a cell whose method has one."""
    return _given(cell, "alpha", cell.alpha)


def blocks_of(cell: Cell, *sizes: int) -> int:
    """Return the number of equal blocks, `a`, into which a method divides these sizes.

    Raises:
        BenchError: Exit code 2 if it does not divide one of them.
    """
    count = a_of(cell)
    for size in sizes:
        if size % count:
            what = f"'{cell.method}' needs {count} equal parts (a), which {size} cannot be divided into."
            raise BenchError(what, f"Use an --a that divides {size}; 1 always does.")
    return count
