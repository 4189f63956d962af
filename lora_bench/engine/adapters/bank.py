"""The bank: the factors of every cell of a pack, group by group, as the operands of the encoder's products."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lora_bench import methods
from lora_bench.cell import Cell
from lora_bench.engine.adapters.assemble import Assemble
from lora_bench.engine.adapters.group import Group, targets_of
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.families import Family
from lora_bench.engine.encoder.product import Operands


class Bank:
    """All groups of a pack, and the operands of every adapted weight for all K cells.

    Args:
        cells: The pack's cells as `arrange` orders them: the cells of a group adjacent, those without an adapter last.
        backbone: The encoder.
    """

    def __init__(self, cells: Sequence[Cell], backbone: Backbone) -> None:
        self.size = len(cells)
        self.device = backbone.device
        self.dtype = backbone.dtype
        adapted = [cell for cell in cells if methods.of(cell).adapts]
        modules = {name for cell in adapted for name in targets_of(cell, backbone)}
        self.families = backbone.families(modules)
        self.groups: list[Group] = []
        for _, run in itertools.groupby(adapted, key=_group_key):
            members = list(run)
            offset = sum(len(group.cells) for group in self.groups)
            self.groups.append(Group(methods.of(members[0]), members, offset, self.families, backbone))

    def updates(self, dtype: torch.dtype | None = None) -> dict[Family, Operands]:
        """The operands of each family, composed from the factors as they are now.

        Args:
            dtype: The type of the operands; the backbone's by default.

        Returns:
            For a family of L products of J linears: A `[L, K, J · R, in]`, B `[L, J, K, out, R]`, gain and shift
            `[L, J, K, 1, out]`, stretch `[L, K, 1, in]`. R is the largest rank of the family. Zero where a cell does
            not adapt a weight.
        """
        group_updates = [group.updates() for group in self.groups]
        operands: dict[Family, Operands] = {}
        for family in self.families:
            parts = [
                (group, _expand(update[family], group.indices[family]))
                for group, update in zip(self.groups, group_updates, strict=True)
                if family in update
            ]
            a, b = self._low_rank(family, parts, dtype or self.dtype)
            gain, stretch, shift = (
                self._vector(family, [(g, v) for g, p in parts if (v := getattr(p, name)) is not None], dtype)
                for name in ("gain", "stretch", "shift")
            )
            if stretch is not None and stretch.shape[1] > 1:
                raise ValueError(f"{family.products[0]} read one input: it cannot be stretched for one of them")
            operands[family] = Operands(a, b, gain, None if stretch is None else stretch[:, 0], shift)
        return operands

    def _low_rank(
        self, family: Family, parts: Sequence[tuple[Group, Operands]], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """A and B of a family for all cells, zero-padded to the largest rank; B is multiplied by each cell's scale."""
        parts = [(group, part) for group, part in parts if part.A.shape[2]]
        rank = max((part.A.shape[2] for _, part in parts), default=0)
        products, linears = len(family.products), len(family.products[0])
        a_size = (products, self.size, linears, rank, family.shape.inputs)
        b_size = (products, linears, self.size, family.shape.outputs, rank)
        if not rank:
            a, b = (torch.zeros(size, dtype=dtype, device=self.device) for size in (a_size, b_size))
            return a.flatten(2, 3), b
        offsets, scales = [group.offset for group, _ in parts], [group.scales for group, _ in parts]
        a = Assemble.apply(a_size, (1, 0, 2, 3, 4), dtype, offsets, None, *(part.A for _, part in parts))
        b = Assemble.apply(b_size, (1, 2, 0, 3, 4), dtype, offsets, scales, *(part.B for _, part in parts))
        return a.flatten(2, 3), b

    def _vector(
        self, family: Family, parts: Sequence[tuple[Group, Tensor]], dtype: torch.dtype | None
    ) -> Tensor | None:
        """One tensor `[L, J, K, 1, values]` of the groups' `[cells, modules, values, 1]`; None if no group has one."""
        if not parts:
            return None
        size = (len(family.products), len(family.products[0]), self.size, *parts[0][1].shape[2:])
        offsets = [group.offset for group, _ in parts]
        assembled: Tensor = Assemble.apply(
            size, (1, 2, 0, 3, 4), dtype or self.dtype, offsets, None, *(part for _, part in parts)
        )
        return assembled.mT

    def by_module(self, updates: Mapping[Family, Operands]) -> dict[str, Operands]:
        """The operands of each weight by its name, as views of `updates`.

        A `[K, R, in]`, B `[K, out, R]`, gain and shift `[K, 1, out]`, stretch `[K, 1, in]`.
        """
        operands: dict[str, Operands] = {}
        for family, update in updates.items():
            rank = update.B.shape[-1]
            for product, names in enumerate(family.products):
                for index, name in enumerate(names):
                    operands[name] = Operands(
                        update.A[product, :, index * rank : (index + 1) * rank],
                        update.B[product, index],
                        None if update.gain is None else update.gain[product, index],
                        None if update.stretch is None else update.stretch[product],
                        None if update.shift is None else update.shift[product, index],
                    )
        return operands


def arrange(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells in a pack's order: those of one group adjacent, groups as they first appear, unadapted cells last."""
    order: dict[object, int] = {}
    for cell in cells:
        order.setdefault(_group_key(cell), len(order))
    return tuple(sorted(cells, key=lambda cell: (not methods.of(cell).adapts, order[_group_key(cell)])))


def _group_key(cell: Cell) -> tuple[object, ...]:
    """What the cells of one group have in common."""
    return cell.method, cell.targets, methods.of(cell).layout(cell)


def _expand(update: Operands, index: Tensor | None) -> Operands:
    """A group's operands for all weights of the family, zero for those that it does not adapt.

    Args:
        update: The operands of the weights that the group adapts, `[cells, modules, …]`.
        index: For each weight of the family its position among the group's, or the group's count if it is not adapted.
            None if the group adapts all.
    """
    if index is None:
        return update

    def expand(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        with_zero = torch.cat([values, torch.zeros_like(values[:, :1])], dim=1)
        return with_zero.index_select(1, index)

    expanded: Operands = Operands(*map(expand, update))  # type: ignore[arg-type]  # A and B are never None
    return expanded
