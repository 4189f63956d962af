"""LoRA-Mini whose outer factors all layers share. Ours: a variant that the paper (arXiv 2411.15804) does not try.

`A = A_train A_aux`, `B = B_aux B_train` as in `mini`, from the same distributions, but `A_aux: [a, in]` and
`B_aux: [out, b]` are drawn for the seed and their size, not for the layer, as in `vera`. Only `A_train: [r, a]`,
Kaiming-uniform, and `B_train: [b, r]`, from zero, train: r (a + b) values. The comparison with `mini` shows whether
each layer needs its own directions.
"""

from __future__ import annotations

from lora_bench.methods.mini import MiniVariant


class MiniShared(MiniVariant):
    """LoRA-Mini whose outer factors are shared by all layers."""

    name = "mini-shared"
    title = "LoRA-Mini, shared (ours)"
    shares_outer = True


RECIPE = MiniShared()
