"""The backward pass of a layer's products, and what the forward pass of a layer saves for its backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import gelu

from lora_bench.engine.encoder.product import Adapter, AdapterSaved, Product, down_backward, stretch_backward
from lora_bench.engine.kernels import ops
from lora_bench.engine.kernels.types import NormSaved


@dataclass
class LayerSaved:
    """What a layer's backward pass needs.

    Attributes:
        inputs: x, `[K, S, d]`, for the gradient of A of `qkv`.
        qkv: Queries, keys and values `[K, S, 3 d]`.
        attn_weights: The attention weights `[K, n, H, W, W]`; None if backward recomputes them.
        attn_values: c, the input of `attn_out`; None if that has no adapters.
        attn_norm: For the first norm.
        ffn_inputs: h, the input of `ffn_up`; None if that has no adapters.
        pre_activation: The output of `ffn_up`; gelu of it, the input of `ffn_down`, is recomputed from it.
        ffn_norm: For the second norm.
        adapters: For each product that has adapters.
    """

    inputs: Tensor
    qkv: Tensor
    attn_weights: Tensor | None
    attn_values: Tensor | None
    attn_norm: NormSaved
    ffn_inputs: Tensor | None
    pre_activation: Tensor
    ffn_norm: NormSaved
    adapters: dict[str, AdapterSaved]


@dataclass(frozen=True)
class ProductsBackward:
    """The backward pass of a layer's products. Every gradient of an adapter goes to `grads`."""

    products: Mapping[str, Product]
    saved: LayerSaved
    adapters: Mapping[str, Adapter]
    grads: Mapping[str, Adapter]

    def outputs(self, name: str, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Go from dy to dy₀ and d(A z), with the gradients of shift, gain and B."""
        if name not in self.adapters:
            return grad, None
        product, adapter, grads = self.products[name], self.adapters[name], self.grads[name]
        saved = self.saved.adapters[name]
        grad = product.gain_shift_backward(grad, saved, adapter, grads)
        return grad, product.up_backward(grad, saved.low_rank, adapter, grads)

    def through(self, name: str, grad: Tensor, accumulate: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Go from dy to dx and d(A z), with the gradients of shift, gain, B and stretch.

        dx is added to `accumulate` in place, if that is given.
        """
        grad, low_rank_grad = self.outputs(name, grad)
        product, adapter = self.products[name], self.adapters.get(name)
        if adapter is None or adapter.stretch is None:
            return product.input_backward(grad, low_rank_grad, adapter, accumulate), low_rank_grad
        # The stretch's gradient needs dz by itself, so dz cannot be accumulated by the matrix products here.
        input_grad = product.input_backward(grad, low_rank_grad, adapter, None)
        input_grad = stretch_backward(input_grad, self._inputs_of(name), adapter, self.grads[name])
        return input_grad if accumulate is None else accumulate.add_(input_grad), low_rank_grad

    def through_gelu(
        self, name: str, grad: Tensor, pre_activation: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `through` for a product whose input is gelu(p): go on to the gradient of p.

        Returns:
            The gradient of p; d(A z); and gelu(p), which the gradient of A needs, None without adapters.
        """
        product, adapter = self.products[name], self.adapters.get(name)
        if adapter is None or adapter.stretch is None:
            grad, low_rank_grad = self.outputs(name, grad)
            grad, activation = product.gelu_input_backward(grad, low_rank_grad, adapter, pre_activation)
            return grad, low_rank_grad, activation
        input_grad, low_rank_grad = self.through(name, grad)
        return input_grad, low_rank_grad, ops.gelu_backward(input_grad, pre_activation, recompute=True)

    def down(self, name: str, low_rank_grad: Tensor | None, inputs: Tensor | None) -> None:
        """Write the gradient of A. A step of its own, since the input of `ffn_down` is known only after GELU's."""
        if low_rank_grad is not None and inputs is not None:
            down_backward(low_rank_grad, inputs, self.adapters[name], self.grads[name])

    def _inputs_of(self, name: str) -> Tensor:
        """x of a product that can have a stretch (`qkv` cannot: its linears read one input)."""
        saved = {"attn_out": self.saved.attn_values, "ffn_up": self.saved.ffn_inputs}.get(name)
        return gelu(self.saved.pre_activation) if saved is None else saved
