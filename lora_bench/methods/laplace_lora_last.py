"""Last-layer Laplace-LoRA (LLLA of arXiv 2308.13111): LoRA, then a posterior over the head's output layer alone.

As `laplace-lora`, with weight and bias of the classifier's output layer (`out_proj`) in place of A and B: the
reference's option `last_layer` in its script for RoBERTa. The information of the bias is `Σ g gᵀ`.
"""

from __future__ import annotations

from lora_bench.methods.lora import Lora
from lora_bench.methods.rules import FisherPosterior


class LaplaceLoraLast(Lora):
    """LoRA with a posterior over the head's output layer."""

    name = "laplace-lora-last"
    title = "Laplace-LoRA (last layer)"
    source = "arXiv 2308.13111"
    kind = "posteriors"
    posterior = FisherPosterior("output-layer")


RECIPE = LaplaceLoraLast()
