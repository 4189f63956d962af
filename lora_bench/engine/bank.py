"""The banks: every factor of every cell of a pack, stacked.

Cells of one method and target set form a group. All that a group trains is one matrix `[cells, values]`: a cell is a
row, so the optimiser, clipping, freezing a diverged cell and saving one are each a few operations on rows. Ranks (and
a, b) are zero-padded to the group's largest. A padded row of one factor meets a padded column of the next, so its
gradient is exactly zero and padding changes no number.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.engine.assemble import Assemble
from lora_bench.engine.backbone import Backbone
from lora_bench.engine.bases import basis
from lora_bench.engine.families import Family
from lora_bench.engine.targets import resolve
from lora_bench.methods.recipe import (
    Basis,
    Constant,
    Factor,
    Normal,
    Orthonormal,
    Recipe,
    Start,
    Uniform,
    Update,
    Zeros,
)


@dataclass
class Block:
    """Values that train together: `matrix[i]` belongs to the pack's cell `cells[i]`.

    `decays` marks the columns that weight decay applies to (None: all). `rates` are the learning rates by row,
    `multiples` what they are multiplied by in each column (None: by 1).
    """

    cells: Tensor  # [rows], positions in the pack
    matrix: Tensor  # [rows, values], a leaf
    rates: Tensor  # [rows]
    decays: Tensor | None = None  # [values]
    multiples: Tensor | None = None  # [values]


@dataclass(frozen=True)
class Stack:
    """One trained factor of a group: `modules` matrices, each padded to `rows` × `cols`."""

    name: str
    family: Family
    modules: tuple[str, ...]
    rows: int
    cols: int
    rate: float

    @property
    def size(self) -> int:
        """Values a cell."""
        return len(self.modules) * self.rows * self.cols


def draw(start: Start, factor: Factor, cell: Cell, module: str, backbone: Backbone) -> Tensor:
    """A factor's first value, `[rows, cols]` on the CPU: a function of the cell's seed, the module and the factor."""
    key = (cell.seed, f"{factor.rows}x{factor.cols}" if factor.shared else module, factor.name)
    match start:
        case Zeros():
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
        case Basis(kind, gain):
            count = factor.rows if kind.endswith("input") else factor.cols
            return basis(backbone, module, kind, count).double().cpu() * gain


class Group:
    """The cells of one method and target set: their trained matrix, their frozen factors, and their A and B."""

    def __init__(
        self, recipe: Recipe, cells: Sequence[Cell], first: int, families: Sequence[Family], backbone: Backbone
    ) -> None:
        self.recipe, self.cells, self.first = recipe, tuple(cells), first
        wanted = frozenset(targets_of(cells[0], backbone))
        own = {family: tuple(name for name in family.modules if name in wanted) for family in families}
        self.families = {family: modules for family, modules in own.items() if modules}
        self.trained: list[Stack] = []
        self.frozen: dict[tuple[Family, str], Tensor] = {}
        matrix = self._build(backbone)
        rates = torch.tensor([cell.lr for cell in cells], device=backbone.device, dtype=backbone.exact)
        places = torch.arange(first, first + len(cells), device=backbone.device)
        self.block = Block(places, matrix.requires_grad_(), rates, multiples=self._multiples(matrix))
        self.start = self._made(matrix.detach().clone()) if recipe.subtracts_start else None
        scales = [recipe.scale(cell) for cell in cells]
        self.scale = torch.tensor(scales, device=backbone.device, dtype=backbone.exact)

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
                    self.trained.append(Stack(factor.name, family, modules, rows, cols, factor.rate))
                    columns.append(values.flatten(1))
                else:
                    self.frozen[family, factor.name] = values
        return torch.cat(columns, dim=1)

    def _multiples(self, matrix: Tensor) -> Tensor | None:
        if all(stack.rate == 1.0 for stack in self.trained):
            return None
        return torch.cat([matrix.new_full((stack.size,), stack.rate) for stack in self.trained])

    def _stack(self, versions: Sequence[Factor], modules: Sequence[str], backbone: Backbone) -> Tensor:
        """`[cells, modules, rows, cols]`: each cell's version of one factor, zero-padded to the largest."""
        rows, cols = max(f.rows for f in versions), max(f.cols for f in versions)
        drawn = modules[:1] if versions[0].shared else modules
        stack = torch.zeros(len(versions), len(drawn), rows, cols, dtype=backbone.exact)
        for k, (cell, factor) in enumerate(zip(self.cells, versions, strict=True)):
            for m, module in enumerate(drawn):
                stack[k, m, : factor.rows, : factor.cols] = draw(factor.start, factor, cell, module, backbone)
        return stack.to(backbone.device).expand(-1, len(modules), -1, -1)

    def factors(self, matrix: Tensor) -> dict[Family, dict[str, Tensor]]:
        """All factors by family and name, the trained ones as views of `matrix`."""
        found: dict[Family, dict[str, Tensor]] = {family: {} for family in self.families}
        for (family, name), values in self.frozen.items():
            found[family][name] = values
        for stack, part in zip(self.trained, matrix.split([s.size for s in self.trained], dim=1), strict=True):
            found[stack.family][stack.name] = part.unflatten(1, (len(stack.modules), stack.rows, stack.cols))
        return found

    def updates(self) -> dict[Family, Update]:
        """A and B for each family, `[cells, modules, …]`, without `scale`."""
        made = self._made(self.block.matrix)
        return made if self.start is None else {family: _since(self.start[family], now) for family, now in made.items()}

    def _made(self, matrix: Tensor) -> dict[Family, Update]:
        return {family: self.recipe.update(factors) for family, factors in self.factors(matrix).items()}

    def state(self, row: int, values: Tensor) -> dict[str, Tensor]:
        """A cell's row `[1, values]` of the matrix (or of what has its shape) without padding: `module.factor`."""
        return {name: part.clone() for name, part in self._views(row, self.factors(values))}

    def load(self, row: int, state: dict[str, Tensor], values: Tensor) -> None:
        """Put a state into such a row."""
        for name, part in self._views(row, self.factors(values)):
            part.copy_(state[name])

    def _views(self, row: int, values: dict[Family, dict[str, Tensor]]) -> list[tuple[str, Tensor]]:
        views: list[tuple[str, Tensor]] = []
        for stack in self.trained:
            own = {f.name: f for f in self.recipe.factors(self.cells[row], stack.family.shape)}[stack.name]
            padded = values[stack.family][stack.name][0]
            views += [(f"{m}.{stack.name}", padded[i, : own.rows, : own.cols]) for i, m in enumerate(stack.modules)]
        return views


class Bank:
    """All groups of a pack, and the A and B of every adapted weight for all K cells.

    The cells of a group stand together, those without an adapter last (`arranged`).
    """

    def __init__(self, cells: Sequence[Cell], backbone: Backbone) -> None:
        self.size = len(cells)
        self.device = backbone.device
        self.dtype = backbone.dtype
        adapted = [cell for cell in cells if methods.get(cell.method).adapts]
        modules = {name for cell in adapted for name in targets_of(cell, backbone)}
        self.families = backbone.families(modules)
        self.groups: list[Group] = []
        for _, members in itertools.groupby(adapted, key=_group_of):
            own = list(members)
            first = sum(len(group.cells) for group in self.groups)
            self.groups.append(Group(methods.get(own[0].method), own, first, self.families, backbone))

    def updates(self) -> dict[Family, Update]:
        """A `[slots, K, J R, in]` and B `[slots, J, K, out, R]` for each family of J linears side by side.

        B is multiplied by the method's scale. In the backbone's type; zero where a cell adapts a weight not. R is the
        largest rank of the family.
        """
        made = [group.updates() for group in self.groups]
        found: dict[Family, Update] = {}
        for family in self.families:
            own = [(group, update[family]) for group, update in zip(self.groups, made, strict=True) if family in update]
            parts = [_spread(update, group.families[family], family) for group, update in own]
            firsts, scales = [group.first for group, _ in own], [group.scale for group, _ in own]
            rank = max(part.A.shape[2] for part in parts)
            slots, side = len(family.slots), len(family.slots[0])
            a_size = (slots, self.size, side, rank, family.shape.inputs)
            b_size = (slots, side, self.size, family.shape.outputs, rank)
            a: Tensor = Assemble.apply(a_size, (1, 0, 2, 3, 4), self.dtype, firsts, None, *(p.A for p in parts))
            b: Tensor = Assemble.apply(b_size, (1, 2, 0, 3, 4), self.dtype, firsts, scales, *(p.B for p in parts))
            found[family] = Update(a.flatten(2, 3), b)
        return found

    def by_module(self, updates: Mapping[Family, Update]) -> dict[str, Update]:
        """A `[K, R, in]` and B `[K, out, R]` of each weight."""
        found: dict[str, Update] = {}
        for family, update in updates.items():
            rank = update.B.shape[-1]
            for slot, names in enumerate(family.slots):
                rows = update.A[slot].split(rank, dim=1)
                found |= {n: Update(a, b) for n, a, b in zip(names, rows, update.B[slot].unbind(), strict=True)}
        return found


def arranged(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells with those of one group together, groups as they first appear, cells without an adapter last."""
    order: dict[object, int] = {}
    for cell in cells:
        order.setdefault(_group_of(cell), len(order))
    return tuple(sorted(cells, key=lambda cell: (not methods.get(cell.method).adapts, order[_group_of(cell)])))


def targets_of(cell: Cell, backbone: Backbone) -> tuple[str, ...]:
    """The weights that a cell adapts."""
    return resolve(backbone.linears(), cell.targets or "attention")


def _group_of(cell: Cell) -> tuple[str, str | None]:
    return cell.method, cell.targets


def _since(start: Update, now: Update) -> Update:
    """B A − B₀ A₀ as (B − B₀) A + B₀ (A − A₀): zero to the bit at the start, no difference of large products."""
    return Update(torch.cat([now.A, now.A - start.A], dim=-2), torch.cat([now.B - start.B, start.B], dim=-1))


def _spread(update: Update, own: tuple[str, ...], family: Family) -> Update:
    """A and B for all weights of the family, zero for those that a group does not adapt."""
    if own == family.modules:
        return update
    index = torch.tensor([own.index(m) if m in own else len(own) for m in family.modules], device=update.A.device)
    return Update(*(torch.cat([v, torch.zeros_like(v[:, :1])], dim=1).index_select(1, index) for v in update))
