"""Encoders on windows: the model's own numbers for those that can, one line for those that cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lora_bench.data.tokens import TokenTable
from lora_bench.engine.encoder import probe
from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Batch, Table
from lora_bench.errors import MISSING, BenchError
from lora_bench.testing import (
    FAMILIES,
    PADDING,
    REFUSED_FAMILIES,
    WORDS,
    make_cell,
    make_encoder,
    make_model,
    make_tokens,
)
from tests.engine.engine_factory import CPU, LENGTHS, loaded, table, trainer

REACH = 16  # ModernBERT's local attention, far below the longest sequence
# Of hidden states of size 1 in float64; in float32 it would depend on the machine's kernels. ModernBERT computes its
# rotary positions and XLM its softmax in float32, whatever the precision.
TOLERANCE = {kind: {"modernbert": 1e-5, "xlm": 1e-6}.get(kind, 1e-12) for kind in FAMILIES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where encoders are saved."""
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module", params=list(FAMILIES))
def kind(request: pytest.FixtureRequest) -> str:
    """Each architecture that can be packed."""
    return str(request.param)


@pytest.fixture(scope="module")
def on_windows(kind: str, folder: Path) -> Backbone:
    """The encoder, loaded in float64."""
    return loaded(make_model(folder / kind, kind), "float64")


def one_batch(made: Table) -> Batch:
    """All rows of the table as one batch."""
    return next(made.batches([torch.arange(len(made)).numpy()]))


@torch.no_grad()
def own(model: Any, made: Table, types: bool) -> list[Tensor]:
    """The hidden states of every sequence in the model's own padded forward, in float64."""
    model.double().train(False)
    parts = made.flat[0, :-1].split(made.lengths.tolist())
    ids = pad_sequence(list(parts), batch_first=True, padding_value=PADDING)
    mask = (torch.arange(ids.shape[1]) < torch.from_numpy(made.lengths)[:, None]).long()
    inputs = {"input_ids": ids, "attention_mask": mask}
    if types:
        assert made.typed
        kinds = made.flat[1, :-1].split(made.lengths.tolist())
        inputs["token_type_ids"] = pad_sequence(list(kinds), batch_first=True)
    hidden = model(**inputs).last_hidden_state
    return [rows[:length] for rows, length in zip(hidden, made.lengths.tolist(), strict=True)]


@torch.no_grad()
def windowed(backbone: Backbone, batch: Batch, cells: int = 1) -> list[Tensor]:
    """`[cells, length, d]` of every sequence."""
    hidden = backbone.encode(batch, cells)
    return [hidden[:, batch.segments == segment] for segment in range(len(batch.first))]


def test_windows_give_the_models_own_numbers(kind: str, on_windows: Backbone) -> None:
    made = table(make_tokens(LENGTHS))
    batch = one_batch(made)
    assert batch.width == 256
    assert batch.ids.shape == (512,)
    types = on_windows.takes_types
    assert types == (kind in ("bert", "electra", "deberta", "albert", "megatron-bert"))
    expected = own(make_encoder(kind), made, types)
    worst = max(
        float((rows[0] - wanted).abs().max())
        for rows, wanted in zip(windowed(on_windows, batch), expected, strict=True)
    )
    assert worst < TOLERANCE[kind]
    assert float(torch.cat(expected).std()) > 0.1


@torch.no_grad()
def compared(backbone: Backbone, model: Any, source: TokenTable) -> float:
    """The largest difference of our hidden states, by both of our paths, from the model's own, padded at the end."""
    expected = own(model, backbone.table(source), backbone.takes_types)
    batch = one_batch(backbone.table(source))
    paths = [backbone.encode(batch, 1)] + ([backbone.encode_fused(batch, 1)] if backbone.fused else [])
    return max(
        float((hidden[0, batch.segments == place] - wanted).abs().max())
        for hidden in paths
        for place, wanted in enumerate(expected)
    )


def with_ids_inside(token: int) -> TokenTable:
    """Sequences that hold the id at their start, in their middle, several times in a row, and at their end."""
    made = make_tokens(LENGTHS)
    for row, places in ((1, (0, 1, 20, 39)), (2, (5,)), (4, range(10, 40)), (6, (129,)), (8, (0, 1))):
        made.ids[[made.offsets[row] + place for place in places]] = token
    return made


def test_padding_ids_within_a_text_get_the_models_own_positions(kind: str, on_windows: Backbone) -> None:
    assert compared(on_windows, make_encoder(kind), with_ids_inside(PADDING)) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", ["roberta", "bert", "distilbert", "modernbert"])
@pytest.mark.parametrize("pad", [0, 41, len(WORDS) - 1, -1])
def test_the_padding_id_may_be_an_unusual_number(kind: str, pad: int) -> None:
    model = make_encoder(kind, pad_token_id=pad)
    on_windows = Backbone(make_encoder(kind, pad_token_id=pad), CPU, "float64")
    assert compared(on_windows, model, with_ids_inside(pad % len(WORDS))) < TOLERANCE[kind]
    assert on_windows.longest == 300 - (pad + 1 if kind == "roberta" else 0)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_a_model_may_have_no_padding_id(kind: str) -> None:
    on_windows = Backbone(make_encoder(kind, pad_token_id=None), CPU, "float64")
    assert compared(on_windows, make_encoder(kind, pad_token_id=None), with_ids_inside(0)) < TOLERANCE[kind]


class Uncounted(torch.nn.Module):
    """Embeddings that shift the positions after an id of padding, in a way of their own."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **others: Any) -> Tensor:
        if position_ids is None:
            position_ids = (torch.arange(input_ids.shape[1]) + (input_ids == PADDING).cumsum(1)).clamp(max=299)
        embedded: Tensor = self.own(input_ids=input_ids, position_ids=position_ids, **others)
        return embedded


def test_a_model_with_another_rule_for_positions_runs_on_padded_rows() -> None:
    """A model that differs at ids of padding within a text alone: the probe has such texts."""
    model, same = make_encoder("bert"), make_encoder("bert")
    for each in (model, same):
        each.embeddings = Uncounted(each.embeddings)
    backbone = Backbone(model, CPU, "float64")
    assert backbone.padded is not None
    assert compared(backbone, same, with_ids_inside(PADDING)) < 1e-12


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("deberta-v2", {"conv_kernel_size": 3}),  # a convolution reads over the ends of sequences in a window
        ("deberta", {"talking_head": True}),
    ],
)
def test_a_model_that_does_not_fit_on_windows_runs_on_padded_rows(kind: str, settings: dict[str, Any]) -> None:
    backbone = Backbone(make_encoder(kind, **settings), CPU, "float64")
    assert backbone.padded is not None
    assert compared(backbone, make_encoder(kind, **settings), with_ids_inside(PADDING)) < 1e-10


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("deberta", {"pos_att_type": ["p2c"], "max_relative_positions": 40}),
        ("deberta-v2", {"pos_att_type": ["c2p"], "share_att_key": False}),
        ("deberta-v2", {"position_buckets": -1, "norm_rel_ebd": "none"}),
        ("deberta-v2", {"relative_attention": False, "pos_att_type": [], "position_biased_input": True}),
    ],
)
def test_every_form_of_debertas_attention_runs_on_windows(kind: str, settings: dict[str, Any]) -> None:
    backbone = Backbone(make_encoder(kind, **settings), CPU, "float64")
    assert backbone.padded is None
    assert compared(backbone, make_encoder(kind, **settings), with_ids_inside(PADDING)) < 1e-10


def test_a_shortage_while_a_way_is_tried_does_not_choose_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another way draws other dropout masks: how full a device is must not change a number."""

    def fail(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Backbone, "encode", fail)
    with pytest.raises(torch.OutOfMemoryError):
        Backbone(make_encoder("bert"), CPU, "float32")


def test_layers_on_padded_rows_are_computed_again_for_their_gradients() -> None:
    """So that only their inputs are kept. One cell alone has room for its activations."""
    backbone = Backbone(make_encoder("megatron-bert"), CPU, "float64")
    calls: list[bool] = []
    first = backbone.model.get_submodule("encoder.layer.0.attention.self.query")
    first.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    for cells, expected in ((1, [True]), (3, [False, True])):
        made = trainer([make_cell(lr=1e-3 * (1 + index)) for index in range(cells)], backbone)
        calls.clear()
        with made.pack:
            made.train(made.batch_rows(1)[:1])
        assert calls == expected


def test_a_sequence_that_ends_in_the_last_slot_is_padded_like_any_other() -> None:
    """Its row on padded rows holds it once, not its last token again and again."""
    backbone = Backbone(make_encoder("megatron-bert"), CPU, "float64")
    assert backbone.padded is not None
    rows = make_tokens([100, 28])
    batch = one_batch(backbone.table(rows))
    assert int(batch.segments[-1]) >= 0
    lengths = backbone.padded.inputs(batch)["attention_mask"].sum(1).tolist()
    assert sorted(lengths) == [28, 100]
    together = windowed(backbone, batch)
    for place in (0, 1):
        (alone,) = windowed(backbone, one_batch(backbone.table(rows.take(torch.tensor([place]).numpy()))))
        assert (alone - together[place]).abs().max() < TOLERANCE["megatron-bert"]


def test_the_probe_holds_what_can_differ() -> None:
    """Padding within a text, the ends of the vocabulary, ids that the config names, one token and many, pairs."""
    config = make_encoder("bert", mask_token_id=44).config
    made = probe.tokens(config, 300, typed=True)
    texts = np.split(made.ids, made.offsets[1:-1])
    assert made.types is not None
    types = np.split(made.types, made.offsets[1:-1])
    assert any((text[1:-1] == PADDING).any() for text in texts)
    assert {0, 44, len(WORDS) - 1} <= {int(token) for text in texts for token in text}
    assert {1, 256} <= {len(text) for text in texts}
    assert any((kinds == 0).any() and (kinds == 1).any() for kinds in types)
    assert any(not kinds.any() for kinds in types)


def test_a_config_that_asks_for_tuples_is_no_hindrance(kind: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / kind, kind)
    config = json.loads((path / "config.json").read_text())
    asked = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    (path / "config.json").write_text(json.dumps(config | asked))
    assert compared(loaded(path), make_encoder(kind), make_tokens(LENGTHS)) < 1e-5


def test_cells_are_rows_that_are_all_alike(kind: str, on_windows: Backbone) -> None:
    batch = one_batch(table(make_tokens(LENGTHS[:4])))
    single = torch.cat(windowed(on_windows, batch), dim=1)
    triple = torch.cat(windowed(on_windows, batch, 3), dim=1)
    assert triple.shape[0] == 3
    assert (triple - single).abs().max() < TOLERANCE[kind]


def test_company_in_a_window_changes_nothing(kind: str, on_windows: Backbone) -> None:
    rows = make_tokens(LENGTHS)
    together = windowed(on_windows, one_batch(table(rows)))
    for place in (0, 3, 8):
        (alone,) = windowed(on_windows, one_batch(table(rows.take(torch.tensor([place]).numpy()))))
        assert (alone - together[place]).abs().max() < TOLERANCE[kind]


def test_dropout_is_drawn_from_the_stream_alone(kind: str, on_windows: Backbone) -> None:
    batch, stream = one_batch(table(make_tokens(LENGTHS[:3]))), torch.Generator()
    with torch.no_grad():
        masks = on_windows.masks(batch.shape)
        once = on_windows.encode(batch, 2, masks.draw(stream.manual_seed(5), batch.windows, 3))
        torch.rand(7)
        again = on_windows.encode(batch, 2, masks.draw(stream.manual_seed(5), batch.windows, 3))
        other = on_windows.encode(batch, 2, masks.draw(stream.manual_seed(6), batch.windows, 3))
        without = on_windows.encode(batch, 2)
    assert torch.equal(once, again)
    assert (once[0] - once[1]).abs().max() < TOLERANCE[kind]
    assert not torch.allclose(once, other)
    assert not torch.allclose(once, without)


def test_the_backbone_is_frozen(on_windows: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in on_windows.model.parameters())
    assert not any("pooler" in name for name, _ in on_windows.model.named_parameters())


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_token_types_count(kind: str, folder: Path) -> None:
    backbone, made = loaded(make_model(folder / kind, kind)), table(make_tokens(LENGTHS))
    batch = one_batch(made)
    with_types, without = windowed(backbone, batch), own(make_encoder(kind), made, types=False)
    assert max(float((a[0] - b).abs().max()) for a, b in zip(with_types, without, strict=True)) > 1e-2


def test_the_local_window_of_modernbert_counts(folder: Path) -> None:
    """Its second layer reaches half of `local_attention` to each side: beyond two reaches nothing is seen."""
    assert make_encoder("modernbert").config.local_attention == REACH < max(LENGTHS)
    rows = make_tokens([120])
    path = make_model(folder / "local" / "modernbert", "modernbert")
    config = json.loads((path / "config.json").read_text())
    config["layer_types"] = ["sliding_attention", "sliding_attention"]
    (path / "config.json").write_text(json.dumps(config))
    changed = make_tokens([120])
    changed.ids[100] = 3 + (changed.ids[100] - 2) % 60
    backbone = loaded(path)
    before, after = (windowed(backbone, one_batch(table(made)))[0][0] for made in (rows, changed))
    moved = (before - after).abs().amax(1)
    assert bool((moved[: 100 - REACH] == 0).all())
    assert moved[100] > 1e-2
    assert moved[101] > 1e-5


@pytest.mark.parametrize("kind", list(REFUSED_FAMILIES))
def test_what_cannot_be_packed_is_refused(kind: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_model(folder / kind, kind)
    capfd.readouterr()
    with pytest.raises(BenchError) as refusal:
        loaded(path)
    assert refusal.value.code == MISSING == 3
    assert "\n" not in refusal.value.what
    assert kind in refusal.value.what
    assert refusal.value.hint == f"{probe.PACKABLE} be."
    assert capfd.readouterr() == ("", "")


def test_loading_says_nothing(kind: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_model(folder / kind, kind)
    capfd.readouterr()
    loaded(path)
    assert capfd.readouterr() == ("", "")


def test_position_limits(folder: Path) -> None:
    """RoBERTa's positions start after the padding index, BERT's at 0."""
    assert loaded(make_model(folder / "roberta", "roberta")).longest == 300 - PADDING - 1
    assert loaded(make_model(folder / "bert", "bert")).longest == 300
