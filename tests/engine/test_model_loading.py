"""Files of models that are loaded, and those that are refused: by their weights, their config, and by both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers as hf
from torch import Tensor

from lora_bench.engine.encoder import weights
from lora_bench.errors import MISSING, BenchError
from lora_bench.testing import FAMILIES, make_encoder, make_model
from tests.engine.engine_factory import loaded


@pytest.fixture(params=list(FAMILIES))
def kind(request: pytest.FixtureRequest) -> str:
    """Each architecture that can be packed."""
    return str(request.param)


def refused(path: Path) -> BenchError:
    """How the loader refuses that directory: in two lines, with exit code 3."""
    with pytest.raises(BenchError) as refusal:
        loaded(path)
    assert refusal.value.code == MISSING
    assert len(str(refusal.value).splitlines()) == 2
    return refusal.value


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Change the weights of a model's directory, and return the directory."""
    stored = safetensors.torch.load_file(path / "model.safetensors")
    safetensors.torch.save_file(change(stored), path / "model.safetensors", {"format": "pt"})
    return path


def rewrite_config(path: Path, **changes: object) -> None:
    """Change some keys of a model's config.json."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    path = make_model(tmp_path / "roberta", "roberta")
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04not to be read")
    assert "no weights in safetensors format" in refused(path).what


def test_missing_weights_are_refused_and_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "encoder.layer.1.attention.self.query.weight"
    path = rewritten(
        make_model(tmp_path / "bert", "bert"),
        lambda stored: {other: part for other, part in stored.items() if other != name},
    )
    capfd.readouterr()
    assert name in refused(path).what
    assert capfd.readouterr() == ("", "")


def test_a_model_without_its_pooler_is_whole(tmp_path: Path) -> None:
    path = make_model(tmp_path / "bert", "bert")
    names = set(safetensors.torch.load_file(path / "model.safetensors"))
    rewritten(path, lambda stored: {name: part for name, part in stored.items() if "pooler" not in name})
    assert set(safetensors.torch.load_file(path / "model.safetensors")) < names
    assert loaded(path).hidden_size == 32


def test_encoder_weights_that_are_not_used_are_refused_and_named(kind: str, tmp_path: Path) -> None:
    """A table of distances beside an attention, as relative positions have it, and a layer more than the config."""
    path = make_model(tmp_path / kind, kind)
    name = next(name for name in safetensors.torch.load_file(path / "model.safetensors") if "att" in name)
    extra = f"{name.rpartition('.')[0]}.distance_embedding.weight"
    assert extra in refused(rewritten(path, lambda stored: stored | {extra: torch.zeros(3, 8)})).what
    make_model(tmp_path / kind, kind)
    names = list(safetensors.torch.load_file(path / "model.safetensors"))
    last = "0" if kind == "albert" else "1"  # ALBERT has one layer, which runs several times
    third = {name: re.sub(rf"\.{last}\.", ".2.", name, count=1) for name in names}
    rewritten(path, lambda stored: stored | {third[name]: part.clone() for name, part in stored.items()})
    assert min(new for old, new in third.items() if new != old) in refused(path).what


@pytest.mark.parametrize(
    ("kind", "name"),
    [("roberta", "model.encoder.layer.2.output.dense.weight"), ("roberta", "bert.encoder.layer.2.output.dense.weight"),
     ("roberta", "embeddings_project.weight"), ("roberta", "pooler_adapter.weight"), ("bert", "lm_head.bias"),
     ("bert", "prompt_embeddings.weight"), ("bert", "bert.classifier.weight"), ("modernbert", "embeddings_norm.bias")],
)  # fmt: skip
def test_weights_that_are_no_known_head_are_refused_and_named(kind: str, name: str, tmp_path: Path) -> None:
    """The encoder was trained with them: without them it is another one."""
    path = rewritten(make_model(tmp_path / kind, kind), lambda stored: stored | {name: torch.zeros(3, 8)})
    assert f"has weights that '{kind}' does not use ({name})" in refused(path).what


@pytest.mark.parametrize(
    "name",
    ["BertForPreTraining", "RobertaForMaskedLM", "RobertaForSequenceClassification", "XLMRobertaForMaskedLM",
     "CamembertForTokenClassification", "ElectraForPreTraining", "DistilBertForMaskedLM", "ModernBertForMaskedLM",
     "ElectraForMultipleChoice", "BertLMHeadModel", "RobertaForCausalLM", "ElectraForCausalLM",
     "DistilBertForSequenceClassification", "DistilBertForQuestionAnswering"],
)  # fmt: skip
def test_heads_may_be_left_over(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Heads, poolers, and the buffers that older versions saved, with the prefix that a model with a head has."""
    kinds = {kind.replace("-", ""): kind for kind in FAMILIES}
    kind = next(kinds[key] for key in sorted(kinds, key=len, reverse=True) if name.lower().startswith(key))
    model = getattr(hf, name)(make_encoder(kind).config)
    model.save_pretrained(tmp_path)
    old = f"{model.base_model_prefix}.embeddings.position_ids"
    rewritten(tmp_path, lambda stored: stored | {old: torch.arange(300)[None], "pooler.dense.bias": torch.ones(32)})
    capfd.readouterr()
    assert loaded(tmp_path).hidden_size == 32
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["deberta", "deberta-v2"])
def test_debertas_published_files_load(kind: str, tmp_path: Path) -> None:
    """microsoft/deberta-base and deberta-v3-base: names with a prefix, both heads of pretraining, strings for lists."""
    path = make_model(tmp_path, kind, type_vocab_size=0)
    config = json.loads((path / "config.json").read_text()) | {"pos_att_type": "c2p|p2c"}
    for name in ("legacy", "architectures"):
        config.pop(name, None)
    (path / "config.json").write_text(json.dumps(config))
    heads = ["lm_predictions.lm_head.bias", "lm_predictions.lm_head.dense.weight"]
    heads += ["mask_predictions.dense.weight", "mask_predictions.classifier.bias"] if kind == "deberta-v2" else []
    extra = {name: torch.zeros(3) for name in [*heads, "deberta.embeddings.position_embeddings.weight"]}
    rewritten(path, lambda stored: {f"deberta.{name}": part for name, part in stored.items()} | extra)
    assert loaded(path).padded is None
    wrong = "deberta.mask_predictions.dense.weight"
    rewritten(path, lambda stored: stored | {wrong: torch.zeros(3)})
    assert wrong in refused(path).what


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks for it
def test_an_adapter_that_transformers_applies_is_refused(tmp_path: Path) -> None:
    """As from the Hub, where only what was loaded can be asked."""
    path = make_model(tmp_path / "roberta", "roberta")
    peft.get_peft_model(make_encoder("roberta"), peft.LoraConfig(target_modules=["query"])).save_pretrained(str(path))
    model, info = hf.AutoModel.from_pretrained(path, output_loading_info=True)
    with pytest.raises(BenchError, match="also holds an adapter, which transformers has applied"):
        weights.check_loaded("someone/roberta", model, info)
    assert "also holds an adapter" in refused(path).what


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"not safetensors at all, but long enough"])
def test_broken_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    path = make_model(tmp_path / "roberta", "roberta")
    (path / "model.safetensors").write_bytes(content)
    refused(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "no such"}', '{"architectures": []}'])
def test_a_broken_config_is_refused(tmp_path: Path, content: str) -> None:
    path = make_model(tmp_path / "roberta", "roberta")
    (path / "config.json").write_text(content)
    refused(path)


@pytest.mark.parametrize("name", ["block_size", "layer_norm_type", "conv_groups", "layerdrop_seed", "group_size"])
def test_a_number_that_counts_no_layers_may_be_large(name: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / "roberta", "roberta")
    rewrite_config(path, **{name: 512})
    assert loaded(path).hidden_size == 32


def test_weights_of_another_shape_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_model(tmp_path / "roberta", "roberta")
    rewrite_config(path, intermediate_size=40)
    capfd.readouterr()
    refused(path)
    assert capfd.readouterr() == ("", "")


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing")
