"""What a recipe may state beside its factors and its update (`TrainingRules`).

That is how training differs from AdamW on the loss, how the encoder's own weights train, and what is uncertain
afterwards. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from lora_bench.cell import Cell


class Step(NamedTuple):
    """A step of a cell's training.

    Attributes:
        number: Its number, from 1.
        total: All steps of the training.
        rows: The training rows.
    """

    number: int
    total: int
    rows: int


@dataclass(frozen=True)
class Projection:
    """The gradient of each linear weight of the layers is projected on leading singular directions of its own.

    With `G: [out, in]`, P is the first `rank` right singular vectors of G if out >= in, else the left ones; Adam runs
    on `G Pᵀ` or `Pᵀ G`, and what it gives is taken back by P, times `scale`. Moments stay as they are at a new P.

    Attributes:
        rank: The number of directions; all of them where the weight has fewer.
        scale: What the change is multiplied by.
        gap: P is computed again after so many steps in which the weight trains.
        is_factor: Whether this stands for a trained factor B of `W + scale · B P`, with P frozen and B merged into W
            and back at zero at each new P. Then Adam sees the gradient of B, which is also what clipping measures, a
            batch that gives a new P makes no step, weight decay does not apply, and of the rest of the encoder the
            biases of these weights alone train.
    """

    rank: int
    scale: float
    gap: int
    is_factor: bool = False


@dataclass(frozen=True)
class LayerDraws:
    """Only some layers train at a time, drawn anew at intervals; what is in no layer always trains.

    Attributes:
        count: How many layers.
        interval: For how many steps.
        outliers: If given, a layer is drawn in proportion to how many of its `|W[i, j]| · ‖x[j]‖` are this many times
            larger than their mean in the layer, with x the inputs of each weight; else all layers are alike.
    """

    count: int
    interval: int
    outliers: float | None = None


@dataclass(frozen=True)
class WeightRule:
    """How the encoder's weights train, where it is not by the cell's AdamW on all of them.

    Attributes:
        projection: What is done to gradients.
        layers: Which layers train.
        epsilon: Adam's; the head has that of the cells' optimiser.
        is_early: Whether epsilon is added to the root of the second moment before its bias is corrected.
    """

    projection: Projection | None = None
    layers: LayerDraws | None = None
    epsilon: float = 1e-8
    is_early: bool = False


@dataclass(frozen=True)
class FisherPosterior:
    """A Gaussian around what a cell has trained, from the Fisher information on its training rows.

    The information of a matrix is a Kronecker product of two factors, and the prior is a Gaussian around zero whose
    precision has the largest marginal likelihood.

    Attributes:
        over: Which matrices are uncertain: A and B of every adapted weight, which must be the trained factors
            themselves, or weight and bias of the output layer of the head.
    """

    over: Literal["factors", "output-layer"]


@dataclass(frozen=True)
class SampledPosterior:
    """Probabilities are the mean of those of some draws of the `Noise` factors, each the same for all rows.

    Attributes:
        draws: How many draws.
    """

    draws: int


Posterior = FisherPosterior | SampledPosterior


class TrainingRules:
    """The part of a recipe on training. By default all factors train by AdamW on the loss, and the encoder is frozen.

    A penalty is a number for each weight and cell: a part of the loss, or descended by a plain gradient step of its
    own. A rank schedule sets entries of one factor, the gate, to zero after steps of the optimiser: by a function of
    the gate alone (`shrink`), or, as many as `cut` says, those with the lowest `scores` of what it remembers of the
    steps before.

    Attributes:
        penalty_mean: Whether a cell's penalty is the mean over its weights, not the sum.
        penalty_steps: Whether the penalty is no part of the loss, but descended by a plain gradient step of its own
            after each of the optimiser's. Its rate is `penalty_weight` times the schedule of the learning rate.
        gate: The factor `[rank, 1]` whose entries a rank schedule sets to zero; "" without one.
        memory: What the schedule remembers between steps, by name, each with the unshared trained factor whose sizes
            it has; zero before the first step.
        posterior: What is uncertain after the training of a classification; probabilities are then averaged over it.
            None for a method that trains a point.
    """

    penalty_mean: ClassVar[bool] = False
    penalty_steps: ClassVar[bool] = False
    gate: ClassVar[str] = ""
    memory: ClassVar[Mapping[str, str]] = {}
    posterior: ClassVar[Posterior | None] = None

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """Return the penalty of each weight, `[cells, modules]`; times `penalty_weight`.

        Args:
            factors: The factors by name, `[cells, modules, rows, cols]`, zero where smaller cells are padded.
            real: For trained factors 1 where they have values and 0 where they are padded, `[cells, 1, rows, cols]`.
        """
        raise NotImplementedError

    def penalty_weight(self, cell: Cell, step: Step) -> float:
        """Return the weight of the penalty at a step."""
        return 1.0

    @property
    def has_penalty(self) -> bool:
        """Whether the method has a penalty."""
        return type(self).penalty is not TrainingRules.penalty

    @property
    def beyond_the_loss(self) -> str | None:
        """What training does that a loop around the loss would leave out, in words; None for most methods."""
        if self.has_penalty:
            return "has a penalty"
        if self.gate:
            return "sets entries of its factors to zero by a schedule"
        return "draws noise for every step" if isinstance(self.posterior, SampledPosterior) else None

    def shrink(self, gate: Tensor) -> Tensor:
        """Return the gate `[cells, modules, rank, 1]` as it is after each step of the optimiser."""
        return gate

    def remember(
        self, factors: Mapping[str, Tensor], gradients: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return the memory after a step.

        Args:
            factors: The factors after the step.
            gradients: The clipped gradients of the trained ones, from before it.
            memory: The memory before.
        """
        return memory

    def remembers(self, cell: Cell, step: Step) -> bool:
        """Return whether a step is remembered."""
        return True

    def scores(self, memory: Mapping[str, Tensor]) -> Tensor:
        """Return how much each entry of the gate matters, `[cells, modules, rank]`."""
        raise NotImplementedError

    def cut(self, cell: Cell, step: Step, components: int) -> int:
        """Return how many entries of the gates are set to zero after a step, by their scores.

        Args:
            cell: The cell.
            step: The step.
            components: The entries of all gates of the cell.
        """
        return 0

    def meets_budget(self, cell: Cell, step: Step) -> bool:
        """Return whether the cell is as small after this step as it is in the end; else its epoch is not selected."""
        return True

    def weights(self, cell: Cell) -> WeightRule | None:
        """Return how the encoder's weights train; None for the cell's AdamW on all of them, or if they are frozen."""
        return None
