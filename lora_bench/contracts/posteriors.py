"""The contracts of a method with a posterior: what is uncertain is what it trains, and its averages are its own."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_bench import methods, tasks
from lora_bench.cell import Cell
from lora_bench.contracts.kit import KINDS, Workbench, alike, cell_of, require, table_of, train
from lora_bench.engine import posterior
from lora_bench.engine.adapters import saved
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.methods.rules import FisherPosterior

AVERAGED = 1e-9  # probabilities that differ by less from those of the trained point are averaged over nothing (chosen)


def its_posterior_averages_probabilities(method: str, bench: Workbench) -> None:
    """its averaged probabilities are probabilities, not those of the point, and the same when loaded from disk"""
    recipe = methods.get(method)
    if recipe.posterior is None:
        return
    for name in KINDS:
        run = bench.trained(method, name, "float64")
        if run.task.is_regression:
            continue
        _require_own_factors(method, bench)
        averaged = _averaged_probabilities(run.cell, run.pack.state(0), bench.load("float64"))
        require(bool(torch.isfinite(averaged).all()), f"{name}: a probability is not finite")
        alike(averaged.sum(1), torch.ones(len(averaged)).double(), 1e-9, f"{name}: a sum of probabilities")
        with run.pack:
            run.pack.compose()
            table = table_of(run.pack.backbone, run.task)
            batch = next(table.batches([torch.arange(len(table)).numpy()]))
            point = run.pack.logits(batch)[0].detach().softmax(-1)
        require(bool((averaged - point).abs().max() > AVERAGED), f"{name}: the averages are those of the point")
        folder = bench.new_folder()
        saved.save(folder, run.cell, run.task.num_outputs, run.pack.state(0))
        _, _, state = saved.read(folder)
        alike(
            _averaged_probabilities(run.cell, state, bench.load("float64")),
            averaged,
            1e-12,
            f"{name}: a loaded probability",
        )


def its_posterior_does_not_depend_on_its_pack(method: str, bench: Workbench) -> None:
    """its averaged probabilities are the same after training alone and among other cells (float64)"""
    if methods.get(method).posterior is None:
        return
    alone = bench.trained(method, "cola", "float64")
    others = [cell_of("lora", precision="float64", rank=6), cell_of(method, precision="float64", rank=6, lr=2e-3)]
    run = train([*others, alone.cell], bench.load("float64"), alone.task)
    state = run.pack.state(run.pack.cells.index(alone.cell))
    backbone = bench.load("float64")
    expected = _averaged_probabilities(alone.cell, alone.pack.state(0), backbone)
    alike(_averaged_probabilities(alone.cell, state, backbone), expected, 1e-8, "an averaged probability")


def _averaged_probabilities(cell: Cell, state: State, backbone: Backbone) -> Tensor:
    """Return the averaged probabilities of a trained cell for the rows that it was trained on."""
    task = tasks.of(cell)
    pack = Pack([cell], backbone, task.num_outputs, hooked=True)
    pack.load(0, state)
    table = table_of(backbone, task)
    predict, _ = posterior.predictor(pack, table)
    return predict(table)


def _require_own_factors(method: str, bench: Workbench) -> None:
    """Require that the update's A and B are factors that train, where the posterior is of these."""
    recipe = methods.get(method)
    if not isinstance(recipe.posterior, FisherPosterior) or recipe.posterior.over != "factors":
        return
    (group,) = Pack([cell_of(method)], bench.load("float32"), 2).bank.groups
    trained = {factor.name for factor in group.trained}
    for factors in group.factors(group.block.matrix.detach() + 1).values():
        update = recipe.update(factors)
        for name, value in (("A", update.A), ("B", update.B)):
            is_own = name in trained and value is not None and torch.equal(value, factors[name])
            require(is_own, f"the {name} of its update is not a factor '{name}' that trains")
