"""The cells of one method and target set: their trained values, their frozen factors, and the operands of both.

Everything that a group trains is one matrix `[cells, values]`. A cell is a row, so the optimiser, clipping, stopping a
diverged cell and saving one are each a few operations on rows. Ranks (and the sizes a and b) are zero-padded to the
group's largest. A padded row of one factor meets a padded column of the next, so its gradient is exactly zero and
padding changes no number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine import randomness
from lora_bench.engine.adapters.bases import basis
from lora_bench.engine.adapters.row_norms import RowNorms
from lora_bench.engine.block import Block
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.families import Family
from lora_bench.engine.encoder.product import Operands
from lora_bench.engine.encoder.targets import resolve
from lora_bench.errors import BenchError
from lora_bench.methods.recipe import (
    Basis,
    Blocks,
    Constant,
    Factor,
    FirstStep,
    Fold,
    Fresh,
    LogUniform,
    Noise,
    Normal,
    Orthonormal,
    Recipe,
    Uniform,
    Update,
    Zeros,
)


@dataclass(frozen=True)
class StackedFactor:
    """One trained factor of a group: the columns of the matrix that hold it.

    Attributes:
        name: The factor's name in the recipe.
        family: The family of the adapted weights.
        modules: The adapted weights, each with a matrix of its own.
        rows: Rows of each matrix, with the padding.
        cols: Columns of each matrix, with the padding.
        lr_multiplier: What the cell's learning rate is multiplied by.
        decays: Whether weight decay applies.
    """

    name: str
    family: Family
    modules: tuple[str, ...]
    rows: int
    cols: int
    lr_multiplier: float
    decays: bool

    @property
    def size(self) -> int:
        """Values per cell."""
        return len(self.modules) * self.rows * self.cols


def draw(factor: Factor, seed: int, module: str, backbone: Backbone) -> Tensor:
    """A factor's first value, `[rows, cols]` in float64 on the CPU.

    A function of the cell's seed, the module and the factor's name; of a shared factor, the seed, its size and name.
    """
    key = (seed, f"{factor.rows}x{factor.cols}" if factor.shared else module, factor.name)
    match factor.start:
        case Zeros() | FirstStep() | Noise():  # the first step's values are written when the training begins
            return torch.zeros(factor.rows, factor.cols, dtype=torch.float64)
        case Constant(value):
            return torch.full((factor.rows, factor.cols), value, dtype=torch.float64)
        case Fold() | Blocks():
            rows, columns = torch.arange(factor.rows)[:, None], torch.arange(factor.cols)
            is_fold = isinstance(factor.start, Fold)
            return (rows == (columns % factor.rows if is_fold else columns * factor.rows // factor.cols)).double()
        case Normal(std):
            return torch.from_numpy(randomness.normal(factor.rows, factor.cols, *key) * std)
        case Uniform(bound):
            return torch.from_numpy(randomness.uniform(factor.rows, factor.cols, *key) * bound)
        case LogUniform(low, high):
            unit = torch.from_numpy(randomness.uniform(factor.rows, factor.cols, *key) + 1) / 2
            return torch.log(unit * (high - low) + low)
        case Fresh(part, columns):
            layer = torch.from_numpy(randomness.uniform(factor.rows, columns, seed, module, "fresh") * columns**-0.5)
            _, values, directions = torch.linalg.svd(layer, full_matrices=False)
            start: Tensor = directions if part == "directions" else values.log()[:, None]
            return start
        case Orthonormal(std):
            # A unit vector of n entries has entries of size 1 / √n.
            longer = max(factor.rows, factor.cols)
            return torch.from_numpy(randomness.orthonormal(factor.rows, factor.cols, *key) * (std * longer**0.5))
        case Basis(decomposition, side, gain):
            count = factor.rows if side == "input" else factor.cols
            return basis(backbone, module, decomposition, side, count).double().cpu() * gain


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
        indices: For each of these families the `index` of `bank._expand`.
        trained: The trained factors in the order of the matrix's columns.
        frozen: The frozen factors `[cells, modules, rows, cols]`, by family and name.
        noise: Those of the frozen factors that are noise.
        scales: The scale of each cell's update, `[cells]`.
        row_norms: By family, for methods that train the norms of rows.
        block: What trains.
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
        self.noise: dict[tuple[Family, str], Tensor] = {}
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
        for family, modules in self.families.items():
            by_cell = [self.recipe.factors(cell, family.shape) for cell in self.cells]
            for versions in zip(*by_cell, strict=True):  # one factor as each cell has it
                values, factor = self._stack(versions, modules, backbone), versions[0]
                if factor.trainable:
                    rows, cols = values.shape[2:]
                    stacked = StackedFactor(factor.name, family, modules, rows, cols, factor.rate, factor.decays)
                    self.trained.append(stacked)
                    columns.append(values.flatten(1))
                else:
                    self.frozen[family, factor.name] = values
                    if isinstance(factor.start, Noise):
                        self.noise[family, factor.name] = values
        return torch.cat(columns, dim=1)

    def _by_column(self, matrix: Tensor, values: Sequence[float]) -> Tensor | None:
        """`[values]`, from one number per trained factor; None if all are 1."""
        if set(values) == {1.0}:
            return None
        return torch.cat([matrix.new_full((f.size,), v) for f, v in zip(self.trained, values, strict=True)])

    def _stack(self, versions: Sequence[Factor], modules: Sequence[str], backbone: Backbone) -> Tensor:
        """The first values of one factor for all cells and modules, zero-padded to the largest.

        Args:
            versions: The factor as each cell has it.
            modules: The weights.
            backbone: The encoder.

        Returns:
            `[cells, modules, rows, cols]`. What is the same for all modules, or for all cells, lies in memory once
            (with stride 0).
        """
        rows, cols = max(f.rows for f in versions), max(f.cols for f in versions)
        drawn_modules = modules[:1] if versions[0].shared else modules
        same_for_all = isinstance(versions[0].start, Basis) and not versions[0].trainable and len(set(versions)) == 1
        drawn_cells = self.cells[:1] if same_for_all else self.cells
        rows_of: dict[tuple[Factor, int], list[int]] = {}  # cells with one factor and seed share one draw
        for row, (cell, factor) in enumerate(zip(drawn_cells, versions, strict=False)):
            rows_of.setdefault((factor, cell.seed), []).append(row)
        stack = torch.zeros(len(drawn_cells), len(drawn_modules), rows, cols, dtype=backbone.exact)
        for index, module in enumerate(drawn_modules):
            for (factor, seed), sharing in rows_of.items():
                stack[sharing, index, : factor.rows, : factor.cols] = draw(factor, seed, module, backbone).to(stack)
        return stack.to(backbone.device).expand(len(versions), len(modules), -1, -1)

    def factors(self, matrix: Tensor) -> dict[Family, dict[str, Tensor]]:
        """All factors `[cells, modules, rows, cols]` by family and name, the trained ones as views of `matrix`."""
        factors: dict[Family, dict[str, Tensor]] = {family: {} for family in self.families}
        for (family, name), values in self.frozen.items():
            factors[family][name] = values
        for stacked, part in zip(self.trained, matrix.split([f.size for f in self.trained], dim=1), strict=True):
            shape = len(stacked.modules), stacked.rows, stacked.cols
            factors[stacked.family][stacked.name] = part.unflatten(1, shape)
        return factors

    def draw_noise(self, *key: str | int) -> None:
        """Write standard normals into the noise, a function of this key, the cell's seed and sizes, and the module."""
        for (family, name), values in self.noise.items():
            drawn: dict[tuple[int, int, int], Tensor] = {}
            for row, cell in enumerate(self.cells):
                (factor,) = (each for each in self.factors_of(row, family) if each.name == name)
                size = factor.rows, factor.cols, cell.seed
                if size not in drawn:
                    parts = [randomness.normal(*size[:2], cell.seed, m, name, *key) for m in self.families[family]]
                    drawn[size] = torch.from_numpy(np.stack(parts)).to(values)
                values[row, :, : factor.rows, : factor.cols] = drawn[size]

    def real_entries(self) -> Tensor:
        """`[cells, values]`: 1 for the entries of the matrix that a cell has, 0 for those that pad it."""
        entries = torch.zeros_like(self.block.matrix.detach())
        for row in range(len(self.cells)):
            factors = self.factors(entries[row : row + 1])
            for family in self.families:
                for factor in self.factors_of(row, family):
                    if factor.trainable:
                        factors[family][factor.name][:, :, : factor.rows, : factor.cols] = 1
        return entries

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
        """The recipe's update in the encoder's form: A and B always, gain and stretch less 1."""
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
        return sum(
            factor.rows * factor.cols * len(modules)
            for family, modules in self.families.items()
            for factor in self.factors_of(row, family)
            if factor.trainable
        )

    def factors_of(self, row: int, family: Family) -> tuple[Factor, ...]:
        """One cell's factors of a family, as the recipe describes them."""
        return self.recipe.factors(self.cells[row], family.shape)

    def _saved_views(self, row: int, values: Tensor) -> list[tuple[str, Tensor]]:
        """The factors of one cell that are saved, by name, as views without padding."""
        views: list[tuple[str, Tensor]] = []
        factors = self.factors(values)
        for family, modules in self.families.items():
            for factor in self.factors_of(row, family):
                if factor.saved:
                    # `values` has the cell's row alone, but frozen factors have the rows of all cells.
                    padded = factors[family][factor.name][0 if factor.trainable else row]
                    for index, module in enumerate(modules):
                        views.append((f"{module}.{factor.name}", padded[index, : factor.rows, : factor.cols]))
        return views


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
