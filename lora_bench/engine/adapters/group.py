"""The cells of one method and target set: what they train, what stays frozen, and the operands that come of it.

All that a group trains is one matrix `[cells, values]`: a cell is a row, so the optimiser, clipping, freezing a
diverged cell and saving one are each a few operations on rows. Ranks (and a, b) are zero-padded to the group's largest.
A padded row of one factor meets a padded column of the next, so its gradient is exactly zero and padding changes no
number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.engine.adapters.bases import basis
from lora_bench.engine.adapters.lengths import Lengths
from lora_bench.engine.block import Block
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.families import Family
from lora_bench.engine.encoder.product import Operands
from lora_bench.engine.encoder.targets import resolve
from lora_bench.errors import BenchError
from lora_bench.methods.recipe import (
    Basis,
    Constant,
    Factor,
    FirstStep,
    Normal,
    Orthonormal,
    Recipe,
    Uniform,
    Update,
    Zeros,
)


@dataclass(frozen=True)
class Stack:
    """One trained factor of a group: `modules` matrices, each padded to `rows` × `cols`."""

    name: str
    family: Family
    modules: tuple[str, ...]
    rows: int
    cols: int
    rate: float
    decays: bool

    @property
    def size(self) -> int:
        """Values a cell."""
        return len(self.modules) * self.rows * self.cols


def draw(factor: Factor, seed: int, module: str, backbone: Backbone) -> Tensor:
    """A factor's first value, `[rows, cols]` on the CPU: a function of the cell's seed, the module and the factor."""
    key = (seed, f"{factor.rows}x{factor.cols}" if factor.shared else module, factor.name)
    match factor.start:
        case Zeros() | FirstStep():
            return torch.zeros(factor.rows, factor.cols, dtype=torch.float64)
        case Constant(value):
            return torch.full((factor.rows, factor.cols), value, dtype=torch.float64)
        case Normal(std):
            return torch.from_numpy(randomness.normal(factor.rows, factor.cols, *key) * std)
        case Uniform(bound):
            return torch.from_numpy(randomness.uniform(factor.rows, factor.cols, *key) * bound)
        case Orthonormal(std):
            longer = max(factor.rows, factor.cols)
            return torch.from_numpy(randomness.orthonormal(factor.rows, factor.cols, *key) * (std * longer**0.5))
        case Basis(decomposition, side, gain):
            count = factor.rows if side == "input" else factor.cols
            return basis(backbone, module, decomposition, side, count).double().cpu() * gain


class Group:
    """The cells of one method and target set: their trained matrix, their frozen factors, and their A and B."""

    def __init__(
        self, recipe: Recipe, cells: Sequence[Cell], first: int, families: Sequence[Family], backbone: Backbone
    ) -> None:
        self.recipe, self.cells, self.first = recipe, tuple(cells), first
        wanted = frozenset(targets_of(cells[0], backbone))
        own = {family: tuple(name for name in family.modules if name in wanted) for family in families}
        self.families = {family: modules for family, modules in own.items() if modules}
        self.indices = {family: _index(own, family, backbone.device) for family, own in self.families.items()}
        self.trained: list[Stack] = []
        self.frozen: dict[tuple[Family, str], Tensor] = {}
        linears = backbone.linears()
        scales = [recipe.scale(cell) for cell in cells]
        self.scale = torch.tensor(scales, device=backbone.device, dtype=backbone.exact)
        self.lengths: dict[Family, Lengths] = {}
        if recipe.normalises:
            own_linears = {family: [linears[name] for name in modules] for family, modules in self.families.items()}
            self.lengths = {family: Lengths(own, backbone.exact) for family, own in own_linears.items()}
        matrix = self._build(backbone)
        rates = torch.tensor([cell.lr for cell in cells], device=backbone.device, dtype=backbone.exact)
        places = torch.arange(first, first + len(cells), device=backbone.device)
        self.block = Block(places, matrix.requires_grad_(), rates, self._decays(matrix), self._multiples(matrix))
        self.unbiased = frozenset(name for name in self.modules if linears[name].bias is None)
        self.start = self._made(matrix.detach().clone()) if recipe.subtracts_start else None

    @property
    def places(self) -> range:
        """Which of the pack's cells these are."""
        return range(self.first, self.first + len(self.cells))

    @property
    def modules(self) -> tuple[str, ...]:
        """The weights that these cells adapt."""
        return tuple(itertools.chain.from_iterable(self.families.values()))

    def _build(self, backbone: Backbone) -> Tensor:
        columns: list[Tensor] = []
        for family, modules in self.families.items():
            by_cell = [self.recipe.factors(cell, family.shape) for cell in self.cells]
            for versions in zip(*by_cell, strict=True):
                values, factor = self._stack(versions, modules, backbone), versions[0]
                if factor.trainable:
                    rows, cols = values.shape[2:]
                    self.trained.append(Stack(factor.name, family, modules, rows, cols, factor.rate, factor.decays))
                    columns.append(values.flatten(1))
                else:
                    self.frozen[family, factor.name] = values
        return torch.cat(columns, dim=1)

    def _multiples(self, matrix: Tensor) -> Tensor | None:
        return self._by_column(matrix, [stack.rate for stack in self.trained])

    def _decays(self, matrix: Tensor) -> Tensor | None:
        return self._by_column(matrix, [float(stack.decays) for stack in self.trained])

    def _by_column(self, matrix: Tensor, values: Sequence[float]) -> Tensor | None:
        """`[values]`, from one number a stack; None if all are 1."""
        if set(values) == {1.0}:
            return None
        return torch.cat([matrix.new_full((s.size,), v) for s, v in zip(self.trained, values, strict=True)])

    def _stack(self, versions: Sequence[Factor], modules: Sequence[str], backbone: Backbone) -> Tensor:
        """`[cells, modules, rows, cols]`: each cell's version of one factor, zero-padded to the largest.

        What is the same for all modules, or all cells, lies in memory once.
        """
        rows, cols = max(f.rows for f in versions), max(f.cols for f in versions)
        drawn = modules[:1] if versions[0].shared else modules
        alike = isinstance(versions[0].start, Basis) and not versions[0].trainable and len(set(versions)) == 1
        own = self.cells[:1] if alike else self.cells
        wanted: dict[tuple[Factor, int], list[int]] = {}  # what is drawn, and the rows that have it
        for row, (cell, factor) in enumerate(zip(own, versions, strict=False)):
            wanted.setdefault((factor, cell.seed), []).append(row)
        stack = torch.zeros(len(own), len(drawn), rows, cols, dtype=backbone.exact)
        for place, module in enumerate(drawn):
            for (factor, seed), sharing in wanted.items():
                stack[sharing, place, : factor.rows, : factor.cols] = draw(factor, seed, module, backbone).to(stack)
        return stack.to(backbone.device).expand(len(versions), len(modules), -1, -1)

    def factors(self, matrix: Tensor) -> dict[Family, dict[str, Tensor]]:
        """All factors by family and name, the trained ones as views of `matrix`."""
        found: dict[Family, dict[str, Tensor]] = {family: {} for family in self.families}
        for (family, name), values in self.frozen.items():
            found[family][name] = values
        for stack, part in zip(self.trained, matrix.split([s.size for s in self.trained], dim=1), strict=True):
            found[stack.family][stack.name] = part.unflatten(1, (len(stack.modules), stack.rows, stack.cols))
        return found

    def updates(self) -> dict[Family, Operands]:
        """The update of each family, `[cells, modules, …]`, B without `scale`."""
        made = self._made(self.block.matrix)
        return made if self.start is None else {family: _since(self.start[family], now) for family, now in made.items()}

    def _made(self, matrix: Tensor) -> dict[Family, Operands]:
        found = self.factors(matrix).items()
        return {family: self._operands(family, self.recipe.update(factors)) for family, factors in found}

    def _operands(self, family: Family, update: Update) -> Operands:
        like, count = self.scale, (len(self.cells), len(self.families[family]))
        a = like.new_zeros(*count, 0, family.shape.inputs) if update.A is None else update.A
        b = like.new_zeros(*count, family.shape.outputs, 0) if update.B is None else update.B
        stretch = None if update.stretch is None else update.stretch - 1
        if update.shift is not None and self.unbiased:
            raise BenchError(
                f"'{self.recipe.name}' shifts outputs, but {min(self.unbiased)} has no bias.",
                "Use another method, or --targets that have one.",
            )
        if family in self.lengths and update.gain is not None:
            gain, shift = self.lengths[family].gain(update.gain, Operands(a, b), self.scale)
            return Operands(a, b, gain, stretch, shift)
        return Operands(a, b, None if update.gain is None else update.gain - 1, stretch, update.shift)

    def state(self, row: int, values: Tensor) -> dict[str, Tensor]:
        """What a saved adapter of a cell holds, without padding: `module.factor` → `[rows, cols]` on the CPU.

        `values`: the cell's row `[1, values]` of the matrix, or of what has its shape.
        """
        return {name: part.clone().cpu() for name, part in self._views(row, values)}

    def load(self, row: int, state: dict[str, Tensor], values: Tensor) -> None:
        """Put a state into such a row."""
        for name, part in self._views(row, values):
            part.copy_(state[name])

    def params(self, row: int) -> int:
        """How many values one cell trains."""
        own = ((f, len(m)) for family, m in self.families.items() for f in self.versions(row, family))
        return sum(factor.rows * factor.cols * count for factor, count in own if factor.trainable)

    def versions(self, row: int, family: Family) -> tuple[Factor, ...]:
        """One cell's factors of a family."""
        return self.recipe.factors(self.cells[row], family.shape)

    def _views(self, row: int, values: Tensor) -> list[tuple[str, Tensor]]:
        views: list[tuple[str, Tensor]] = []
        found = self.factors(values)
        for family, modules in self.families.items():
            for own in self.versions(row, family):
                if own.saved:
                    padded = found[family][own.name][0 if own.trainable else row]
                    views += [(f"{m}.{own.name}", padded[i, : own.rows, : own.cols]) for i, m in enumerate(modules)]
        return views


def targets_of(cell: Cell, backbone: Backbone) -> tuple[str, ...]:
    """The weights that a cell adapts."""
    return resolve(backbone.linears(), cell.targets or "attention")


def _index(own: Sequence[str], family: Family, device: torch.device) -> Tensor | None:
    """Where each weight of the family stands among a group's own, after them if it has none; None if it has all."""
    if tuple(own) == family.modules:
        return None
    return torch.tensor([own.index(m) if m in own else len(own) for m in family.modules], device=device)


def _since(start: Operands, now: Operands) -> Operands:
    """B A − B₀ A₀ as (B − B₀) A + B₀ (A − A₀): zero to the bit at the start, no difference of large products."""
    a, b = torch.cat([now.A, now.A - start.A], dim=-2), torch.cat([now.B - start.B, start.B], dim=-1)
    return now._replace(A=a, B=b)
