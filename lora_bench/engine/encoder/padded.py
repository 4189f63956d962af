"""Encoders that cannot run on windows, such as XLM: transformers' own code on padded rows, for K cells at once.

The forward of one cell is the model's own, on ids and an attention mask `[B, L]`. `torch.func.vmap` runs it for K
cells: the products of the frozen weights become one product over the rows of all cells, and whatever the code does
with its weights besides, it does for each cell. It takes more time than windows do: padding is computed, and so is each
layer a second time in the backward pass (`recompute`), as the activations of all layers of all cells would not fit.

All cells share the dropout masks of a step: they are drawn in the order in which the forward asks for them, in the
shapes of one cell, from the step's random stream. So they depend on the batch alone. To that end every dropout of
the model is intercepted, whether it is a module or a function call; a model that draws random numbers in another way
is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lora_bench.engine.encoder import probe
from lora_bench.engine.encoder.product import Operands
from lora_bench.engine.encoder.recompute import Fields, Forward, RecomputedLayers, SharedDropouts
from lora_bench.engine.encoder.windows import Batch
from lora_bench.engine.masks import Masks

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

    Those of an empty slot are of any token.
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
    called: dict[str, None] = {}
    current: dict[str, Operands] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def adapt(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            called[name] = None
            return output + (inputs[0] @ current[name].A.mT @ current[name].B.mT).view_as(output)

        return adapt

    zero = {
        name: Operands(
            linear.weight.new_zeros(2, 1, linear.in_features), linear.weight.new_zeros(2, linear.out_features, 1)
        )
        for name, linear in linears.items()
    }
    handles = [linear.register_forward_hook(hook(name)) for name, linear in linears.items()]
    try:
        encoder.model.train()
        states = torch.random.get_rng_state(), _device_state(batch.slots.device)
        first, second = (
            encoder.encode(batch, 2, _drawn(masks, batch), zero, current.update, None)[1] for _ in range(2)
        )
        drawn = torch.random.get_rng_state(), _device_state(batch.slots.device)
    finally:
        for handle in handles:
            handle.remove()
        encoder.model.train(False)
    if not torch.equal(first, second) or any(not torch.equal(a, b) for a, b in zip(states, drawn, strict=True)):
        raise ValueError("it draws random numbers that cells cannot share")
    return set(called)


def _drawn(masks: Masks, batch: Batch) -> Masks:
    return masks.draw(torch.Generator(batch.slots.device).manual_seed(0), batch.windows, len(batch.rows))


def _device_state(device: torch.device) -> Tensor:
    """The state of the random numbers that a GPU draws by itself; nothing on a CPU."""
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
