"""The banks: every factor of every cell of a pack, stacked.

Cells of one method and target set form a group. All that a group trains is one matrix `[cells, values]`: a cell is a
row, so the optimiser, clipping, freezing a diverged cell and saving one are each a few operations on rows. Ranks (and
a, b) are zero-padded to the group's largest. A padded row of one factor meets a padded column of the next, so its
gradient is exactly zero and padding changes no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.engine.backbone import Backbone
from lora_bench.engine.bases import basis
from lora_bench.engine.targets import resolve
from lora_bench.methods.recipe import Basis, Factor, Normal, Recipe, Shape, Start, Uniform, Update, Zeros, rank_of


@dataclass
class Block:
    """Values that train together: `matrix[i]` belongs to the pack's cell `cells[i]`.

    `decays` marks the columns that weight decay applies to (None: all). `rates` are the learning rates by row.
    """

    cells: Tensor  # [rows], positions in the pack
    matrix: Tensor  # [rows, values], a leaf
    rates: Tensor  # [rows]
    decays: Tensor | None = None  # [values]


@dataclass(frozen=True)
class Stack:
    """One factor of a group on all weights of one shape, padded to `rows` × `cols`."""

    name: str
    shape: Shape
    modules: tuple[str, ...]
    rows: int
    cols: int

    @property
    def size(self) -> int:
        """Values a cell."""
        return len(self.modules) * self.rows * self.cols


def draw(start: Start, factor: Factor, cell: Cell, module: str, backbone: Backbone) -> Tensor:
    """A factor's first value, `[rows, cols]` on the CPU: a function of the cell's seed, the module and the factor."""
    key = (cell.seed, module, factor.name)
    match start:
        case Zeros():
            return torch.zeros(factor.rows, factor.cols, dtype=torch.float64)
        case Normal(std):
            return torch.from_numpy(randomness.normal(factor.rows, factor.cols, *key) * std)
        case Uniform(bound):
            return torch.from_numpy(randomness.uniform(factor.rows, factor.cols, *key) * bound)
        case Basis(kind):
            return basis(backbone, module, kind, rank_of(cell)).double().cpu()


class Group:
    """The cells of one method and target set: their trained matrix, their frozen factors, and their A and B."""

    def __init__(self, recipe: Recipe, cells: Sequence[Cell], places: Sequence[int], backbone: Backbone) -> None:
        self.recipe, self.cells, self.places = recipe, tuple(cells), tuple(places)
        linears = backbone.linears()
        self.modules = resolve(linears, cells[0].targets or "attention")
        self.shapes: dict[Shape, tuple[str, ...]] = {}
        for name in self.modules:
            shape = Shape(*linears[name].weight.shape)
            self.shapes[shape] = (*self.shapes.get(shape, ()), name)
        self.trained: list[Stack] = []
        self.frozen: dict[tuple[Shape, str], Tensor] = {}
        matrix = self._build(backbone)
        rates = torch.tensor([cell.lr for cell in cells], device=backbone.device, dtype=backbone.exact)
        self.block = Block(torch.tensor(places, device=backbone.device), matrix.requires_grad_(), rates)
        self.scale = torch.tensor(
            [(cell.alpha or rank_of(cell)) / rank_of(cell) for cell in cells],
            device=backbone.device, dtype=backbone.exact,
        ).view(-1, 1, 1, 1)  # fmt: skip

    def _build(self, backbone: Backbone) -> Tensor:
        columns: list[Tensor] = []
        for shape, modules in self.shapes.items():
            by_cell = [self.recipe.factors(cell, shape) for cell in self.cells]
            for versions in zip(*by_cell, strict=True):
                values = self._stack(versions, modules, backbone)
                if versions[0].trainable:
                    self.trained.append(Stack(versions[0].name, shape, modules, *values.shape[2:]))
                    columns.append(values.flatten(1))
                else:
                    self.frozen[shape, versions[0].name] = values
        return torch.cat(columns, dim=1)

    def _stack(self, versions: Sequence[Factor], modules: Sequence[str], backbone: Backbone) -> Tensor:
        """`[cells, modules, rows, cols]`: each cell's version of one factor, zero-padded to the largest."""
        rows, cols = max(f.rows for f in versions), max(f.cols for f in versions)
        stack = torch.zeros(len(versions), len(modules), rows, cols, dtype=backbone.exact)
        for k, (cell, factor) in enumerate(zip(self.cells, versions, strict=True)):
            for m, module in enumerate(modules):
                stack[k, m, : factor.rows, : factor.cols] = draw(factor.start, factor, cell, module, backbone)
        return stack.to(backbone.device)

    def factors(self, matrix: Tensor) -> dict[Shape, dict[str, Tensor]]:
        """All factors by shape and name, the trained ones as views of `matrix`."""
        found: dict[Shape, dict[str, Tensor]] = {shape: {} for shape in self.shapes}
        for (shape, name), values in self.frozen.items():
            found[shape][name] = values
        for stack, part in zip(self.trained, matrix.split([s.size for s in self.trained], dim=1), strict=True):
            found[stack.shape][stack.name] = part.unflatten(1, (len(stack.modules), stack.rows, stack.cols))
        return found

    def updates(self, matrix: Tensor) -> dict[Shape, Update]:
        """A and B for each shape, `[cells, modules, …]`; alpha / rank is in B."""
        made: dict[Shape, Update] = {}
        for shape, factors in self.factors(matrix).items():
            update = self.recipe.update(factors)
            made[shape] = Update(update.A, update.B * self.scale)
        return made

    def state(self, row: int) -> dict[str, Tensor]:
        """What one cell trains, without padding: `module.factor` → `[rows, cols]` on the CPU."""
        values = self.factors(self.block.matrix.detach()[row : row + 1])
        return {name: part.clone().cpu() for name, part in self._views(row, values)}

    def load(self, row: int, state: dict[str, Tensor]) -> None:
        """Put saved values in the place of a cell's."""
        values = self.factors(self.block.matrix.detach()[row : row + 1])
        for name, part in self._views(row, values):
            part.copy_(state[name])

    def _views(self, row: int, values: dict[Shape, dict[str, Tensor]]) -> list[tuple[str, Tensor]]:
        views: list[tuple[str, Tensor]] = []
        for stack in self.trained:
            own = {f.name: f for f in self.recipe.factors(self.cells[row], stack.shape)}[stack.name]
            padded = values[stack.shape][stack.name][0]
            views += [(f"{m}.{stack.name}", padded[i, : own.rows, : own.cols]) for i, m in enumerate(stack.modules)]
        return views


class Bank:
    """All groups of a pack, and the A and B of every adapted module for all K cells."""

    def __init__(self, cells: Sequence[Cell], backbone: Backbone) -> None:
        self.size = len(cells)
        self.device = backbone.device
        self.dtype = backbone.dtype
        places: dict[tuple[str, str | None], list[int]] = {}
        for place, cell in enumerate(cells):
            if methods.get(cell.method).adapts:
                places.setdefault((cell.method, cell.targets), []).append(place)
        self.groups = [
            Group(methods.get(method), [cells[i] for i in members], members, backbone)
            for (method, _), members in places.items()
        ]
        self.modules = _union(self.groups)
        self.order = self._order()

    def _order(self) -> Tensor:
        """For each cell its row in the groups laid end to end; cells without an adapter come last."""
        placed = [place for group in self.groups for place in group.places]
        bare = sorted(set(range(self.size)) - set(placed))
        order = torch.empty(self.size, dtype=torch.long)
        order[torch.tensor(placed + bare, dtype=torch.long)] = torch.arange(self.size)
        return order.to(self.device)

    def updates(self, matrices: Sequence[Tensor]) -> dict[str, Update]:
        """A `[K, R, in]` and B `[K, out, R]` by module, in the backbone's type; zero where a cell adapts it not."""
        made = [group.updates(matrix) for group, matrix in zip(self.groups, matrices, strict=True)]
        found: dict[str, Update] = {}
        for shape, modules in self.modules.items():
            ranks = [parts[shape].A.shape[2] for parts in made if shape in parts]
            a_parts, b_parts = [], []
            for group, parts in zip(self.groups, made, strict=True):
                a, b = self._aligned(group, parts.get(shape), shape, max(ranks))
                a_parts.append(a)
                b_parts.append(b)
            a, b = self._whole(a_parts), self._whole(b_parts)
            found |= {m: Update(*ab) for m, *ab in zip(modules, a.unbind(1), b.unbind(1), strict=True)}
        return found

    def _aligned(self, group: Group, update: Update | None, shape: Shape, rank: int) -> tuple[Tensor, Tensor]:
        """A group's A and B padded to `rank` and to all modules of the shape."""
        wanted = self.modules[shape]
        if update is None:
            cells = len(group.cells)
            return (
                torch.zeros(cells, len(wanted), rank, shape.inputs, device=self.device, dtype=self.dtype),
                torch.zeros(cells, len(wanted), shape.outputs, rank, device=self.device, dtype=self.dtype),
            )
        a = pad(update.A.to(self.dtype), (0, 0, 0, rank - update.A.shape[2]))
        b = pad(update.B.to(self.dtype), (0, rank - update.B.shape[3]))
        own = group.shapes[shape]
        if own == wanted:
            return a, b
        index = torch.tensor([own.index(m) if m in own else len(own) for m in wanted], device=self.device)
        return _spread(a, index), _spread(b, index)

    def _whole(self, parts: list[Tensor]) -> Tensor:
        """The groups end to end, filled up with zeros for bare cells, in the pack's order."""
        joined = torch.cat(parts)
        missing = self.size - joined.shape[0]
        if missing:
            joined = torch.cat([joined, joined.new_zeros(missing, *joined.shape[1:])])
        in_order = len(self.groups) == 1 and not missing
        return joined if in_order else joined.index_select(0, self.order)


def _union(groups: Sequence[Group]) -> dict[Shape, tuple[str, ...]]:
    """The modules that any group adapts, by shape."""
    found: dict[Shape, list[str]] = {}
    for group in groups:
        for shape, modules in group.shapes.items():
            known = found.setdefault(shape, [])
            known += [module for module in modules if module not in known]
    return {shape: tuple(modules) for shape, modules in found.items()}


def _spread(values: Tensor, index: Tensor) -> Tensor:
    """Select along the modules, where index `len` means a module of zeros."""
    return torch.cat([values, torch.zeros_like(values[:, :1])], dim=1).index_select(1, index)
