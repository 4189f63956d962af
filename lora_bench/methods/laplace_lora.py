"""Laplace-LoRA (Yang, Robeyns, Wang, Aitchison 2024, arXiv 2308.13111): LoRA, then a posterior over its A and B.

Read: the reference code (adamxyang/laplace-lora c59665d with kazukiosawa/asdl), not the values of the RoBERTa table.
Training is LoRA's. At the selected epoch the Fisher information of each A and B is approximated by
`(Σ g gᵀ) ⊗ (Σ a aᵀ) / N` over the tokens of the N training rows and, exactly, over the classes; the prior is
`N(0, 1/λ)`, with one λ for all matrices, from 1,000 steps of Adam (rate 0.1, from λ = 1) on -log of the marginal
likelihood. Probabilities are the mean softmax of 100,000 draws of the linearised logits `N(f, J Σ Jᵀ)`; the head stays
a point. λ and the metrics before and after are in the record; the score is that of the trained point.

Deviations: tokens of padding are left out of `Σ a aᵀ`, where the reference sums them, since how many there are depends
on the batch; the draws of all rows share their standard normals, so that a row's probabilities depend on no other row;
the posterior is not saved, since its factors are a hundred times as large as A and B: it is fitted again from the saved
adapter and the training rows. A regression has no posterior here: the reference has none.
"""

from __future__ import annotations

from lora_bench.methods.lora import Lora
from lora_bench.methods.rules import FisherPosterior


class LaplaceLora(Lora):
    """LoRA with a posterior over A and B of every adapted weight."""

    name = "laplace-lora"
    title = "Laplace-LoRA"
    source = "arXiv 2308.13111"
    kind = "posteriors"
    posterior = FisherPosterior("factors")


RECIPE = LaplaceLora()
