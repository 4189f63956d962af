"""How well the probabilities of a classification are calibrated: the metrics of an evaluation that need them.

Over the rows of an evaluation, with p the softmax of a row's logits and y its class:

| name    | value                                                                                           |
|---------|-------------------------------------------------------------------------------------------------|
| `nll`   | mean of -log p[y]                                                                                |
| `ece`   | Σ over the bins of (rows in the bin / rows) · |accuracy - mean confidence|, confidence = max p;  |
|         | 15 bins of one width, each with its upper edge and without its lower one                        |
| `brier` | mean of Σ over the classes c of (p[c] - [c = y])², from 0 to 2                                   |

Lower is better for each. A regression has none of them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

BINS = 15  # as usual since Guo et al., arXiv 1706.04599
ROW_VALUES = 3  # of each row: its terms of the NLL and the Brier score, and the confidence


def row_values(logits: Tensor, labels: Tensor) -> Tensor:
    """What the metrics need of each row, so that no more than this is copied from the device.

    Args:
        logits: `[K, B, classes]`.
        labels: `[B]`, shared by all cells.

    Returns:
        `[ROW_VALUES, K, B]` in float64: -log p[y], Σ (p[c] - [c = y])², and max p; NaN if a logit is not finite.
    """
    log_probabilities = logits.double().log_softmax(-1)
    probabilities = log_probabilities.exp()
    nll = -log_probabilities.gather(-1, labels.expand(len(logits), -1)[..., None])[..., 0]
    brier = (probabilities - one_hot(labels, logits.shape[-1])).square().sum(-1)
    values = torch.stack([nll, brier, probabilities.amax(-1)])
    return values.masked_fill(~torch.isfinite(logits).all(-1), float("nan"))


def calibration(values: NDArray[np.float64], is_correct: NDArray[np.bool_]) -> list[dict[str, float]]:
    """The metrics of each cell.

    Args:
        values: `row_values` of all rows, `[ROW_VALUES, K, rows]`.
        is_correct: Whether the predicted class is the row's, `[K, rows]`.

    Returns:
        `nll`, `ece` and `brier` of each cell; NaN if a row's are not finite, or there are no rows.
    """
    return [
        {"nll": _mean(nll), "ece": _calibration_error(confidence, correct), "brier": _mean(brier)}
        for nll, brier, confidence, correct in zip(*values, is_correct, strict=True)
    ]


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _calibration_error(confidence: NDArray[np.float64], is_correct: NDArray[np.bool_]) -> float:
    if not len(confidence) or not np.isfinite(confidence).all():
        return float("nan")
    bins = np.searchsorted(np.arange(1, BINS) / BINS, confidence)
    # (rows in the bin / rows) · |accuracy - mean confidence| = |Σ (correct - confidence)| / rows
    sums = np.bincount(bins, weights=is_correct - confidence, minlength=BINS)
    return float(np.abs(sums).sum() / len(confidence))
