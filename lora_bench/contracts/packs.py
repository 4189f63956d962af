"""The contracts of a method in packs: padding is exact, and a cell's result does not depend on its pack."""

from __future__ import annotations

from typing import Any

import torch

from lora_bench import methods, tasks
from lora_bench.contracts.kit import Workbench, alike, cell_of, logits_of, require, train
from lora_bench.contracts.training import sized
from lora_bench.engine.adapters.pack import Pack

SMALL: dict[str, Any] = {"rank": 2, "a": 3, "b": 4}
LARGE: dict[str, Any] = {"rank": 5, "a": 7, "b": 6}


def padding_is_trimmed_and_stays_zero(method: str, bench: Workbench) -> None:
    """beside a larger cell, what pads a smaller one stays zero and is not saved"""
    recipe = methods.get(method)
    if not sized(method):
        return
    cells = [cell_of(method, **SMALL), cell_of(method, **LARGE)]
    pack = train(cells, bench.load("float32"), tasks.get("cola")).pack
    for index, cell in enumerate(pack.cells):
        state = pack.state(index).adapter
        for group in pack.bank.groups:
            for family, modules in group.families.items():
                for factor in recipe.factors(cell, family.shape):
                    shapes = {tuple(state[f"{m}.{factor.name}"].shape) for m in modules} if factor.saved else set()
                    require(shapes <= {(factor.rows, factor.cols)}, f"{factor.name} is saved with shapes {shapes}")
    for group in pack.bank.groups:
        if group.cells[0] == cells[0]:
            count = sum(recipe.trainable(cells[0], f.shape) * len(names) for f, names in group.families.items())
            nonzero = int(group.block.matrix[0].count_nonzero())
            require(nonzero <= count, f"{nonzero} values are not zero, {count} train: padding moved")


def it_loads_among_larger_cells(method: str, bench: Workbench) -> None:
    """a saved cell is the same in a pack of larger ones"""
    run = bench.trained(method, "cola", "float32")
    if run.recipe.trains_backbone:
        return
    cells = [cell_of(method, rank=6, a=9, b=8), cell_of("head"), run.cell]
    mixed = Pack(cells, bench.load("float32"), run.task.num_outputs)
    index = max(k for k, cell in enumerate(mixed.cells) if cell == run.cell)
    mixed.load(index, run.pack.state(0))
    adapter = run.pack.state(0).adapter
    same = all(torch.equal(value, adapter[name]) for name, value in mixed.state(index).adapter.items())
    require(same, "it came back changed")
    alike(logits_of(mixed, run.task)[index], logits_of(run.pack, run.task)[0], 1e-5, "a logit among larger cells")


def it_does_not_depend_on_its_pack(method: str, bench: Workbench) -> None:
    """trained alone and among LoRA, the head and a larger cell it ends the same (float64)"""
    alone = bench.trained(method, "cola", "float64")
    if alone.recipe.trains_backbone:
        return
    others = [cell_of("lora", precision="float64", rank=6, lr=3e-2), cell_of("head", precision="float64")]
    others.append(cell_of(method, precision="float64", lr=2e-3, **LARGE))
    run = train([*others, alone.cell], bench.load("float64"), alone.task)
    index = run.pack.cells.index(alone.cell)
    pairs = zip(run.progress[index].losses, alone.progress[0].losses, strict=True)
    worst = max(abs(one - two) for one, two in pairs)
    require(worst <= 1e-10, f"a loss differs by {worst:.2g}, allowed 1e-10")
    for name, value in alone.pack.state(0).adapter.items():
        alike(run.pack.state(index).adapter[name], value, 1e-8, name)
