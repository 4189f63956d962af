"""The contracts of a method in packs: padding is exact, and a cell's result does not depend on its pack."""

from __future__ import annotations

from typing import Any

import torch

from lora_bench import methods, tasks
from lora_bench.contracts.kit import (
    Workbench,
    alike,
    cell_of,
    logits_of,
    require,
    train,
    trained_names,
    varies_in_size,
)
from lora_bench.engine.adapters.group import names_of
from lora_bench.engine.adapters.pack import Pack

SMALL: dict[str, Any] = {"rank": 2, "a": 3, "b": 4}
LARGE: dict[str, Any] = {"rank": 5, "a": 7, "b": 6}
LARGEST: dict[str, Any] = {"rank": 6, "a": 9, "b": 8}


def padding_is_trimmed_and_stays_zero(method: str, bench: Workbench) -> None:
    """beside larger cells, what pads a smaller one stays zero and is not saved"""
    recipe = methods.get(method)
    if not varies_in_size(method):
        return
    # The second differs in rank alone, so that it has the layout of the first.
    cells = [cell_of(method, **sizes) for sizes in (SMALL, SMALL | {"rank": LARGE["rank"]}, LARGE)]
    pack = train(cells, bench.load("float32"), tasks.get("cola")).pack
    for index, cell in enumerate(pack.cells):
        state = pack.state(index).adapter
        for group in pack.bank.groups:
            for family, modules in group.families.items():
                for factor in recipe.factors(cell, family.shape):
                    holders = names_of(factor, modules) if factor.saved else ()
                    shapes = {tuple(state[f"{holder}.{factor.name}"].shape) for holder in holders}
                    require(shapes <= {(factor.rows, factor.cols)}, f"{factor.name} is saved with shapes {shapes}")
    names = trained_names(cells[0])
    for group in pack.bank.groups:
        for row, position in enumerate(group.positions):
            trimmed = [v for name, v in pack.state(position).adapter.items() if name.rpartition(".")[2] in names]
            moved = int(group.block.matrix[row].count_nonzero()) - sum(int(v.count_nonzero()) for v in trimmed)
            require(moved == 0, f"{moved} values that pad {group.cells[row].method} are not zero: padding moved")


def it_loads_among_larger_cells(method: str, bench: Workbench) -> None:
    """a saved cell is the same in a pack of larger ones"""
    run = bench.trained(method, "cola", "float32")
    if run.recipe.trains_backbone:
        return
    cells = [cell_of(method, **LARGEST), cell_of("head"), run.cell]
    mixed = Pack(cells, bench.load("float32"), run.task.num_outputs)
    index = max(k for k, cell in enumerate(mixed.cells) if cell == run.cell)
    mixed.load(index, run.pack.state(0))
    adapter = run.pack.state(0).adapter
    same = all(torch.equal(value, adapter[name]) for name, value in mixed.state(index).adapter.items())
    require(same, "it came back changed")
    alike(logits_of(mixed, run.task)[index], logits_of(run.pack, run.task)[0], 1e-5, "a logit among larger cells")


def it_does_not_depend_on_its_pack(method: str, bench: Workbench) -> None:
    """trained alone and among LoRA, the head and larger cells it ends the same (float64)"""
    alone = bench.trained(method, "cola", "float64")
    if alone.recipe.trains_backbone:
        return
    others = [cell_of("lora", precision="float64", rank=6, lr=3e-2), cell_of("head", precision="float64")]
    others += [cell_of(method, precision="float64", lr=2e-3, **sizes) for sizes in (LARGE, LARGEST)]
    run = train([*others, alone.cell], bench.load("float64"), alone.task)
    index = run.pack.cells.index(alone.cell)
    pairs = zip(run.progress[index].losses, alone.progress[0].losses, strict=True)
    worst = max(abs(one - two) for one, two in pairs)
    require(worst <= 1e-10, f"a loss differs by {worst:.2g}, allowed 1e-10")
    for name, value in alone.pack.state(0).adapter.items():
        alike(run.pack.state(index).adapter[name], value, 1e-8, name)
