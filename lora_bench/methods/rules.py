"""What a recipe may state beside its factors: how the encoder's weights train, and what is uncertain afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
