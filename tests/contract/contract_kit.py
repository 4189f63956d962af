"""What the tests of all methods share beside the package's own contracts: the methods by kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lora_bench.contracts.kit import Run, Workbench, cell_of
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.methods import RECIPES
from lora_bench.methods.recipe import Shape

METHODS = tuple(RECIPES)
ADAPTING = tuple(name for name, recipe in RECIPES.items() if recipe.adapts)
PACKED = tuple(name for name, recipe in RECIPES.items() if not recipe.trains_backbone)
SIZED = tuple(name for name in ADAPTING if {"rank", "a", "b"} & RECIPES[name].parameters)

Load = Callable[[str], Backbone]
Trained = Callable[[str, str, str], Run]
BenchOf = Callable[[str], Workbench]


def shapes_in(plain: nn.Module, endings: Sequence[str]) -> dict[str, Shape]:
    """The weights of a model's layers whose names end so, by name."""
    return {
        name: Shape(*module.weight.shape)
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("encoder.") and name.endswith(tuple(endings))
    }


def made_of_data(method: str) -> bool:
    """Whether the method saves frozen factors that cannot be made again without the data."""
    factors = RECIPES[method].factors(cell_of(method), Shape(32, 32))
    return any(factor.saved and not factor.trainable for factor in factors)


def starts_from_the_base_loss(method: str) -> bool:
    """Whether the first loss of training is the pretrained model's: no other start, and no penalty beside it."""
    recipe = RECIPES[method]
    return recipe.starts_as_base and not made_of_data(method) and not recipe.has_penalty
