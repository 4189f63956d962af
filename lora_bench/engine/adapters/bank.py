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

    def updates(self, dtype: torch.dtype | None = None) -> dict[Family, Operands]:
        """The operands of each family of J linears side by side, in the backbone's type unless another is given.

        A `[slots, K, J R, in]`, B `[slots, J, K, out, R]`, gain and shift `[slots, J, K, 1, out]`, stretch
        `[slots, K, 1, in]`; zero where a cell adapts a weight not. R is the largest rank of the family.
        """
        made = [group.updates() for group in self.groups]
        found: dict[Family, Operands] = {}
        for family in self.families:
            own = [(group, update[family]) for group, update in zip(self.groups, made, strict=True) if family in update]
            parts = [(group, _spread(update, group.indices[family])) for group, update in own]
            a, b = self._low_rank(family, parts, dtype or self.dtype)
            gain, stretch, shift = (
                self._vector(family, [(g, v) for g, p in parts if (v := getattr(p, name)) is not None], dtype)
                for name in ("gain", "stretch", "shift")
            )
            if stretch is not None and stretch.shape[1] > 1:
                raise ValueError(f"{family.slots[0]} read one input: it cannot be stretched for one of them")
            found[family] = Operands(a, b, gain, None if stretch is None else stretch[:, 0], shift)
        return found

    def _low_rank(
        self, family: Family, parts: Sequence[tuple[Group, Operands]], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        parts = [(group, part) for group, part in parts if part.A.shape[2]]
        rank = max((part.A.shape[2] for _, part in parts), default=0)
        slots, side = len(family.slots), len(family.slots[0])
        a_size = (slots, self.size, side, rank, family.shape.inputs)
        b_size = (slots, side, self.size, family.shape.outputs, rank)
        if not rank:
            a, b = (torch.zeros(size, dtype=dtype, device=self.device) for size in (a_size, b_size))
            return a.flatten(2, 3), b
        firsts, scales = [group.first for group, _ in parts], [group.scale for group, _ in parts]
        a = Assemble.apply(a_size, (1, 0, 2, 3, 4), dtype, firsts, None, *(p.A for _, p in parts))
        b = Assemble.apply(b_size, (1, 2, 0, 3, 4), dtype, firsts, scales, *(p.B for _, p in parts))
        return a.flatten(2, 3), b

    def _vector(
        self, family: Family, parts: Sequence[tuple[Group, Tensor]], dtype: torch.dtype | None
    ) -> Tensor | None:
        """`[slots, J, K, 1, values]` from `[cells, modules, values, 1]` of the groups that have some."""
        if not parts:
            return None
        size = (len(family.slots), len(family.slots[0]), self.size, *parts[0][1].shape[2:])
        firsts = [group.first for group, _ in parts]
        made: Tensor = Assemble.apply(
            size, (1, 2, 0, 3, 4), dtype or self.dtype, firsts, None, *(part for _, part in parts)
        )
        return made.mT

    def by_module(self, updates: Mapping[Family, Operands]) -> dict[str, Operands]:
        """A `[K, R, in]`, B `[K, out, R]`, gain and shift `[K, 1, out]`, stretch `[K, 1, in]` of each weight."""
        found: dict[str, Operands] = {}
        for family, update in updates.items():
            rank = update.B.shape[-1]
            for slot, names in enumerate(family.slots):
                for place, name in enumerate(names):
                    found[name] = Operands(
                        update.A[slot, :, place * rank : (place + 1) * rank], update.B[slot, place],
                        None if update.gain is None else update.gain[slot, place],
                        None if update.stretch is None else update.stretch[slot],
                        None if update.shift is None else update.shift[slot, place],
                    )  # fmt: skip
        return found


def arranged(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells with those of one group together, groups as they first appear, cells without an adapter last."""
    order: dict[object, int] = {}
    for cell in cells:
        order.setdefault(_group_of(cell), len(order))
    return tuple(sorted(cells, key=lambda cell: (not methods.get(cell.method).adapts, order[_group_of(cell)])))


def _group_of(cell: Cell) -> tuple[object, ...]:
    return cell.method, cell.targets, methods.get(cell.method).layout(cell)


def _spread(update: Operands, index: Tensor | None) -> Operands:
    """The operands for all weights of the family, zero for those that a group does not adapt."""
    if index is None:
        return update

    def one(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return torch.cat([values, torch.zeros_like(values[:, :1])], dim=1).index_select(1, index)

    made: Operands = Operands(*map(one, update))  # type: ignore[arg-type]  # A and B are never None
    return made
