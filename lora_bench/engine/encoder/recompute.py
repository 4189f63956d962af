"""Layers that are computed a second time in the backward pass, so that only their inputs are kept in between.

`torch.utils.checkpoint` cannot be used within `torch.func.vmap`, which allows no hooks on saved tensors. So a layer
that is called within the vmap over cells leaves that vmap: it is called through an autograd function whose own rule for
vmap gets the inputs of all cells, `[K, …]`. This function runs a vmap over the layer alone, in the forward pass and
once more in the backward pass.

Dropout masks are the same both times: those that the layer drew in the forward pass are kept. All cells share them, so
they are small beside the activations.

A layer that is called with an object, such as the cache of keys and values that XLM passes on, may change it, so that a
second call would compute something else. It is computed once, and its activations are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lora_bench.engine.encoder.attention import override
from lora_bench.engine.masks import DropoutMask, Masks

Fields = Mapping[str, Mapping[str, Tensor]]  # adapters: for each weight by name, its operands by name
Tensors = tuple[Tensor, ...]
# Types of arguments that a call of a layer cannot change.
PLAIN = (Tensor, type(None), bool, int, float, complex, str, torch.dtype, torch.device)


class SharedDropouts(TorchFunctionMode):
    """While it is entered, `torch.nn.functional.dropout` takes its masks from `draw`.

    Args:
        draw: From a shape, a rate and a device to the next mask.
    """

    def __init__(self, draw: Callable[[torch.Size, float, torch.device], DropoutMask]) -> None:
        super().__init__()
        self.draw = draw

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept one call of torch."""
        if func is nn.functional.dropout:
            return self._dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: ARG002  (torch's names)
        if not training or not p:
            return input
        # Under vmap the shape is that of one cell, and the mask is the same for all.
        return input * self.draw(input.shape, p, input.device).factor(input.dtype)


@dataclass
class Forward:
    """A forward pass of K cells in progress.

    Attributes:
        fields: The adapters of one cell, within the vmap.
        use: Gives the hooks of the linears adapters.
        masks: The dropout masks of the step.
    """

    fields: Fields
    use: Callable[[Fields], None]
    masks: Masks | None


class RecomputedLayers:
    """The layers of a model, which are recomputed while a forward pass with gradients is in progress.

    Args:
        model: The model; the `forward` of its layers is replaced.
    """

    def __init__(self, model: nn.Module) -> None:
        self._forward: Forward | None = None
        self._paused = False
        for name, layer in _layers(model):
            override(layer, "forward", self._wrapped(layer.forward, name))

    @contextmanager
    def during(self, forward: Forward) -> Iterator[None]:
        """Recompute the layers that are called in this block, within the vmap over cells."""
        self._forward = forward
        try:
            yield
        finally:
            self._forward = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Recompute nothing in this block."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _wrapped(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            current = self._forward
            if current is None or self._paused or not torch.is_grad_enabled():
                return call(*args, **kwargs)
            fields = {key: value for key, value in current.fields.items() if key.startswith(f"{name}.")}
            layer = _Layer(call, current.use, current.masks)
            leaves, layer.inputs = pytree.tree_flatten((args, kwargs, fields))
            if not all(isinstance(leaf, PLAIN) for leaf in leaves):
                return call(*args, **kwargs)
            tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
            layer.constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
            outputs = _LeaveVmap.apply(layer, *tensors)
            current.use(current.fields)
            return layer.unflatten_outputs(outputs)

        return forward


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The elements of the model's outermost lists of modules that have weights to adapt; one that several elements
    share has the name of the first, as its weights have."""
    outermost: list[str] = []
    seen: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{other}.") for other in outermost):
            outermost.append(name)
            for index, layer in enumerate(module):
                if layer not in seen and any(isinstance(part, nn.Linear) for part in layer.modules()):
                    seen.add(layer)
                    yield f"{name}.{index}", layer


@dataclass
class _Layer:
    """One call of a layer: everything but its tensors.

    Attributes:
        call: The layer's own forward.
        use: See `Forward`.
        masks: See `Forward`.
        inputs: The structure of its arguments and adapters.
        constants: For each leaf of that structure, its value in a tuple; None for a tensor.
        outputs: The structure of what it returns.
        output_constants: The same for the leaves of `outputs`.
        drawn: The dropout masks of the first run, in their order; None before it.
    """

    call: Callable[..., Any]
    use: Callable[[Fields], None]
    masks: Masks | None
    inputs: Any = None
    constants: list[tuple[Any] | None] = field(default_factory=list)
    outputs: Any = None
    output_constants: list[tuple[Any] | None] = field(default_factory=list)
    drawn: list[DropoutMask] | None = None

    def run(self, *tensors: Tensor) -> Tensors:
        """The outputs of one cell that are tensors, from its inputs that are."""
        args, kwargs, fields = _merge(self.constants, tensors, self.inputs)
        self.use(fields)
        with self._dropouts():
            leaves, self.outputs = pytree.tree_flatten(self.call(*args, **kwargs))
        self.output_constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    def unflatten_outputs(self, tensors: Tensors) -> Any:
        """What the layer returns, from its tensors."""
        return _merge(self.output_constants, tensors, self.outputs)

    def _dropouts(self) -> Any:
        if self.masks is None:
            return nullcontext()
        if self.drawn is not None:
            kept = iter(self.drawn)
            return SharedDropouts(lambda *_: next(kept))
        drawn = self.drawn = []
        masks = self.masks

        def draw(shape: torch.Size, rate: float, device: torch.device) -> DropoutMask:
            drawn.append(masks.draw_mask(shape, rate, device))
            return drawn[-1]

        return SharedDropouts(draw)


def _merge(constants: list[tuple[Any] | None], tensors: Tensors, structure: Any) -> Any:
    remaining = iter(tensors)
    leaves = [next(remaining) if constant is None else constant[0] for constant in constants]
    return pytree.tree_unflatten(leaves, structure)


class _LeaveVmap(torch.autograd.Function):
    """Runs a layer outside of the vmap that it is called in."""

    @staticmethod
    def forward(layer: _Layer, *tensors: Tensor) -> Tensors:
        """Without any input that differs between cells."""
        return layer.run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is saved: there are no gradients where nothing differs."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], layer: _Layer, *tensors: Tensor) -> tuple[Tensors, Any]:  # noqa: ARG004  (torch's signature)
        """With inputs of all cells."""
        dims = in_dims[1:]
        moved = [tensor if dim is None else tensor.movedim(dim, 0) for tensor, dim in zip(tensors, dims, strict=True)]
        batched = tuple(None if dim is None else 0 for dim in dims)
        run = vmap(layer.run, in_dims=batched, randomness="same")
        outputs: Tensors = _Recompute.apply(run, *moved)
        return outputs, (0,) * len(outputs)


class _Recompute(torch.autograd.Function):
    """Calls a function without keeping its activations, and calls it again for its gradients."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensors], *tensors: Tensor) -> Tensors:
        """Call it."""
        ctx.run = run
        ctx.save_for_backward(*tensors)
        return run(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Call it again, with gradients."""
        needed = ctx.needs_input_grad[1:]
        inputs = [
            tensor.detach().requires_grad_(needs) for tensor, needs in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad():
            outputs = ctx.run(*inputs)
        pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
        input_grads = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                [tensor for tensor in inputs if tensor.requires_grad],
                [grad for _, grad in pairs],
                allow_unused=True,
            )
        )
        return None, *(next(input_grads) if needs else None for needs in needed)
