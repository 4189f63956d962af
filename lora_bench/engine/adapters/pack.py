"""A pack: K cells over one backbone, from tokens to logits `[K, B, outputs]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.engine.adapters.bank import Bank, arrange
from lora_bench.engine.adapters.head import Heads
from lora_bench.engine.adapters.whole import WholeBackbone
from lora_bench.engine.block import Block
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.families import Family
from lora_bench.engine.encoder.product import Operands
from lora_bench.engine.encoder.windows import Batch, Form
from lora_bench.engine.masks import Masks
from lora_bench.errors import MISSING, BenchError


@dataclass(frozen=True)
class State:
    """What a cell has trained, on the CPU.

    Attributes:
        adapter: The adapter's factors by `module.factor`; for full fine-tuning the backbone's parameters by name.
        head: The classification head's weights and biases by name.
    """

    adapter: dict[str, Tensor]
    head: dict[str, Tensor]

    def flat(self) -> Tensor:
        """All values as one vector, the adapter's first."""
        return torch.cat([part.flatten() for part in (*self.adapter.values(), *self.head.values())])

    @property
    def shapes(self) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
        """The shapes of the adapter's and of the head's values by name."""
        adapter, head = ({name: part.shape for name, part in parts.items()} for parts in (self.adapter, self.head))
        return adapter, head

    def like(self, values: Tensor) -> State:
        """A state with the names and shapes of this one, from other values in the order of `flat`.

        Raises:
            ValueError: There are more or fewer values than this state has.
        """
        parts = [*self.adapter.items(), *self.head.items()]
        vectors = values.split([part.numel() for _, part in parts])
        shaped = [(name, vector.reshape(part.shape)) for (name, part), vector in zip(parts, vectors, strict=True)]
        return State(dict(shaped[: len(self.adapter)]), dict(shaped[len(self.adapter) :]))


class Pack:
    """K cells over one backbone, with the cells of one group adjacent.

    A context manager: where the encoder runs through transformers' own code, the adapters are hooks on its linears
    between entry and exit.

    Args:
        cells: The cells; `Pack.cells` has them in the pack's order.
        backbone: The encoder.
        outputs: The outputs of the classification heads.
        hooked: Whether the encoder is to run through transformers' own code even if it has a hand-written form, so that
            hooks see the inputs and outputs of its weights.

    Attributes:
        bank: The adapters of all cells.
        heads: The classification heads of all cells.
        whole: The encoder's parameters, if the cell trains them; else None.
        updates: The operands of all adapted weights by family, as `compose` computed them last; see `Bank.updates`.
        by_module: The same by the weight's name, for the hooks; empty where the encoder is `fused`.
        weights: The trained parameters of the encoder by name; None if it is frozen.
    """

    def __init__(self, cells: Sequence[Cell], backbone: Backbone, outputs: int, hooked: bool = False) -> None:
        self.cells, self.backbone = arrange(cells), backbone
        self._hooked = hooked
        fully_trained = [cell for cell in cells if methods.of(cell).trains_backbone]
        if fully_trained and len(cells) > 1:
            raise ValueError(f"{fully_trained[0].method} trains the backbone: its pack is a pack of one")
        self.whole = WholeBackbone(cells[0], backbone) if fully_trained else None
        self.bank = Bank(self.cells, backbone)
        self.heads = Heads(self.cells, backbone, outputs)
        self.updates: dict[Family, Operands] = {}
        self.by_module: dict[str, Operands] = {}
        self._in_use: Mapping[str, Operands] = {}
        self.weights: dict[str, Tensor] | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def fused(self) -> bool:
        """Whether the encoder runs in its hand-written form."""
        return self.backbone.fused is not None and self.whole is None and not self._hooked

    def __enter__(self) -> Self:
        if not self.fused:
            linears = self.backbone.linears()
            names = [name for family in self.bank.families for name in family.modules]
            self._handles = [linears[name].register_forward_pre_hook(self._input_hook(name)) for name in names]
            self._handles += [linears[name].register_forward_hook(self._output_hook(name)) for name in names]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self.updates, self.by_module, self._in_use, self.weights = {}, {}, {}, None

    # The hooks compute the same as `encoder.product`, where the formulas are. `_in_use` has the operands of all cells
    # on windows, and those of one cell, without the first axis, where the encoder runs cell by cell (`padded`).

    def _use(self, operands: Mapping[str, Operands]) -> None:
        self._in_use = operands

    def _input_hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        def stretch(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            factor = self._in_use[name].stretch
            return None if factor is None else (torch.addcmul(inputs[0], inputs[0], factor),)

        return stretch

    def _output_hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def adapt(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            update = self._in_use[name]
            if update.A.shape[-2]:
                output = output + (inputs[0] @ update.A.mT @ update.B.mT).view_as(output)
            output = output if update.gain is None else torch.addcmul(output, output, update.gain)
            return output if update.shift is None else output + update.shift

        return adapt

    def blocks(self) -> list[Block]:
        """Everything that trains: one block per group, the whole backbone if it trains, the heads last."""
        blocks = [group.block for group in self.bank.groups]
        if self.whole is not None:
            blocks.append(self.whole.block)
        return [*blocks, self.heads.block]

    def compose(self) -> None:
        """Compute the operands of every adapted weight from the factors as they are now; once per step."""
        self.updates = self.bank.updates()
        self.by_module = {} if self.fused else self.bank.by_module(self.updates)
        self._in_use = self.by_module
        self.weights = None if self.whole is None else self.whole.weights(self.whole.block.matrix)

    def draw_noise(self, *key: str | int) -> None:
        """Draw the noise factors of all cells by this key; without one they are zero."""
        for group in self.bank.groups:
            for factor in group.noise:
                factor.draw(*key)

    def masks(self, form: Form) -> Masks:
        """Room for the dropout masks of batches of this shape."""
        return self.backbone.masks(form, self.heads.form)

    def logits(self, batch: Batch, masks: Masks | None = None) -> Tensor:
        """The logits `[K, B, outputs]`, with dropout if there are masks."""
        if self.fused:
            hidden = self.backbone.encode_fused(batch, len(self.cells), masks, self.updates, batch.first)
        else:
            hidden = self.backbone.encode(
                batch, len(self.cells), masks, self.weights, rows=batch.first, operands=self.by_module, use=self._use
            )
        return self.heads.logits(self.heads.block.matrix, hidden, masks)

    def state(self, position: int) -> State:
        """What the cell at a position of the pack has trained."""
        return self.states([position])[0]

    @torch.no_grad()
    def states(self, positions: Sequence[int], matrices: Sequence[Tensor] | None = None) -> list[State]:
        """What the cells at these positions have trained: one copy from the device per block.

        Args:
            positions: Positions in the pack.
            matrices: Tensors of the shapes of the blocks' matrices to read instead of these (the optimiser's moments).
        """
        states = [State({}, {}) for _ in positions]
        *parts, heads = matrices or [block.matrix for block in self.blocks()]
        for group, matrix in zip(self.bank.groups, parts, strict=False):
            members = [
                (state, position - group.offset)
                for state, position in zip(states, positions, strict=True)
                if position in group.positions
            ]
            rows = _rows(matrix, [row for _, row in members])
            for (state, row), values in zip(members, rows, strict=True):
                state.adapter.update(group.state(row, values))
        if self.whole is not None and states:
            states[0].adapter.update(self.whole.state(parts[-1].detach().cpu()))
        for state, values in zip(states, _rows(heads, positions), strict=True):
            state.head.update(self.heads.state(values))
        return states

    @torch.no_grad()
    def load(self, position: int, state: State, matrices: Sequence[Tensor] | None = None) -> None:
        """Overwrite what a cell has trained with a saved state.

        Args:
            position: The cell's position in the pack.
            state: The values.
            matrices: Tensors of the shapes of the blocks' matrices to write to instead of these.
        """
        *parts, heads = [matrix.detach() for matrix in matrices or [block.matrix for block in self.blocks()]]
        self.heads.load(state.head, heads[position : position + 1])
        if self.whole is not None:
            self.whole.load(state.adapter, parts[-1])
        for group, matrix in zip(self.bank.groups, parts, strict=False):
            if position in group.positions:
                row = position - group.offset
                group.load(row, state.adapter, matrix[row : row + 1])

    def continue_from(self, position: int, earlier: State) -> None:
        """Let a cell begin with what a cell of another task has trained.

        The output layer of its head stays as it is drawn from the seed: its outputs are those of another task.

        Args:
            position: The cell's position in the pack.
            earlier: What the other cell has trained, with the same model, method, sizes, targets and seed.

        Raises:
            BenchError: Exit code 3 if it does not fit.
        """
        fresh = self.state(position)
        head = {name: fresh.head[name] if self.heads.is_output(name) else earlier.head.get(name) for name in fresh.head}
        kept = {name: value for name, value in head.items() if value is not None}
        state = State({name: earlier.adapter[name] for name in fresh.adapter if name in earlier.adapter}, kept)
        if len(earlier.adapter) != len(fresh.adapter) or state.shapes != fresh.shapes:
            raise BenchError(
                f"What cell {self.cells[position].start} has trained does not fit cell {self.cells[position].id}.",
                "Remove its folder under adapters/: the same command trains it again.",
                MISSING,
            )
        self.load(position, state)

    def adapter_params(self, position: int) -> int:
        """How many values the cell trains outside its head."""
        if self.whole is not None:
            return self.whole.trained_values
        return sum(group.params(position - group.offset) for group in self.bank.groups if position in group.positions)

    def head_params(self) -> int:
        """How many values a cell's head has."""
        return self.heads.block.matrix.shape[1]

    def modules(self, position: int) -> int:
        """How many weights the cell adapts."""
        return sum(len(group.modules) for group in self.bank.groups if position in group.positions)

    @torch.no_grad()
    def deltas(self, position: int) -> dict[str, Tensor]:
        """ΔW `[out, in]` of every weight that the cell adapts: the merged weight is W + ΔW, with gain and stretch."""
        updates = self._updates_of(position)
        return {name: self._delta(name, update, position) for name, update in updates.items()}

    def _delta(self, name: str, update: Operands, position: int) -> Tensor:
        """(1 + gain) ⊙ (W + B A) ⊙ (1 + stretch) − W, as a sum of small terms: no difference of large ones."""
        delta = update.B[position] @ update.A[position]
        weight = self.backbone.linears()[name].weight.to(delta.dtype)
        if update.gain is not None:
            delta = delta + update.gain[position].mT * (weight + delta)
        return delta if update.stretch is None else delta + update.stretch[position] * (weight + delta)

    @torch.no_grad()
    def bias_deltas(self, position: int) -> dict[str, Tensor]:
        """What is added to the bias `[out]` of every linear whose bias the cell changes."""
        deltas: dict[str, Tensor] = {}
        for name, update in self._updates_of(position).items():
            bias = self.backbone.linears()[name].bias
            delta = update.B.new_zeros(update.B.shape[1])
            if update.gain is not None and bias is not None:
                delta = delta + update.gain[position, 0] * bias.to(delta.dtype)
            delta = delta if update.shift is None else delta + update.shift[position, 0]
            if delta.any():
                deltas[name] = delta
        return deltas

    def _updates_of(self, position: int) -> dict[str, Operands]:
        """The operands, in exact type, of the weights that the cell at this position adapts."""
        modules = {name for group in self.bank.groups if position in group.positions for name in group.modules}
        updates = self.bank.by_module(self.bank.updates(self.backbone.exact))
        return {name: update for name, update in updates.items() if name in modules}


def _rows(matrix: Tensor, rows: Sequence[int]) -> Sequence[Tensor]:
    """These rows on the CPU, `[1, values]` each, in one copy from the device."""
    return matrix.detach()[list(rows)].cpu().split(1) if rows else ()
