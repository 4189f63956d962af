"""Where a posterior is fitted and what is scored: the selected epoch, the training rows, and tokens alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.contracts.kit import Workbench, cell_of, table_of, train
from lora_bench.engine import fisher, posterior
from lora_bench.engine.adapters.pack import Pack, State
from lora_bench.engine.encoder.windows import Table
from lora_bench.engine.trainer import Trainer
from lora_bench.methods import RECIPES
from lora_bench.methods.rules import FisherPosterior
from lora_bench.tasks import get
from lora_bench.testing import FAMILIES, make_cell, make_tokens
from tests.engine.engine_factory import backbone, table, trainer

METHODS = tuple(name for name, recipe in RECIPES.items() if recipe.posterior)
FITTED = tuple(name for name in METHODS if isinstance(RECIPES[name].posterior, FisherPosterior))


def pack_of(made: Trainer, cell: Cell, state: State) -> Pack:
    """One cell as a pack of its own, as it was at some time."""
    pack = Pack([cell], made.pack.backbone, made.task.num_outputs, hooked=True)
    pack.load(0, state)
    return pack


def nll(probabilities: Tensor, rows: Table) -> float:
    """scikit-learn's."""
    return float(log_loss(rows.labels.numpy(), probabilities.numpy(), labels=[0, 1]))


@pytest.mark.parametrize("method", METHODS)
def test_it_is_fitted_at_the_selected_epoch_and_scored_on_each_split(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "DRAWS", 500)
    held_out = table(make_tokens(21, 5, "sst2"))
    cells = [make_cell("lora"), make_cell(method, epochs=2)]
    made = trainer(cells, backbone(), held_out=held_out)
    position = made.pack.cells.index(cells[1])
    earlier = made.pack.state(position)
    progress = made.run()[position]
    assert progress.state is not None
    assert not torch.equal(earlier.flat(), progress.state.flat())
    for state in (progress.state, earlier):  # the second stands for an epoch before the last one
        scored = posterior.evaluate(made, replace(progress, state=state))
        assert scored is not None
        predict, precision = posterior.predictor(pack_of(made, cells[1], state), made.table)
        assert scored.prior_precision == precision
        for scores, rows in ((scored.scores, made.evaluation.table), (scored.held_out, held_out)):
            probabilities = predict(rows)
            assert scores is not None
            assert scores.calibration is not None
            assert scores.calibration["nll"] == pytest.approx(nll(probabilities, rows), rel=1e-9)
            accuracy = accuracy_score(rows.labels.numpy(), probabilities.argmax(-1).numpy())
            assert scores.metrics["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("method", METHODS)
def test_there_is_none_of_a_cell_that_diverged_nor_of_a_regression(method: str) -> None:
    made = trainer([make_cell(method, epochs=1)], backbone())
    (progress,) = made.run()
    assert posterior.evaluate(made, replace(progress, diverged="loss not finite")) is None
    assert posterior.evaluate(made, replace(progress, state=None)) is None
    regression = trainer([make_cell(method, task="stsb", epochs=1)], backbone())
    (values,) = regression.run()
    assert posterior.evaluate(regression, values) is None


@pytest.mark.parametrize("family", ["roberta", "distilbert", "megatron-bert"])
@pytest.mark.parametrize("method", FITTED)
def test_padding_is_no_part_of_it(method: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at a time there is no padding; on windows by our code, by transformers', and on padded rows."""
    monkeypatch.setattr(fisher, "DRAWS", 200)
    bench = Workbench(tmp_path, family)
    recipe = RECIPES[method]
    assert isinstance(recipe.posterior, FisherPosterior)
    run = bench.trained(method, "cola", "float64")
    rows, on = table_of(run.pack.backbone, run.task), run.pack.backbone
    found = []
    for size in (8, 1):
        cell = run.cell.model_copy(update={"batch_size": size})
        pack = Pack([cell], on, run.task.num_outputs, hooked=True)
        pack.load(0, run.pack.state(0))
        fitted = fisher.fit(pack, recipe.posterior.over, rows)
        found.append((fitted.precision, fisher.probabilities(pack, recipe.posterior.over, fitted, rows)))
    (one, together), (other, alone) = found
    assert one == pytest.approx(other, rel=1e-9)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "targets", "why"),
    [
        ("deberta-v2", "attention", "key_proj is read more than once"),
        ("albert", "attention+dense", "query is read more than once"),
        ("deberta", "attention+dense", "pos_proj is not applied to tokens"),
    ],
)
def test_weights_that_map_more_than_each_token_once_are_refused_before_training(
    family: str, targets: str, why: str, tmp_path: Path
) -> None:
    bench = Workbench(tmp_path, family)
    cells = {method: cell_of(method, targets=targets) for method in METHODS}
    on, refused = bench.load("float32"), cells["laplace-lora"]
    other = refused.model_copy(update={"lr": 2.0 * refused.lr})
    before = torch.random.get_rng_state()
    refusals = posterior.refusals([*cells.values(), other], on, table_of(on, get("cola")))
    assert refusals.keys() == {refused.id, other.id}  # over the head's output layer, or sampled: any weight will do
    assert all(why in error.what for error in refusals.values())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module._forward_hooks for module in on.linears().values())
    regression = refused.model_copy(update={"task": "stsb"})
    assert not posterior.refusals([regression], on, table_of(on, get("stsb")))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "albert"])
def test_the_jacobian_is_that_of_autograd(family: str, tmp_path: Path) -> None:
    """Of the logits of one row by A and B of every weight of a kind that can be uncertain."""
    bench = Workbench(tmp_path, family)
    targets = {"deberta-v2": "value_proj,dense", "deberta": "attention"}.get(family, "attention+dense")
    run = train([cell_of("laplace-lora", precision="float64", targets=targets)], bench.load("float64"), get("cola"))
    pack = Pack([run.cell], bench.load("float64"), 2, hooked=True)
    pack.load(0, run.pack.state(0))
    (group,), model = pack.bank.groups, fisher.Linearised(pack, "factors")
    with model.hooked():
        (batch,) = table_of(pack.backbone, run.task).batches([np.array([5])])
        _, matrices = model.passes(batch, lambda logits: list(logits.sum(0)))
        ours = [torch.einsum("cto,ti->coi", matrix.gradients, matrix.inputs) for matrix in matrices]
        pack.compose()
        logits = pack.logits(batch)[0, 0]
        exact = [torch.autograd.grad(one, [group.block.matrix], retain_graph=True)[0] for one in logits]
    by_class = [group.factors(gradient) for gradient in exact]
    expected = [
        torch.stack([factors[family_of][name][0, index] for factors in by_class])
        for family_of, modules in group.families.items()
        for index in range(len(modules))
        for name in "AB"
    ]
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9 * float(other.abs().max()))


def test_draws_that_do_not_fit_in_memory_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    logits, noise = (torch.from_numpy(random.normal(size=size)) for size in ((7, 3), (50, 3)))
    root = torch.from_numpy(random.normal(size=(7, 3, 3)))
    together = fisher._mean_softmax(logits, root @ root.mT, noise)
    for values in (1, 2 * noise.numel()):
        monkeypatch.setattr(fisher, "CHUNK", values)
        torch.testing.assert_close(fisher._mean_softmax(logits, root @ root.mT, noise), together)


def test_a_certain_row_has_a_finite_nll() -> None:
    """A probability that underflows counts as the smallest normal number, about exp(-700)."""
    made = trainer([make_cell("laplace-lora", epochs=1)], backbone())
    labels = made.evaluation.table.labels
    certain = torch.stack([labels == 1, labels == 0], 1).double()  # wrong in every row
    scores = posterior._score(made, certain, made.evaluation)
    assert scores.calibration is not None
    assert scores.calibration == pytest.approx({"nll": 700.0, "ece": 1.0, "brier": 2.0})
    assert scores.metrics["accuracy"] == 0.0


def test_the_numbers_are_those_of_the_reference() -> None:
    assert (fisher.PRIOR_STEPS, fisher.PRIOR_RATE, fisher.DRAWS) == (1000, 0.1, 100_000)
