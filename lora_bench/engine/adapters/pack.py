"""A pack: K cells over one backbone, from tokens to logits `[K, B, outputs]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.engine.adapters.bank import Bank, arranged
from lora_bench.engine.adapters.head import Heads
from lora_bench.engine.adapters.whole import Whole
from lora_bench.engine.block import Block
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.families import Family
from lora_bench.engine.encoder.product import Operands
from lora_bench.engine.encoder.windows import Batch
from lora_bench.engine.masks import Masks


@dataclass(frozen=True)
class State:
    """What a cell has trained, on the CPU: the adapter's factors by `module.factor`, and the head."""

    adapter: dict[str, Tensor]
    head: dict[str, Tensor]

    def flat(self) -> Tensor:
        """All values as one vector, the adapter's first."""
        return torch.cat([part.flatten() for part in (*self.adapter.values(), *self.head.values())])

    def like(self, values: Tensor) -> State:
        """Other values, as one vector, in the shapes of these.

        Raises:
            ValueError: they are not as many.
        """
        parts = [*self.adapter.items(), *self.head.items()]
        cut = values.split([part.numel() for _, part in parts])
        shaped = [(name, own.reshape(part.shape)) for (name, part), own in zip(parts, cut, strict=True)]
        return State(dict(shaped[: len(self.adapter)]), dict(shaped[len(self.adapter) :]))


class Pack:
    """K cells over one backbone, arranged by method. Use as a context: leaving it takes the adapters off again."""

    def __init__(self, cells: Sequence[Cell], backbone: Backbone, outputs: int) -> None:
        self.cells, self.backbone = arranged(cells), backbone
        whole = [cell for cell in cells if methods.get(cell.method).trains_backbone]
        if whole and len(cells) > 1:
            raise ValueError(f"{whole[0].method} trains the backbone: its pack is a pack of one")
        self.whole = Whole(cells[0], backbone) if whole else None
        self.bank = Bank(self.cells, backbone)
        self.heads = Heads(self.cells, backbone.hidden_size, outputs, backbone.device, backbone.exact)
        self.updates: dict[Family, Operands] = {}
        self.by_module: dict[str, Operands] = {}
        self.weights: dict[str, Tensor] | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def fused(self) -> bool:
        """Whether the encoder runs in its fused form."""
        return self.backbone.fused is not None and self.whole is None

    def __enter__(self) -> Self:
        if not self.fused:
            linears = self.backbone.linears()
            names = [name for family in self.bank.families for name in family.modules]
            self._handles = [linears[name].register_forward_pre_hook(self._before(name)) for name in names]
            self._handles += [linears[name].register_forward_hook(self._after(name)) for name in names]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self.updates, self.by_module, self.weights = {}, {}, None

    def _before(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        def stretch(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            own = self.by_module[name].stretch
            return None if own is None else (torch.addcmul(inputs[0], inputs[0], own),)

        return stretch

    def _after(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def adapt(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            own = self.by_module[name]
            output = output + (inputs[0] @ own.A.mT @ own.B.mT).view_as(output) if own.A.shape[1] else output
            output = output if own.gain is None else torch.addcmul(output, output, own.gain)
            return output if own.shift is None else output + own.shift

        return adapt

    def blocks(self) -> list[Block]:
        """Everything that trains: one block a group, the whole backbone if it trains, the heads last."""
        blocks = [group.block for group in self.bank.groups]
        if self.whole is not None:
            blocks.append(self.whole.block)
        return [*blocks, self.heads.block]

    def compose(self) -> None:
        """Make A and B of every module from the factors as they are now (once a step)."""
        self.updates = self.bank.updates()
        self.by_module = {} if self.fused else self.bank.by_module(self.updates)
        self.weights = None if self.whole is None else self.whole.weights(self.whole.block.matrix)

    def logits(self, batch: Batch, masks: Masks | None = None) -> Tensor:
        """`[K, B, outputs]`, with dropout if there are masks."""
        if self.fused:
            hidden = self.backbone.encode_fused(batch, len(self.cells), masks, self.updates, batch.first)
        else:
            hidden = self.backbone.encode(batch, len(self.cells), masks, self.weights)[:, batch.first]
        return self.heads.logits(self.heads.block.matrix, hidden, masks)

    def state(self, place: int) -> State:
        """What cell `place` has trained."""
        return self.states([place])[0]

    @torch.no_grad()
    def states(self, places: Sequence[int], of: Sequence[Tensor] | None = None) -> list[State]:
        """What these cells have trained: one copy from the device a block.

        `of`: instead of the trained values, others of the blocks' shapes (the optimiser's moments).
        """
        found = [State({}, {}) for _ in places]
        *parts, heads = of or [block.matrix for block in self.blocks()]
        for group, matrix in zip(self.bank.groups, parts, strict=False):
            own = [
                (state, place - group.first)
                for state, place in zip(found, places, strict=True)
                if place in group.places
            ]
            for (state, row), values in zip(own, _rows(matrix, [row for _, row in own]), strict=True):
                state.adapter.update(group.state(row, values))
        if self.whole is not None and found:
            found[0].adapter.update(self.whole.state(parts[-1].detach().cpu()))
        for state, values in zip(found, _rows(heads, places), strict=True):
            state.head.update(self.heads.state(values))
        return found

    @torch.no_grad()
    def load(self, place: int, state: State, into: Sequence[Tensor] | None = None) -> None:
        """Put a saved state in the place of a cell's, in place (or `into` others of the blocks' shapes)."""
        *parts, heads = [matrix.detach() for matrix in into or [block.matrix for block in self.blocks()]]
        self.heads.load(state.head, heads[place : place + 1])
        if self.whole is not None:
            self.whole.load(state.adapter, parts[-1])
        for group, matrix in zip(self.bank.groups, parts, strict=False):
            if place in group.places:
                row = place - group.first
                group.load(row, state.adapter, matrix[row : row + 1])

    def adapter_params(self, place: int) -> int:
        """How many values the cell trains outside its head."""
        if self.whole is not None:
            return sum(self.whole.sizes)
        return sum(group.params(place - group.first) for group in self.bank.groups if place in group.places)

    def head_params(self) -> int:
        """How many values a cell's head has."""
        return self.heads.block.matrix.shape[1]

    def modules(self, place: int) -> int:
        """How many weights the cell adapts."""
        return sum(len(group.modules) for group in self.bank.groups if place in group.places)

    @torch.no_grad()
    def deltas(self, place: int) -> dict[str, Tensor]:
        """ΔW `[out, in]` of every weight the cell adapts: the merged weight is W + ΔW, gain and stretch within."""
        return {name: self._delta(name, own, place) for name, own in self._own(place).items()}

    def _delta(self, name: str, own: Operands, place: int) -> Tensor:
        delta = own.B[place] @ own.A[place]
        weight = self.backbone.linears()[name].weight.to(delta.dtype)
        if own.gain is not None:
            delta = delta + own.gain[place].mT * (weight + delta)
        return delta if own.stretch is None else delta + own.stretch[place] * (weight + delta)

    @torch.no_grad()
    def bias_deltas(self, place: int) -> dict[str, Tensor]:
        """What is added to the bias `[out]` of every linear whose bias the cell changes."""
        found: dict[str, Tensor] = {}
        for name, own in self._own(place).items():
            bias = self.backbone.linears()[name].bias
            delta = own.B.new_zeros(own.B.shape[1])
            if own.gain is not None and bias is not None:
                delta = delta + own.gain[place, 0] * bias.to(delta.dtype)
            delta = delta if own.shift is None else delta + own.shift[place, 0]
            if delta.any():
                found[name] = delta
        return found

    def _own(self, place: int) -> dict[str, Operands]:
        """The operands of the weights that the cell adapts, in exact type."""
        modules = {name for group in self.bank.groups if place in group.places for name in group.modules}
        made = self.bank.by_module(self.bank.updates(self.backbone.exact))
        return {name: own for name, own in made.items() if name in modules}


def _rows(matrix: Tensor, rows: Sequence[int]) -> Sequence[Tensor]:
    """These rows on the CPU, `[1, values]` each, in one copy."""
    return matrix.detach()[list(rows)].cpu().split(1) if rows else ()
