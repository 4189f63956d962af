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
from lora_bench.engine.backbone import Backbone
from lora_bench.engine.bank import Bank, Block, arranged
from lora_bench.engine.families import Family
from lora_bench.engine.head import Heads
from lora_bench.engine.masks import Masks
from lora_bench.engine.whole import Whole
from lora_bench.engine.windows import Batch
from lora_bench.methods.recipe import Update


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
        self.updates: dict[Family, Update] = {}
        self.by_module: dict[str, Update] = {}
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
            self._handles = [linears[name].register_forward_hook(self._hook(name)) for name in names]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self.updates, self.by_module, self.weights = {}, {}, None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def adapt(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            update = self.by_module[name]
            return torch.baddbmm(output, inputs[0] @ update.A.mT, update.B.mT)

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
        return sum(value.numel() for value in self.state(place).adapter.values())

    def head_params(self) -> int:
        """How many values a cell's head has."""
        return self.heads.block.matrix.shape[1]

    def modules(self, place: int) -> int:
        """How many weights the cell adapts."""
        return sum(len(group.modules) for group in self.bank.groups if place in group.places)

    @torch.no_grad()
    def deltas(self, place: int) -> dict[str, Tensor]:
        """ΔW `[out, in]` of every weight the cell adapts."""
        own = {name for group in self.bank.groups if place in group.places for name in group.modules}
        updates = self.bank.by_module(self.bank.updates())
        return {name: update.B[place] @ update.A[place] for name, update in updates.items() if name in own}


def _rows(matrix: Tensor, rows: Sequence[int]) -> Sequence[Tensor]:
    """These rows on the CPU, `[1, values]` each, in one copy."""
    return matrix.detach()[list(rows)].cpu().split(1) if rows else ()
