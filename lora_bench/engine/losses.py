"""The loss of each cell."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def batch_losses(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """`[K]`: each cell's loss, rows counted by `weights`; squared error for one output, else cross-entropy."""
    cells, rows, outputs = logits.shape
    weights = weights.to(logits.dtype)
    if outputs == 1:
        return (logits[..., 0] - labels.to(logits.dtype)).square() @ weights
    loss = cross_entropy(logits.flatten(0, 1), labels.repeat(cells), reduction="none")
    return loss.view(cells, rows) @ weights
