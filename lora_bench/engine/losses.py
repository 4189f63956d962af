"""The loss of each cell."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def batch_losses(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The loss of each cell on a batch.

    Args:
        logits: `[K, B, outputs]`. One output means regression, by squared error; more mean cross-entropy.
        labels: `[B]`, shared by all cells.
        weights: The weight of each row's loss, `[B]`: 1 / rows, and 0 for the empty entries of a padded batch.

    Returns:
        The losses, `[K]`.
    """
    cells, rows, outputs = logits.shape
    weights = weights.to(logits.dtype)
    if outputs == 1:
        return (logits[..., 0] - labels.to(logits.dtype)).square() @ weights
    loss = cross_entropy(logits.flatten(0, 1), labels.repeat(cells), reduction="none")
    return loss.view(cells, rows) @ weights
