"""The share of outliers of each layer of the encoder, by which layers are drawn (`rules.LayerDraws`).

The measure is that of OWL (arXiv 2310.05175, luuyin/OWL `prune_all.py`): of the values `|W[i, j]| · ‖x[j]‖₂` of all
linear weights of a layer, the share above a multiple of their mean; x[j] are the j-th inputs of all tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.targets import layer_of
from lora_bench.engine.encoder.windows import Batch

ROWS = 128  # of the sample, as OWL takes; here the first of the cell's training rows, there texts of C4


@torch.no_grad()
def shares(backbone: Backbone, batches: Iterable[Batch], threshold: float) -> dict[str, float]:
    """The share of outliers of each layer, by the layer's name.

    Args:
        backbone: The pretrained encoder.
        batches: The sample; tokens alone count, not what pads windows or rows.
        threshold: How many times larger than the mean an outlier is.
    """
    linears = {name: linear for name, linear in backbone.linears().items() if layer_of(name)}
    squares = {name: torch.zeros(linear.in_features, device=backbone.device) for name, linear in linears.items()}

    def record(name: str, batch: Batch) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            sequences = batch.sequences_at(tuple(x.shape[:-1]))
            if sequences is not None:
                squares[name] += x.flatten(0, -2)[sequences >= 0].float().square().sum(0)

        return add

    for batch in batches:
        handles = [linear.register_forward_pre_hook(record(name, batch)) for name, linear in linears.items()]
        try:
            backbone.encode(batch, 1)
        finally:
            for handle in handles:
                handle.remove()
    by_layer: dict[str, list[Tensor]] = {}
    for name, linear in linears.items():
        if not squares[name].any():  # it maps no token
            continue
        values = linear.weight.float().abs() * squares[name].sqrt()
        by_layer.setdefault(str(layer_of(name)), []).append(values.flatten())
    measured = {layer: torch.cat(parts) for layer, parts in by_layer.items()}
    return {layer: float((values > threshold * values.mean()).double().mean()) for layer, values in measured.items()}
