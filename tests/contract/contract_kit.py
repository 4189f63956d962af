"""What the tests of all methods share: the package's own contracts and workbench, and the methods by kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lora_bench.contracts.kit import (
    HIDDEN,
    KINDS,
    PAD,
    PARAMETERS,
    ROWS,
    SIZES,
    TARGETS,
    VOCABULARY,
    Run,
    cell_of,
    frozen_of,
    head_by_hand,
    logits_of,
    padded,
    plain_encoder,
    save_encoder,
    split_of,
    table_of,
    tokens,
    train,
    trained_names,
    trainer_of,
)
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.methods import RECIPES
from lora_bench.methods.recipe import Shape

__all__ = [
    "ADAPTING", "HIDDEN", "KINDS", "METHODS", "PACKED", "PAD", "PARAMETERS", "ROWS", "SIZED", "SIZES", "TARGETS",
    "VOCABULARY", "Load", "Run", "Trained", "cell_of", "frozen_of", "head_by_hand", "logits_of", "made_of_data",
    "padded",
    "plain_encoder", "save_encoder", "shapes_in", "split_of", "table_of", "tokens", "train", "trained_names",
    "trainer_of",
]  # fmt: skip

METHODS = tuple(RECIPES)
ADAPTING = tuple(name for name, recipe in RECIPES.items() if recipe.adapts)
PACKED = tuple(name for name, recipe in RECIPES.items() if not recipe.trains_backbone)
SIZED = tuple(name for name in ADAPTING if {"rank", "a", "b"} & RECIPES[name].parameters)

Load = Callable[[str], Backbone]
Trained = Callable[[str, str, str], Run]


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
