"""The written-out encoder is transformers' own, forward and backward, and padding a batch changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lora_bench.cell import Cell
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Form
from lora_bench.engine.graphs import choose_shapes
from lora_bench.engine.masks import Masks, Site
from lora_bench.engine.trainer import Trainer
from lora_bench.testing import make_cell, make_encoder, make_tokens
from tests.engine.engine_factory import CPU, backbone, difference, table, trained, trainer, values

FAMILY = ("roberta", "bert", "xlm-roberta", "camembert", "electra", "mpnet")
FORMS = st.builds(Form, st.sampled_from([32, 64]), st.integers(1, 20), st.just(8))


def company(kind: str = "roberta") -> list[Cell]:
    """Methods, ranks and target sets that share no weight, some, or all."""
    query = "q" if kind == "mpnet" else "query"
    return [
        make_cell("lora", rank=5, targets="attention+dense"),
        make_cell("xs", rank=3, targets=query),
        make_cell("mini", targets="qv"),
        make_cell("cora", rank=2, targets="output.dense"),
        make_cell("lora", rank=2, targets="intermediate.dense"),
        make_cell("pissa", rank=3, targets="qv"),
        make_cell("vera", rank=4, targets="attention+dense"),
        make_cell("dora", rank=2, targets="attention+dense"),
        make_cell("ia3", targets="attention+dense"),
        make_cell("ia3", targets="kv+ffn"),
        make_cell("bitfit", targets="qv"),
        make_cell("head"),
    ]


def plain(kind: str) -> Backbone:
    """The same encoder, run through transformers' own code."""
    made = backbone(kind)
    assert made.fused is not None
    made.fused = None
    return made


@pytest.mark.parametrize("kind", FAMILY)
def test_training_is_that_of_transformers_own_code(kind: str) -> None:
    ours, theirs = trained(company(kind), backbone(kind)), trained(company(kind), plain(kind))
    for one in company(kind):
        assert difference(values(ours[one]), values(theirs[one])) < 1e-9
        assert np.abs(np.array(ours[one].losses) - np.array(theirs[one].losses)).max() < 1e-11


@pytest.mark.parametrize("kind", ["distilbert", "modernbert"])
def test_other_encoders_run_through_transformers_own_code(kind: str) -> None:
    made = backbone(kind)
    assert made.fused is None
    found = trained([make_cell("lora"), make_cell("head")], made)
    assert all(np.isfinite(progress.losses).all() for progress in found.values())


@pytest.mark.parametrize("act", ["relu", "gelu_new"])
def test_another_activation_is_not_written_out(act: str) -> None:
    model = make_encoder("roberta")
    model.config.hidden_act = act
    assert Backbone(model, CPU, "float64").fused is None


def gradients(made: Trainer, fit: Form | None) -> tuple[Tensor, list[Tensor]]:
    """Losses and gradients of the first batch, padded to a shape."""
    (batch,) = made.table.batches([made.batch_rows(1)[-1]], (lambda _: fit) if fit else None)
    masks = made.pack.backbone.masks(batch.shape)
    with made.pack:
        masks.draw(made.generator.manual_seed(5), batch.windows, len(batch.rows))
        losses, found = made._gradients(batch, masks)
    return losses, list(found)


@pytest.mark.parametrize("on", ["fused", "plain"])
def test_empty_windows_and_places_change_nothing(on: str) -> None:
    made = trainer(company(), backbone() if on == "fused" else plain("roberta"), count=46)
    (batch,) = made.table.batches([made.batch_rows(1)[-1]])
    assert batch.shape.rows == 6
    losses, expected = gradients(made, None)
    padded, found = gradients(made, Form(batch.width, batch.windows + 3, 8))
    assert float((losses - padded).abs().max()) < 1e-12
    for one, other in zip(expected, found, strict=True):
        assert float((one - other).abs().max()) < 1e-12


def test_a_weight_that_no_cell_adapts_has_no_gradient_to_make() -> None:
    made = trainer([make_cell("head")], backbone())
    losses, (only,) = gradients(made, None)
    assert made.pack.bank.families == []
    assert float(only.abs().max()) > 0
    assert losses.shape == (1,)


@given(st.integers(1, 9), st.integers(0, 4), st.integers(1, 8))
def test_masks_hang_on_the_stream_and_the_batch_alone(windows: int, more: int, filled: int) -> None:
    sites = [Site("hidden", 6, 0.1), Site("attention", 2, 0.1), Site("hidden", 6, 0.5), Site("hidden", 6, 0.0)]
    drawn = []
    for room in (windows, windows + more):
        masks = Masks(sites, 4, room, [Site("hidden", 6, 0.2), Site("hidden", 6, 0.4), Site("hidden", 6, 0.0)], 8, CPU)
        drawn.append(masks.draw(torch.Generator().manual_seed(3), windows, filled))
    small, large = drawn
    for index, site in enumerate(sites):
        one, other = small.site_mask(index, windows), large.site_mask(index, windows + more)
        assert torch.equal(one.kept, other.kept[:windows])
        assert one.scale == pytest.approx(1 / (1 - site.rate))
        assert one.kept.shape[1:] == ((2, 4, 4) if site.kind == "attention" else (4, 6))
    assert small.site_mask(3, windows).kept.all()
    for index in (0, 1):
        first, second = (masks.head_mask(index, filled) for masks in drawn)
        assert first is not None
        assert second is not None
        assert first.kept.shape == (filled, 6)
        assert torch.equal(first.kept, second.kept)
    assert small.head_mask(2, filled) is None


def test_a_mask_keeps_as_much_as_it_says() -> None:
    masks = Masks([Site("hidden", 512, 0.1)], 32, 64, [Site("hidden", 8, 0.1)], 8, CPU)
    mask = masks.draw(torch.Generator().manual_seed(0), 64, 8).site_mask(0, 64)
    assert float(mask.kept.double().mean()) == pytest.approx(0.9, abs=0.002)
    assert float(mask.factor(torch.float64).mean()) == pytest.approx(1.0, abs=0.002)
    assert set(mask.factor(torch.float64).unique().tolist()) == {0.0, 1 / 0.9}


@given(st.dictionaries(FORMS, st.integers(1, 300), max_size=12), st.integers(1, 100))
def test_each_chosen_shape_is_worth_its_recording(counts: dict[Form, int], worth: int) -> None:
    chosen = choose_shapes(counts, worth)
    served: Counter[Form] = Counter()
    for form, count in counts.items():
        holding = [one for one in chosen if one.width == form.width and one.windows >= form.windows]
        if holding:
            served[min(holding, key=lambda one: one.windows)] += count
    assert set(served) == set(chosen)
    assert all(count >= worth for count in served.values())
    for width in (32, 64):  # what is left over would not be worth it
        kept = [one.windows for one in chosen if one.width == width]
        left = sum(c for f, c in counts.items() if f.width == width and f.windows > max(kept, default=0))
        assert left < worth


def test_a_batch_without_padding_is_its_own_shape() -> None:
    one = table(make_tokens(20, 3))
    (batch,) = one.batches([np.arange(20)])
    assert batch.shape == one.layout(np.arange(20)).form
    assert replace(batch, windows=1).shape == batch.shape
    assert float(batch.weights.sum()) == pytest.approx(1)
