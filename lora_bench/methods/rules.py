"""What a recipe may state besides its factors and its update (`TrainingRules`).

That is how training differs from AdamW on the loss, how the encoder's own weights train, and which posterior is fitted
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
    """The gradient of each linear weight of the layers is projected on its own leading singular vectors, as in GaLore.

    With the gradient `G: [out, in]`, P is the first `rank` right singular vectors of G, as rows, if out >= in, else the
    left ones, as columns. Adam runs on `G Pᵀ` or `Pᵀ G`; its step is projected back by P and multiplied by `scale`.
    Adam's moments are kept when P is recomputed.

    Attributes:
        rank: The number of directions; all of them where the weight has fewer.
        scale: What the change of the weight is multiplied by.
        gap: P is recomputed after this many steps in which the weight trains; for a factor, after this many batches.
        is_factor: Whether this stands for a trained factor B of `W + scale · B P`, with P frozen. When P is recomputed,
            B is merged into W and starts at zero again. Then Adam sees the gradient of B, which is also what clipping
            measures; a batch from which P is recomputed makes no step; weight decay does not apply; and of the rest of
            the encoder only the biases of these weights train.
    """

    rank: int
    scale: float
    gap: int
    is_factor: bool = False


@dataclass(frozen=True)
class LayerDraws:
    """Only some layers train at a time, drawn anew at intervals; parameters outside the layers always train.

    Attributes:
        count: How many layers train at a time.
        interval: How many steps they train until the next draw.
        outliers: A threshold. Each layer is then drawn with a probability in proportion to its share of outliers: those
            of its `|W[i, j]| · ‖x[j]‖`, with x the inputs of each weight, that are more than this many times their mean
            in the layer. None: all layers are equally likely.
    """

    count: int
    interval: int
    outliers: float | None = None


@dataclass(frozen=True)
class WeightRule:
    """How the encoder's weights train, where not all of them train by the cell's AdamW.

    Attributes:
        projection: How gradients are projected; None if they are not.
        layers: Which layers train; None for all.
        epsilon: Adam's epsilon for the encoder; the head has that of all other cells, 1e-8.
        is_early: Whether epsilon is added to the root of the second moment before the correction of its bias.
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
        over: The matrices that the posterior is over: A and B of every adapted weight, which must be the trained
            factors themselves, or weight and bias of the head's output layer.
    """

    over: Literal["factors", "output-layer"]


@dataclass(frozen=True)
class SampledPosterior:
    """Probabilities are averaged over draws of the `Noise` factors. A draw is the same for all rows.

    Attributes:
        draws: The number of draws.
    """

    draws: int


Posterior = FisherPosterior | SampledPosterior


class TrainingRules:
    """The part of a recipe on training. By default all factors train by AdamW on the loss, and the encoder is frozen.

    A penalty is a number for each weight and cell. It is added to the loss, or minimised by gradient steps of its own
    (`penalty_steps`). A rank schedule sets entries of one factor, the gate, to zero after steps of the optimiser:
    either by a function of the gate alone (`shrink`), or the `cut` entries with the lowest `scores`, which are computed
    from what the schedule remembers of earlier steps (`remember`).

    Attributes:
        penalty_mean: Whether a cell's penalty is the mean over its weights, not the sum.
        penalty_steps: Whether the penalty is not added to the loss, but minimised by a plain gradient step of its own
            after each step of the optimiser, with the rate `penalty_weight` times the multiplier of the learning rate's
            schedule.
        gate: The name of the factor `[rank, 1]` whose entries a rank schedule sets to zero; "" without one.
        memory: What the schedule remembers between steps: for each name the trained factor, not a shared one, that has
            the same shape. All of it is zero before the first step.
        posterior: The posterior that is fitted after the training of a classification, and over which its probabilities
            are averaged. None for a method that trains point estimates.
    """

    penalty_mean: ClassVar[bool] = False
    penalty_steps: ClassVar[bool] = False
    gate: ClassVar[str] = ""
    memory: ClassVar[Mapping[str, str]] = {}
    posterior: ClassVar[Posterior | None] = None

    def penalty(self, factors: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """Return the penalty of each weight before it is multiplied by `penalty_weight`, `[cells, modules]`.

        Args:
            factors: The factors by name, `[cells, modules, rows, cols]`, zero where smaller cells are padded.
            real: Masks of the trained factors by name: 1 where they have values and 0 where they are padded,
                `[cells, 1, rows, cols]`.
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
        """What a training loop that minimises the loss alone would leave out, in words; None for most methods."""
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
        """Return the memory after a step, by name.

        Args:
            factors: The factors after the step.
            gradients: The clipped gradients of the trained factors, by which the step was taken.
            memory: The memory before the step.
        """
        return memory

    def remembers(self, cell: Cell, step: Step) -> bool:
        """Return whether the memory is updated after a step."""
        return True

    def scores(self, memory: Mapping[str, Tensor]) -> Tensor:
        """Return how much each entry of the gate matters, `[cells, modules, rank]`."""
        raise NotImplementedError

    def cut(self, cell: Cell, step: Step, components: int) -> int:
        """Return how many entries of the cell's gates are set to zero after a step: those with the lowest scores.

        Args:
            cell: The cell.
            step: The step.
            components: The number of entries of all gates of the cell.
        """
        return 0

    def meets_budget(self, cell: Cell, step: Step) -> bool:
        """Return whether the cell has its final size after this step; an epoch that ends before is never selected."""
        return True

    def weights(self, cell: Cell) -> WeightRule | None:
        """Return how the encoder's weights train; None for the cell's AdamW on all of them, or if they are frozen."""
        return None
