"""The contracts of a method before it trains: its statements, its start and its number of parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.contracts.kit import KINDS, TARGETS, Workbench, alike, cell_of, logits_of, require
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.methods.recipe import (
    PARAMETERS,
    Assigned,
    Fresh,
    LogUniform,
    Normal,
    Orthonormal,
    Recipe,
    Shape,
    Uniform,
)
from lora_bench.methods.return_values import fault
from lora_bench.methods.rules import Step

DRAWN = Normal | Uniform | Orthonormal | LogUniform | Fresh | Assigned
TINY_START = 1e-3  # a trained factor that starts from noise with a smaller std starts close to zero (chosen)
SHAPES = (Shape(32, 32), Shape(64, 32), Shape(32, 64))


def its_settings_are_complete(method: str, bench: Workbench) -> None:
    """every parameter is known and has a default, and what it states is a number where one is meant"""
    recipe = methods.get(method)
    unknown = recipe.parameters - PARAMETERS
    require(not unknown, f"no cell has the parameter {', '.join(sorted(unknown))}; there are {sorted(PARAMETERS)}")
    missing, extra = recipe.parameters - recipe.defaults.keys(), recipe.defaults.keys() - recipe.parameters
    require(not missing and not extra, f"defaults lack {sorted(missing)}, and have {sorted(extra)} beyond parameters")
    require(0 < recipe.default_lr < math.inf, f"default_lr is {recipe.default_lr}")
    require(bool(recipe.name and recipe.title and recipe.source), "name, title or source is empty")
    for function, answer in _stated_values(recipe, cell_of(method)):
        wrong = fault(function, answer)
        require(wrong is None, str(wrong))


def _stated_values(recipe: Recipe, cell: Cell) -> Iterator[tuple[str, object]]:
    """Yield what a recipe's functions return for a cell, with their names; the forecast and the packs rely on it."""
    yield "scale", recipe.scale(cell)
    yield "layout", recipe.layout(cell)
    yield "weights", recipe.weights(cell)
    if not recipe.adapts:
        return
    step = Step(1, 6, 24)
    for function in ("penalty_weight", "remembers", "meets_budget"):
        yield function, getattr(recipe, function)(cell, step)
    yield "cut", recipe.cut(cell, step, 24)
    yield "update_rank", recipe.update_rank(cell)
    for shape in SHAPES:
        yield "factors", recipe.factors(cell, shape)
        yield "trainable", recipe.trainable(cell, shape)
        yield "once", recipe.once(cell, {shape})
        yield "compact_bytes", recipe.compact_bytes(cell, shape)
        yield "touches", recipe.touches(shape)
        yield "width", recipe.width(cell, shape)


def it_starts_as_the_base_model(method: str, bench: Workbench) -> None:
    """before the first step the logits are the base model's, or others if it says so"""
    for task in KINDS:
        logits, base = (_first_logits(name, task, bench) for name in (method, "head"))
        if not methods.get(method).starts_as_base:
            difference = float((logits - base).abs().max())
            require(difference > 1e-12, f"{task}: step 0 is the base model, though starts_as_base is False")
            continue
        alike(logits, base, _start_tolerance(method), f"{task}: a logit at step 0")


def _start_tolerance(method: str) -> float:
    """Return how far step 0 may be from the base model: further if a trained factor starts from small noise."""
    starts = [factor.start for factor in methods.get(method).factors(cell_of(method), SHAPES[0]) if factor.trainable]
    noisy = any(isinstance(start, Normal) and start.std < TINY_START for start in starts)
    return 1e-4 if noisy else 1e-12


def _first_logits(method: str, task: str, bench: Workbench) -> Tensor:
    """Return an untrained cell's logits in float64, with an enlarged head so that differences show."""
    pack = Pack([cell_of(method, task, precision="float64")], bench.load("float64"), tasks.get(task).num_outputs)
    state = pack.state(0)
    pack.load(0, State(state.adapter, {name: 5 * value for name, value in state.head.items()}))
    return logits_of(pack, tasks.get(task))


def its_count_is_that_of_its_factors(method: str, bench: Workbench) -> None:
    """`trainable` counts the trained factors' values, and `once` the shared ones', whatever rank and shape"""
    recipe = methods.get(method)
    for shape in SHAPES:
        for rank in (1, 4, 8):
            cell = cell_of(method, rank=rank)
            factors = recipe.factors(cell, shape)
            sizes = [(f.shared, f.rows * f.cols) for f in factors if f.trainable]
            counted, stated = sum(size for shared, size in sizes if not shared), recipe.trainable(cell, shape)
            require(counted == stated, f"rank {rank}, {shape}: {counted} values train, the formula says {stated}")
            counted, stated = sum(size for shared, size in sizes if shared), recipe.once(cell, {shape})
            require(counted == stated, f"rank {rank}, {shape}: {counted} values are shared, `once` says {stated}")


def its_pack_trains_as_many(method: str, bench: Workbench) -> None:
    """a model's adapter has the sum of the formula over its weights"""
    for targets in ("qv", "attention", TARGETS):
        cell = cell_of(method, targets=targets)
        pack = Pack([cell], bench.load("float32"), 2)
        if not pack.bank.groups:
            return
        shapes = [
            family.shape for group in pack.bank.groups for family, modules in group.families.items() for _ in modules
        ]
        recipe = methods.get(method)
        stated = sum(recipe.trainable(cell, shape) for shape in shapes) + recipe.once(cell, set(shapes))
        count = pack.adapter_params(0)
        require(count == stated > 0, f"{targets}: {count} values train, the formula says {stated}")


def its_draws_hang_on_seed_and_module(method: str, bench: Workbench) -> None:
    """random factors are a function of the seed and the weight's name"""
    first, again, other = (_drawn_factors(method, seed, bench) for seed in (0, 0, 1))
    for name, values in first.items():
        require(torch.equal(values, again[name]), f"{name}: the same seed gives other values")
        require(not torch.equal(values, other[name]), f"{name}: another seed gives the same values")
        drawn = 1 if name.rpartition(".")[2] in _shared_factors(method) else math.prod(values.shape[:2])
        require(drawn == len(values.flatten(0, 1).unique(dim=0)), f"{name}: two weights alike, or a shared one not")


def _shared_factors(method: str) -> set[str]:
    """Return the factors that are the same for all modules."""
    return {f.name for f in methods.get(method).factors(cell_of(method), SHAPES[0]) if f.shared}


def _drawn_factors(method: str, seed: int, bench: Workbench) -> dict[str, Tensor]:
    """Return the randomly drawn factors `[cells, modules, rows, cols]` of a cell with that seed."""
    cell = cell_of(method, seed=seed)
    return {
        f"{family.name}.{factor.name}": group.factors(group.block.matrix.detach())[family][factor.name]
        for group in Pack([cell], bench.load("float32"), 2).bank.groups
        for family in group.families
        for factor in methods.get(method).factors(cell, family.shape)
        if isinstance(factor.start, DRAWN)
    }
