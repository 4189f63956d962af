"""The cells of one method and target set: their trained values, their frozen factors, and the operands of both.

Everything that a group trains is one matrix `[cells, values]`. A cell is a row, so the optimiser, clipping, stopping a
diverged cell and saving one are each a few operations on rows. Ranks (and the sizes a and b) are zero-padded to the
group's largest. A padded row of one factor meets a padded column of the next, so its gradient is exactly zero and
padding changes no number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine.adapters.assigned import AssignedFactor, Assignment
from lora_bench.engine.adapters.draw import draw_stack
from lora_bench.engine.adapters.noise import NoiseFactor
from lora_bench.engine.adapters.row_norms import RowNorms
from lora_bench.engine.block import Block
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.families import Family
from lora_bench.engine.encoder.product import Operands
from lora_bench.engine.encoder.targets import resolve
from lora_bench.errors import BenchError
from lora_bench.methods.recipe import Assigned, Factor, Noise, Recipe, Update


@dataclass(frozen=True)
class StackedFactor:
    """One trained factor of a group: the columns of the matrix that hold it.

    Attributes:
        name: The factor's name in the recipe.
        families: The families whose weights have it; more than one only if it is shared.
        copies: How many matrices there are: one for each weight, or one for all of them if it is shared.
        shared: Whether all weights share one matrix.
        rows: Rows of each matrix, with the padding.
        cols: Columns of each matrix, with the padding.
        lr_multiplier: What the cell's learning rate is multiplied by.
        decays: Whether weight decay applies.
    """

    name: str
    families: tuple[Family, ...]
    copies: int
    shared: bool
    rows: int
    cols: int
    lr_multiplier: float
    decays: bool

    @property
    def size(self) -> int:
        """Values per cell."""
        return self.copies * self.rows * self.cols


class Group:
    """The cells of one method and target set.

    Args:
        recipe: The method.
        cells: The cells.
        offset: The position in the pack of the first of them; the others follow.
        families: All families of the pack.
        backbone: The encoder.

    Attributes:
        families: For each family with a target of the group, the weights of it that the group adapts.
        indices: For each of these families, where the group has each of its weights: see `_index_in_group`.
        trained: The trained factors in the order of the matrix's columns.
        frozen: The frozen factors `[cells, modules, rows, cols]`, by family and name.
        assigned: The factors that consist of a trained factor's entries, if there are any.
        noise: Those of the frozen factors that are drawn anew for every step.
        scales: The scale of each cell's update, `[cells]`.
        row_norms: The norms of the rows of adapted weights by family, for methods that train them.
        block: What trains.
        unbiased: The adapted weights without a bias: their outputs cannot be shifted.
        start: The update at the start, for methods that subtract it; else None.
    """

    def __init__(
        self, recipe: Recipe, cells: Sequence[Cell], offset: int, families: Sequence[Family], backbone: Backbone
    ) -> None:
        self.recipe, self.cells, self.offset = recipe, tuple(cells), offset
        targets = frozenset(targets_of(cells[0], backbone))
        adapted = {family: tuple(name for name in family.modules if name in targets) for family in families}
        self.families = {family: modules for family, modules in adapted.items() if modules}
        self.indices = {f: _index_in_group(modules, f, backbone.device) for f, modules in self.families.items()}
        self.trained: list[StackedFactor] = []
        self.frozen: dict[tuple[Family, str], Tensor] = {}
        self.assigned: Assignment | None = None
        self.noise: list[NoiseFactor] = []
        linears = backbone.linears()
        scales = [recipe.scale(cell) for cell in cells]
        self.scales = torch.tensor(scales, device=backbone.device, dtype=backbone.exact)
        self.row_norms: dict[Family, RowNorms] = {}
        if recipe.normalises:
            self.row_norms = {
                family: RowNorms([linears[name] for name in modules], backbone.exact)
                for family, modules in self.families.items()
            }
        matrix = self._build(backbone)
        lrs = torch.tensor([cell.lr for cell in cells], device=backbone.device, dtype=backbone.exact)
        positions = torch.arange(offset, offset + len(cells), device=backbone.device)
        decays = self._by_column(matrix, [float(factor.decays) for factor in self.trained])
        lr_multipliers = self._by_column(matrix, [factor.lr_multiplier for factor in self.trained])
        self.block = Block(positions, matrix.requires_grad_(), lrs, decays, lr_multipliers)
        self.unbiased = frozenset(name for name in self.modules if linears[name].bias is None)
        self.start = self._compose(matrix.detach().clone()) if recipe.subtracts_start else None

    @property
    def positions(self) -> range:
        """The positions of the group's cells in the pack."""
        return range(self.offset, self.offset + len(self.cells))

    @property
    def modules(self) -> tuple[str, ...]:
        """The weights that these cells adapt."""
        return tuple(itertools.chain.from_iterable(self.families.values()))

    def _build(self, backbone: Backbone) -> Tensor:
        """Draw all factors: the frozen ones go to `frozen`, the trained ones make up the matrix that is returned."""
        columns: list[Tensor] = []
        assigned: list[AssignedFactor] = []
        shared: dict[tuple[object, ...], int] = {}  # the position in `trained` of what several weights train together
        for family, modules in self.families.items():
            by_cell = [self.recipe.factors(cell, family.shape) for cell in self.cells]
            for versions in zip(*by_cell, strict=True):  # one factor as each cell has it
                factor = versions[0]
                if isinstance(factor.start, Assigned):
                    assigned.append(AssignedFactor(family, modules, versions))
                    continue
                key = (factor.name, *((version.rows, version.cols) for version in versions))
                if factor.trainable and factor.shared and key in shared:
                    known = self.trained[shared[key]]
                    self.trained[shared[key]] = replace(known, families=(*known.families, family))
                    continue
                values = draw_stack(versions, self.cells, modules, backbone)
                if isinstance(factor.start, Noise):
                    self.noise.append(NoiseFactor(modules, self.cells, versions, values))
                if not factor.trainable:
                    self.frozen[family, factor.name] = values
                    continue
                values = values[:, :1] if factor.shared else values
                shared.setdefault(key, len(self.trained))
                copies, rows, cols = values.shape[1:]
                self.trained.append(
                    StackedFactor(factor.name, (family,), copies, factor.shared, rows, cols, factor.rate, factor.decays)
                )
                columns.append(values.flatten(1))
        self._require_equal_ties()
        if assigned:
            source = [self.factor_of(row, self._source(assigned[0].versions[0])) for row in range(len(self.cells))]
            order = [name for name in backbone.linears() if name in self.modules]
            self.assigned = Assignment(source, assigned, self.cells, order, self.scales)
        return torch.cat(columns, dim=1)

    def _source(self, factor: Factor) -> StackedFactor:
        """The trained factor whose entries this one consists of."""
        assert isinstance(factor.start, Assigned)
        return next(stack for stack in self.trained if stack.name == factor.start.to)

    def _require_equal_ties(self) -> None:
        """Refuse a group in which a factor has one size for two shapes of weights in some of the cells but not in all.

        If the factor is shared and trains, it would be one matrix for both shapes in such a cell by itself, but two
        in this pack, and results must not depend on the pack. The recipe's `layout` can keep such cells apart.
        """
        for row in range(len(self.cells)):
            sizes = {
                (f.name, f.rows, f.cols) for stack in self.trained if stack.shared for f in [self.factor_of(row, stack)]
            }
            if len(sizes) < sum(stack.shared for stack in self.trained):
                raise ValueError(f"{self.recipe.name}: cells of one layout share factors among different weights")

    def factor_of(self, row: int, stack: StackedFactor) -> Factor:
        """A trained factor as the recipe describes it for one cell."""
        return next(factor for factor in self.factors_of(row, stack.families[0]) if factor.name == stack.name)

    def _by_column(self, matrix: Tensor, values: Sequence[float]) -> Tensor | None:
        """`[values]`, from one number per trained factor; None if all are 1."""
        if set(values) == {1.0}:
            return None
        return torch.cat([matrix.new_full((f.size,), v) for f, v in zip(self.trained, values, strict=True)])

    def factors(self, matrix: Tensor) -> dict[Family, dict[str, Tensor]]:
        """All factors `[cells, modules, rows, cols]` by family and name, the trained ones as views of `matrix`."""
        factors = self._stored_factors(matrix)
        if self.assigned is not None:
            source = self._source(self.assigned.factors[0].versions[0])
            theta = next(values for stack, values in self.stacks(matrix) if stack is source)
            for assigned, values in self.assigned.values(theta[:, 0, 0]):
                factors[assigned.family][assigned.name] = values
        return factors

    def _stored_factors(self, matrix: Tensor) -> dict[Family, dict[str, Tensor]]:
        """The trained and the frozen factors; `matrix` may have the row of one cell alone."""
        factors: dict[Family, dict[str, Tensor]] = {family: {} for family in self.families}
        for (family, name), values in self.frozen.items():
            factors[family][name] = values
        for stack, values in self.stacks(matrix):
            for family in stack.families:
                # Gradients of a shared factor are summed over its weights by the backward pass of `expand`.
                count = len(self.families[family])
                factors[family][stack.name] = values.expand(-1, count, -1, -1) if stack.shared else values
        return factors

    def stacks(self, matrix: Tensor) -> list[tuple[StackedFactor, Tensor]]:
        """The trained factors with their values `[cells, copies, rows, cols]`, as views of `matrix`."""
        parts = matrix.split([stack.size for stack in self.trained], dim=1)
        return [
            (stack, part.unflatten(1, (stack.copies, stack.rows, stack.cols)))
            for stack, part in zip(self.trained, parts, strict=True)
        ]

    def real(self) -> dict[Family, dict[str, Tensor]]:
        """1 where a trained factor has values, 0 where it is padded: `[cells, 1, rows, cols]` by family and name."""
        real: dict[Family, dict[str, Tensor]] = {family: {} for family in self.families}
        for stack in self.trained:
            mask = self.scales.new_zeros(len(self.cells), 1, stack.rows, stack.cols)
            for row in range(len(self.cells)):
                factor = self.factor_of(row, stack)
                mask[row, 0, : factor.rows, : factor.cols] = 1
            for family in stack.families:
                real[family][stack.name] = mask
        return real

    def updates(self) -> dict[Family, Operands]:
        """The update of each family, `[cells, modules, …]`, B without the scale."""
        updates = self._compose(self.block.matrix)
        if self.start is None:
            return updates
        return {family: _since_start(self.start[family], update) for family, update in updates.items()}

    def _compose(self, matrix: Tensor) -> dict[Family, Operands]:
        """The recipe's update of each family from its factors."""
        factors = self.factors(matrix).items()
        return {family: self._operands(family, self.recipe.update(by_name)) for family, by_name in factors}

    def _operands(self, family: Family, update: Update) -> Operands:
        """The recipe's update in the encoder's form: A and B of rank 0 where it has none, gain and stretch minus 1."""
        like, count = self.scales, (len(self.cells), len(self.families[family]))
        a = like.new_zeros(*count, 0, family.shape.inputs) if update.A is None else update.A
        b = like.new_zeros(*count, family.shape.outputs, 0) if update.B is None else update.B
        stretch = None if update.stretch is None else update.stretch - 1
        if update.shift is not None and self.unbiased:
            raise BenchError(
                f"'{self.recipe.name}' shifts outputs, but {min(self.unbiased)} has no bias.",
                "Use another method, or --targets that have one.",
            )
        if family in self.row_norms and update.gain is not None:
            gain, shift = self.row_norms[family].gain_and_shift(update.gain, Operands(a, b), self.scales)
            return Operands(a, b, gain, stretch, shift)
        return Operands(a, b, None if update.gain is None else update.gain - 1, stretch, update.shift)

    def state(self, row: int, values: Tensor) -> dict[str, Tensor]:
        """What a saved adapter of a cell holds, without padding: `module.factor` → `[rows, cols]` on the CPU.

        A trained factor that weights share is held once, as `shared.<rows>x<cols>.<factor>`.

        Args:
            row: The cell's row in the group.
            values: The row `[1, values]` of the matrix, or of another tensor of its shape.
        """
        return {name: part.clone().cpu() for name, part in self._saved_views(row, values)}

    def load(self, row: int, state: dict[str, Tensor], values: Tensor) -> None:
        """Write a state into such a row, and into the cell's frozen factors that are saved."""
        for name, part in self._saved_views(row, values):
            part.copy_(state[name])

    def params(self, row: int) -> int:
        """How many values one cell trains."""
        factors = [(stack, self.factor_of(row, stack)) for stack in self.trained]
        return sum(factor.rows * factor.cols * stack.copies for stack, factor in factors)

    def factors_of(self, row: int, family: Family) -> tuple[Factor, ...]:
        """One cell's factors of a family, as the recipe describes them."""
        return self.recipe.factors(self.cells[row], family.shape)

    def _saved_views(self, row: int, values: Tensor) -> list[tuple[str, Tensor]]:
        """The factors of one cell that are saved, by name, as views without padding."""
        views: dict[str, Tensor] = {}
        factors = self._stored_factors(values)
        for family, modules in self.families.items():
            for factor in self.factors_of(row, family):
                if factor.saved:
                    # `values` has the cell's row alone, but frozen factors have the rows of all cells.
                    padded = factors[family][factor.name][0 if factor.trainable else row]
                    for index, module in enumerate(names_of(factor, modules)):
                        views[f"{module}.{factor.name}"] = padded[index, : factor.rows, : factor.cols]
        return list(views.items())


def names_of(factor: Factor, modules: Sequence[str]) -> Sequence[str]:
    """The names under which a saved adapter holds a factor: those of its weights, or one if they share and train it."""
    return [f"shared.{factor.rows}x{factor.cols}"] if factor.trainable and factor.shared else modules


def targets_of(cell: Cell, backbone: Backbone) -> tuple[str, ...]:
    """The weights that a cell adapts."""
    return resolve(backbone.linears(), cell.targets or "attention")


def _index_in_group(modules: Sequence[str], family: Family, device: torch.device) -> Tensor | None:
    """The position of each weight of the family among the group's `modules`, their count for one that is not there.

    None if the group adapts all weights of the family.
    """
    if tuple(modules) == family.modules:
        return None
    positions = [modules.index(name) if name in modules else len(modules) for name in family.modules]
    return torch.tensor(positions, device=device)


def _since_start(start: Operands, now: Operands) -> Operands:
    """The change of the update since the start, as operands of twice the rank.

    B A − B₀ A₀ = (B − B₀) A + B₀ (A − A₀): exactly zero at the start, and no difference of two large products.
    """
    a, b = torch.cat([now.A, now.A - start.A], dim=-2), torch.cat([now.B - start.B, start.B], dim=-1)
    return now._replace(A=a, B=b)
