"""Encoders that cannot run on windows, such as XLM: transformers' own code on padded rows, for K cells at once.

The forward of one cell is the model's own, on ids and an attention mask `[B, L]`. `torch.func.vmap` runs it for K
cells: a product with frozen weights becomes one product over the rows of all cells, and all else is computed for each
cell. This is slower than windows: padding is computed too, and each layer is computed a second time in the backward
pass (`recompute`), since the activations of all layers of all cells would not fit.

All cells share the dropout masks of a step: they are drawn in the order in which the forward asks for them, in the
shapes of one cell, from the step's random stream. So they depend on the batch alone. To that end every dropout of
the model is intercepted, whether it is a module or a function call; a model that draws random numbers in another way
is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.hooks import RemovableHandle

from lora_bench.engine.encoder import probe
from lora_bench.engine.encoder.product import Operands
from lora_bench.engine.encoder.recompute import Fields, Forward, RecomputedLayers, SharedDropouts
from lora_bench.engine.encoder.windows import Batch
from lora_bench.engine.masks import Masks

# How far gradients of layers that are computed again may differ from those of layers that are not, relative to the
# largest (chosen): both are the same operations, except for the order of sums.
GRADIENTS = {torch.float64: 1e-2, torch.float32: 1e-2, torch.bfloat16: 0.1}
UseOperands = Callable[[Mapping[str, Operands]], None]


class PaddedEncoder:
    """The padded way to run a model.

    Args:
        model: The model, as transformers made it.
        takes_types: Whether it takes token types.
    """

    def __init__(self, model: Any, takes_types: bool) -> None:
        self.model, self.takes_types = model, takes_types
        self.layers = RecomputedLayers(model)

    def encode(
        self,
        batch: Batch,
        cells: int,
        masks: Masks | None,
        operands: Mapping[str, Operands],
        use: UseOperands | None,
        weights: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """The hidden states of the last layer, `[cells, B, L, d]` for B sequences of at most L tokens.

        Args:
            batch: The batch, on windows.
            cells: K.
            masks: The dropout masks while training.
            operands: The adapters of the weights by name, K of each.
            use: Called with the operands of one cell before its forward: hooks of the linears apply them.
            weights: Parameters that replace the model's, by name; for one cell without operands.
        """
        inputs = self.inputs(batch)

        def forward() -> Tensor:
            run = functional_call(self.model, dict(weights), (), inputs) if weights else self.model(**inputs)
            hidden: Tensor = run.last_hidden_state
            return hidden

        def use_fields(fields: Fields) -> None:
            assert use is not None
            use({name: Operands(**values) for name, values in fields.items()})

        def forward_cell(fields: Fields) -> Tensor:
            use_fields(fields)
            if cells == 1:
                return forward()
            with self.layers.during(Forward(fields, use_fields, masks)):
                return forward()

        with SharedDropouts(masks.draw_mask) if masks is not None else nullcontext():
            if not operands:
                return forward().expand(cells, -1, -1, -1)
            present = {
                name: {field: value for field, value in each._asdict().items() if value is not None}
                for name, each in operands.items()
            }
            # "same": whatever is drawn is drawn once for all cells
            hidden: Tensor = vmap(forward_cell, randomness="same")(present)
            return hidden

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The batch as padded rows `[B, L]`, as transformers takes them."""
        device = batch.slots.device
        sequences = torch.arange(len(batch.first), device=device)
        slots = batch.first[:, None] + torch.arange(batch.longest, device=device)
        within = slots < len(batch.segments)  # behind a sequence that ends in the last slot there is nothing
        slots = slots.clamp_(max=len(batch.segments) - 1)
        present = within & (batch.segments[slots] == sequences[:, None])
        rows = {
            "input_ids": batch.ids[slots].where(present, probe.padding(self.model.config)),
            "attention_mask": present.long(),
        }
        if batch.types is not None and self.takes_types:
            rows["token_type_ids"] = batch.types[slots].where(present, 0)
        return rows


def of_slots(hidden: Tensor, batch: Batch, slots: Tensor) -> Tensor:
    """The hidden states `[K, slots, d]` of some slots, among those of padded rows, `[K, B, L, d]`.

    The states of empty slots are arbitrary.
    """
    sequences = batch.segments[slots].clamp(min=0)
    columns = (slots - batch.first[sequences]).clamp(0, hidden.shape[2] - 1)
    return hidden[:, sequences, columns]


@torch.no_grad()
def check(encoder: PaddedEncoder, batch: Batch, masks: Masks, linears: Mapping[str, nn.Linear]) -> set[str]:
    """See whether the model can be trained on padded rows, by two forwards of the probe in training.

    Returns:
        The linears that the model calls as modules: others cannot be adapted.

    Raises:
        ValueError: It cannot; the message says why.
    """
    with _Adapted(encoder.model, linears) as adapted:
        states = torch.random.get_rng_state(), _device_state(batch.slots.device)
        operands = adapted.operands(0.0)
        first, second = (
            encoder.encode(batch, 2, _drawn_masks(masks, batch), operands, adapted.use, None)[1] for _ in range(2)
        )
        drawn = torch.random.get_rng_state(), _device_state(batch.slots.device)
    if not torch.equal(first, second) or any(not torch.equal(a, b) for a, b in zip(states, drawn, strict=True)):
        raise ValueError("it draws random numbers that cells cannot share")
    return set(adapted.called)


@torch.enable_grad()
def check_gradients(encoder: PaddedEncoder, batch: Batch, masks: Masks, linears: Mapping[str, nn.Linear]) -> None:
    """See whether the gradients of adapters on padded rows are sound, by those of two cells for the probe.

    Raises:
        ValueError: They are not finite, or differ from those without layers that are computed again.
    """
    with _Adapted(encoder.model, linears) as adapted:
        operands = adapted.operands(0.01)
        values = [value.requires_grad_() for pair in operands.values() for value in (pair.A, pair.B)]

        def gradients() -> list[Tensor]:
            hidden = encoder.encode(batch, 2, _drawn_masks(masks, batch), operands, adapted.use, None)
            loss = hidden[:, :, 0].float().sin().sum()
            return [part.float() for part in torch.autograd.grad(loss, values, materialize_grads=True)]

        recomputed = gradients()
        with encoder.layers.paused():
            kept = gradients()
    dtype = values[0].dtype
    if not all(bool(part.isfinite().all()) for part in (*recomputed, *kept)):
        raise ValueError(f"its gradients are not finite in {str(dtype).removeprefix('torch.')}")
    most = GRADIENTS[dtype] * max(float(part.abs().max()) for part in kept)
    if any(float((one - other).abs().max()) > most for one, other in zip(recomputed, kept, strict=True)):
        raise ValueError("its layers give other numbers when they are computed again")


class _Adapted:
    """While it is entered, a model is in training, with adapters on its linears for two cells.

    Attributes:
        called: The linears that were called as modules.
    """

    def __init__(self, model: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        self.called: set[str] = set()
        self._model, self._linears = model, linears
        self._in_use: Mapping[str, Operands] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._model.train()
        self._handles = [linear.register_forward_hook(self._hook(name)) for name, linear in self._linears.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._model.train(False)

    def operands(self, value: float) -> dict[str, Operands]:
        """Adapters of rank 1 whose values are between `-value` and `value`, zero for 0."""

        def vectors(linear: nn.Linear, size: int) -> Tensor:
            return (value * torch.arange(size).cos()).to(linear.weight).repeat(2, 1)

        return {
            name: Operands(
                vectors(linear, linear.in_features)[:, None], vectors(linear, linear.out_features)[..., None]
            )
            for name, linear in self._linears.items()
        }

    def use(self, operands: Mapping[str, Operands]) -> None:
        """Apply these, of one cell."""
        self._in_use = operands

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def adapt(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self.called.add(name)
            update = self._in_use[name]
            return output + (inputs[0] @ update.A.mT @ update.B.mT).view_as(output)

        return adapt


def _drawn_masks(masks: Masks, batch: Batch) -> Masks:
    return masks.draw(torch.Generator(batch.slots.device).manual_seed(0), batch.windows, len(batch.rows))


def _device_state(device: torch.device) -> Tensor:
    """The state of a GPU's own random number generator; an empty tensor on a CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.zeros(0)


@torch.no_grad()
def first_token_sees_all(encoder: PaddedEncoder, batch: Batch) -> bool:
    """Whether the state of a sequence's first token depends on its last: the head reads the first token alone."""
    inputs = encoder.inputs(batch)
    before = encoder.model(**inputs).last_hidden_state[:, 0]
    last = inputs["attention_mask"].sum(1) - 1
    changed = inputs["input_ids"].clone()
    rows = torch.arange(len(last), device=last.device)
    changed[rows, last] = (changed[rows, last] + 5) % int(encoder.model.config.vocab_size)
    after = encoder.model(**{**inputs, "input_ids": changed}).last_hidden_state[:, 0]
    differs = (before != after).any(1)
    return bool(differs[last > 0].any())
