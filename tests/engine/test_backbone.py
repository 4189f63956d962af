"""Encoders on windows: the model's own numbers for those that can, one line for those that cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from engine_factory import LENGTHS, PACKABLE, PAD, UNPACKABLE, encoder, loaded, saved, table, tokens
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lora_bench.engine.encoder.backbone import Backbone
from lora_bench.engine.encoder.windows import Batch, Table
from lora_bench.errors import MISSING, BenchError

REACH = 16  # ModernBERT's local attention, far below the longest sequence


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where encoders are saved."""
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module", params=list(PACKABLE))
def kind(request: pytest.FixtureRequest) -> str:
    """Each architecture that can be packed."""
    return str(request.param)


@pytest.fixture(scope="module")
def on_windows(kind: str, folder: Path) -> Backbone:
    """The encoder, loaded."""
    return loaded(saved(kind, folder))


def one_batch(made: Table) -> Batch:
    """All rows of the table as one batch."""
    return next(made.batches([torch.arange(len(made)).numpy()]))


@torch.no_grad()
def own(kind: str, made: Table, types: bool) -> list[Tensor]:
    """The hidden states of every sequence in the model's own padded forward."""
    model = encoder(kind).train(False)
    parts = made.flat[0, :-1].split(made.lengths.tolist())
    ids = pad_sequence(list(parts), batch_first=True, padding_value=PAD)
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
    made = table(tokens(LENGTHS))
    batch = one_batch(made)
    assert batch.width == 256
    assert batch.ids.shape == (512,)
    types = on_windows.takes_types
    assert types == (kind in ("bert", "electra"))
    expected = own(kind, made, types)
    worst = max(
        float((rows[0] - wanted).abs().max())
        for rows, wanted in zip(windowed(on_windows, batch), expected, strict=True)
    )
    assert worst < 1e-5
    assert float(torch.cat(expected).std()) > 0.1


def test_cells_are_rows_that_are_all_alike(on_windows: Backbone) -> None:
    batch = one_batch(table(tokens(LENGTHS[:4])))
    single = torch.cat(windowed(on_windows, batch), dim=1)
    triple = torch.cat(windowed(on_windows, batch, 3), dim=1)
    assert triple.shape[0] == 3
    assert torch.equal(triple[0], triple[1])
    assert torch.equal(triple[0], triple[2])
    assert (triple[:1] - single).abs().max() < 1e-5


def test_company_in_a_window_changes_nothing(on_windows: Backbone) -> None:
    rows = tokens(LENGTHS)
    together = windowed(on_windows, one_batch(table(rows)))
    for place in (0, 3, 8):
        (alone,) = windowed(on_windows, one_batch(table(rows.take(torch.tensor([place]).numpy()))))
        assert (alone - together[place]).abs().max() < 1e-5


def test_dropout_is_drawn_from_the_stream_alone(on_windows: Backbone) -> None:
    batch, stream = one_batch(table(tokens(LENGTHS[:3]))), torch.Generator()
    with torch.no_grad():
        masks = on_windows.masks(batch.shape)
        once = on_windows.encode(batch, 2, masks.draw(stream.manual_seed(5), batch.windows, 3))
        torch.rand(7)
        again = on_windows.encode(batch, 2, masks.draw(stream.manual_seed(5), batch.windows, 3))
        other = on_windows.encode(batch, 2, masks.draw(stream.manual_seed(6), batch.windows, 3))
        without = on_windows.encode(batch, 2)
    assert torch.equal(once, again)
    assert torch.equal(once[0], once[1])
    assert not torch.allclose(once, other)
    assert not torch.allclose(once, without)


def test_the_backbone_is_frozen(on_windows: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in on_windows.model.parameters())
    assert not any("pooler" in name for name, _ in on_windows.model.named_parameters())


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_token_types_count(kind: str, folder: Path) -> None:
    backbone, made = loaded(saved(kind, folder)), table(tokens(LENGTHS))
    batch = one_batch(made)
    with_types, without = windowed(backbone, batch), own(kind, made, types=False)
    assert max(float((a[0] - b).abs().max()) for a, b in zip(with_types, without, strict=True)) > 1e-2


def test_the_local_window_of_modernbert_counts(folder: Path) -> None:
    """Its second layer reaches half of `local_attention` to each side: beyond two reaches nothing is seen."""
    assert encoder("modernbert").config.local_attention == REACH < max(LENGTHS)
    rows = tokens([120])
    path = saved("modernbert", folder / "local")
    config = json.loads((path / "config.json").read_text())
    config["layer_types"] = ["sliding_attention", "sliding_attention"]
    (path / "config.json").write_text(json.dumps(config))
    changed = tokens([120])
    changed.ids[100] = 3 + (changed.ids[100] - 2) % 60
    backbone = loaded(path)
    before, after = (windowed(backbone, one_batch(table(made)))[0][0] for made in (rows, changed))
    moved = (before - after).abs().amax(1)
    assert bool((moved[: 100 - REACH] == 0).all())
    assert moved[100] > 1e-2
    assert moved[101] > 1e-5


@pytest.mark.parametrize("kind", list(UNPACKABLE))
def test_what_cannot_be_packed_is_refused(kind: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(kind, folder)
    capfd.readouterr()
    with pytest.raises(BenchError) as refusal:
        loaded(path)
    assert refusal.value.code == MISSING == 3
    assert "\n" not in refusal.value.what
    assert kind in refusal.value.what
    assert refusal.value.hint == "RoBERTa, BERT, XLM-R, CamemBERT, ELECTRA, DistilBERT and ModernBERT can be."
    assert capfd.readouterr() == ("", "")


def refused(path: Path) -> BenchError:
    """How the loader refuses that directory: in two lines, with exit code 3."""
    with pytest.raises(BenchError) as refusal:
        loaded(path)
    assert refusal.value.code == MISSING
    assert len(str(refusal.value).splitlines()) == 2
    return refusal.value


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    path = saved("roberta", tmp_path)
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04not to be read")
    assert "cannot be loaded" in refused(path).what


def test_missing_weights_are_refused_and_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved("bert", tmp_path)
    weights = safetensors.torch.load_file(path / "model.safetensors")
    name = "encoder.layer.1.attention.self.query.weight"
    del weights[name]
    safetensors.torch.save_file(weights, path / "model.safetensors", {"format": "pt"})
    capfd.readouterr()
    assert name in refused(path).what
    assert capfd.readouterr() == ("", "")


def test_a_model_without_its_pooler_is_whole(tmp_path: Path) -> None:
    path = saved("bert", tmp_path)
    weights = safetensors.torch.load_file(path / "model.safetensors")
    kept = {name: part for name, part in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    safetensors.torch.save_file(kept, path / "model.safetensors", {"format": "pt"})
    assert loaded(path).hidden_size == 32


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"not safetensors at all, but long enough"])
def test_broken_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    path = saved("roberta", tmp_path)
    (path / "model.safetensors").write_bytes(content)
    refused(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "no such"}', '{"architectures": []}'])
def test_a_broken_config_is_refused(tmp_path: Path, content: str) -> None:
    path = saved("roberta", tmp_path)
    (path / "config.json").write_text(content)
    refused(path)


def test_weights_of_another_shape_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved("roberta", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    capfd.readouterr()
    refused(path)
    assert capfd.readouterr() == ("", "")


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing")


def test_loading_says_nothing(kind: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(kind, folder)
    capfd.readouterr()
    loaded(path)
    assert capfd.readouterr() == ("", "")


def test_position_limits(folder: Path) -> None:
    """RoBERTa's positions start after the padding index, BERT's at 0."""
    assert loaded(saved("roberta", folder)).longest == 300 - PAD - 1
    assert loaded(saved("bert", folder)).longest == 300
