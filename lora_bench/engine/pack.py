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
from lora_bench.engine.bank import Bank, Block
from lora_bench.engine.head import Heads
from lora_bench.engine.whole import Whole
from lora_bench.engine.windows import Batch
from lora_bench.methods.recipe import Update


@dataclass(frozen=True)
class State:
    """What a cell has trained, on the CPU: the adapter's factors by `module.factor`, and the head."""

    adapter: dict[str, Tensor]
    head: dict[str, Tensor]


class Pack:
    """K cells over one backbone. Use as a context: leaving it takes the adapters off the backbone."""

    def __init__(self, cells: Sequence[Cell], backbone: Backbone, outputs: int) -> None:
        self.cells, self.backbone = tuple(cells), backbone
        whole = [cell for cell in cells if methods.get(cell.method).trains_backbone]
        if whole and len(cells) > 1:
            raise ValueError(f"{whole[0].method} trains the backbone: its pack is a pack of one")
        self.whole = Whole(cells[0], backbone) if whole else None
        self.bank = Bank(cells, backbone)
        rate = _head_dropout(backbone)
        self.heads = Heads(cells, backbone.hidden_size, outputs, rate, backbone.device, backbone.exact)
        self.updates: dict[str, Update] = {}
        self.weights: dict[str, Tensor] | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        linears = self.backbone.linears()
        names = [name for modules in self.bank.modules.values() for name in modules]
        self._handles = [linears[name].register_forward_hook(self._hook(name)) for name in names]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self.updates, self.weights = {}, None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def adapt(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            update = self.updates[name]
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
        self.updates = self.bank.updates([group.block.matrix for group in self.bank.groups])
        self.weights = None if self.whole is None else self.whole.weights(self.whole.block.matrix)

    def logits(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """`[K, B, outputs]`, with dropout if there is a stream for it."""
        hidden = self.backbone.encode(batch, len(self.cells), generator, self.weights)
        return self.heads.logits(self.heads.block.matrix, hidden[:, batch.first], generator)

    def state(self, place: int) -> State:
        """What cell `place` has trained."""
        return State(self._adapter_state(place), self.heads.state(place))

    def _adapter_state(self, place: int) -> dict[str, Tensor]:
        if self.whole is not None:
            return self.whole.state()
        for group in self.bank.groups:
            if place in group.places:
                return group.state(group.places.index(place))
        return {}

    @torch.no_grad()
    def load(self, place: int, state: State) -> None:
        """Put a saved state in the place of a cell's."""
        self.heads.load(place, state.head)
        if self.whole is not None:
            self.whole.load(state.adapter)
        for group in self.bank.groups:
            if place in group.places:
                group.load(group.places.index(place), state.adapter)

    def adapter_params(self, place: int) -> int:
        """How many values the cell trains outside its head."""
        if self.whole is not None:
            return sum(self.whole.sizes)
        return sum(value.numel() for value in self._adapter_state(place).values())

    def head_params(self) -> int:
        """How many values a cell's head has."""
        return self.heads.block.matrix.shape[1]

    def modules(self, place: int) -> int:
        """How many weights the cell adapts."""
        return sum(len(group.modules) for group in self.bank.groups if place in group.places)

    @torch.no_grad()
    def deltas(self, place: int) -> dict[str, Tensor]:
        """ΔW `[out, in]` of every weight the cell adapts."""
        self.compose()
        own = {name for group in self.bank.groups if place in group.places for name in group.modules}
        return {name: update.B[place] @ update.A[place] for name, update in self.updates.items() if name in own}


def _head_dropout(backbone: Backbone) -> float:
    """The head's dropout as transformers resolves it: the classifier's own rate, else the hidden one."""
    config = backbone.config
    for name in ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "dropout"):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return 0.0
