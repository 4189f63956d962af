"""The Python API: any method on a transformers model, for a loop of one's own."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import lora_bench
from lora_bench import AdaptedModel, get_adapted_model, load_adapted_model, methods
from lora_bench.engine.adapters import saved as saved_adapters
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder import backbone as backbones
from lora_bench.errors import BenchError
from lora_bench.testing import FAMILIES, TinyBench, make_cell, make_config, make_data, make_model
from tests.contract.contract_kit import made_of_data

REFUSED = [name for name, recipe in methods.RECIPES.items() if recipe.beyond_the_loss]
ADAPTING = [name for name, recipe in methods.RECIPES.items() if recipe.adapts and not made_of_data(name)]
METHODS = [name for name in ADAPTING if name not in REFUSED]
SIZES: dict[str, Any] = {"rank": 4, "a": 7, "b": 6, "alpha": 8.0, "targets": "attention"}
IDS = torch.tensor([[0, 5, 9, 11, 2, 1], [0, 33, 40, 2, 1, 1], [0, 7, 2, 1, 1, 1]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 1).long()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RoBERTa on disk."""
    return make_model(tmp_path_factory.mktemp("adapt") / "tiny")


def classifier(folder: Path) -> Any:
    """It with transformers' head, the same every time."""
    torch.manual_seed(0)
    return hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()


NEAR = 1e-12  # in float64; in float32 two orders of one sum differ by what the machine's kernels make of them
START = {"xs": 1e-3}  # how far the start is from the base model where it is not there: R starts from N(0, 1e-5²)


def settings(method: str) -> dict[str, Any]:
    """Those of the small sizes that the method has."""
    cell = make_cell(method, **SIZES)
    return {name: getattr(cell, name) for name in SIZES if name in methods.get(method).parameters}


def moved(adapted: AdaptedModel) -> AdaptedModel:
    """Three steps of a loop of one's own."""
    optimiser = torch.optim.AdamW(adapted.parameter_groups(lr=2e-2, head_lr=1e-2))
    for _ in range(3):
        loss = adapted(**INPUTS, labels=torch.tensor([0, 1, 1])).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return adapted


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Of the inputs."""
    found: Tensor = model(**INPUTS).logits
    return found


@pytest.mark.parametrize("method", METHODS)
def test_the_start_is_the_packed_trainers(method: str, folder: Path, tmp_path: Path) -> None:
    """The same seed, the same factors: there is one implementation of a recipe."""
    adapted = get_adapted_model(classifier(folder).double(), method, seed=3, **settings(method))
    adapted.save(tmp_path)
    own = make_cell(method, seed=3, precision="float64", **settings(method))
    pack = Pack([own], backbones.load(str(folder), torch.device("cpu"), "float64", offline=True), 2)
    expected = saved_adapters.restored(own, saved_adapters.compacted(own, pack.state(0).adapter))
    saved = saved_adapters.read(tmp_path)[2].adapter
    assert saved.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=NEAR)


@pytest.mark.parametrize("method", METHODS)
def test_trains_saves_loads_and_merges(method: str, folder: Path, tmp_path: Path) -> None:
    plain = classifier(folder).double()
    before = {name: value.clone() for name, value in plain.base_model.state_dict().items()}
    untouched = logits(plain)
    adapted = get_adapted_model(plain, method, **settings(method))
    if methods.get(method).starts_as_base:
        torch.testing.assert_close(logits(adapted), untouched, rtol=0, atol=START.get(method, NEAR))
    trainable = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert all(name.startswith(("factors.", "model.classifier.")) for name in trainable)
    moved(adapted)
    trained = logits(adapted)
    assert (trained - untouched).abs().max() > 1e-2
    assert all(torch.equal(value, before[name]) for name, value in plain.base_model.state_dict().items())
    adapted.save(tmp_path)
    again = load_adapted_model(classifier(folder).double(), tmp_path).eval()
    torch.testing.assert_close(logits(again), trained, rtol=0, atol=NEAR)
    merged = adapted.merge()
    assert merged is plain
    torch.testing.assert_close(logits(merged), trained, rtol=0, atol=NEAR)
    assert all(value.requires_grad for value in merged.parameters())


@pytest.mark.parametrize("method", REFUSED)
def test_a_loop_that_would_leave_something_out_is_refused(method: str, folder: Path) -> None:
    """A penalty of the loss, or a schedule of ranks. Saved adapters of such methods are loaded like others."""
    with pytest.raises(BenchError, match=f"'{re.escape(method)}' .*, which your loop would leave out"):
        get_adapted_model(classifier(folder), method)


def test_a_benchmarks_adapter_is_loaded(folder: Path, tmp_path: Path) -> None:
    bench = TinyBench(folder, make_data(tmp_path / "rows"), tmp_path / "results")
    (record,) = bench.run([{"method": "mini", "rank": 4, "a": 8, "b": 6}], precision="float32")
    saved = bench.results / "adapters" / record.id
    pack = saved_adapters.load(saved, backbones.load(str(folder), torch.device("cpu"), "float32"))
    deltas = pack.deltas(0)
    adapted = load_adapted_model(classifier(folder), saved)
    assert torch.equal(adapted.model.get_parameter("classifier.dense.weight"), pack.state(0).head["dense.weight"])
    base = {name: value.clone() for name, value in adapted.encoder.state_dict().items()}
    merged = adapted.merge()
    for name, delta in deltas.items():
        weight = merged.get_parameter(f"{merged.base_model_prefix}.{name}.weight")
        torch.testing.assert_close(weight, base[f"{name}.weight"] + delta, rtol=0, atol=1e-6)
    encoder = hf.AutoModel.from_pretrained(folder)
    assert load_adapted_model(encoder, saved).encoder is encoder


@pytest.mark.parametrize("kind", FAMILIES)
def test_any_encoder_with_its_own_head(kind: str) -> None:
    """What the benchmark's export must refuse, an own loop can train."""
    torch.manual_seed(1)
    adapted = get_adapted_model(hf.AutoModelForSequenceClassification.from_config(make_config(kind)), "mini", rank=2)
    before = [value.detach().clone() for value in adapted.factors.values()]
    moved(adapted)
    assert not any(torch.equal(value, old) for value, old in zip(adapted.factors.values(), before, strict=True))


def test_a_cast_model_keeps_what_it_learnt(folder: Path) -> None:
    adapted = moved(get_adapted_model(classifier(folder), "pissa", **settings("pissa"))).eval()
    before, factors = logits(adapted), list(adapted.factors.values())
    adapted.to(torch.float64)
    assert all(one is other for one, other in zip(adapted.factors.values(), factors, strict=True))
    torch.testing.assert_close(logits(adapted).float(), before, rtol=0, atol=1e-4)


def test_lora_plus_has_its_rates(folder: Path) -> None:
    adapted = get_adapted_model(classifier(folder), "lora-plus", rank=2)
    rates = [group["lr"] for group in adapted.parameter_groups(lr=1e-3, head_lr=5e-4)]
    assert sorted(set(rates)) == [5e-4, 1e-3, 16e-3]


@pytest.mark.parametrize(("method", "decay"), [("bitfit", 0.0), ("lora", 0.01)])
def test_weight_decay_is_the_benchmarks(method: str, decay: float, folder: Path) -> None:
    """torch's AdamW takes its own where a group says nothing: BitFit's biases and the head's must say zero."""
    adapted = get_adapted_model(classifier(folder), method)
    optimiser = torch.optim.AdamW(adapted.parameter_groups(lr=1e-3), weight_decay=0.01)
    decays = {id(value): group["weight_decay"] for group in optimiser.param_groups for value in group["params"]}
    assert {decays[id(value)] for value in adapted.factors.values()} == {decay}
    head = dict(adapted.model.get_submodule("classifier").named_parameters())
    assert {name: decays[id(value)] for name, value in head.items()} == {
        "dense.weight": 0.01,
        "dense.bias": 0.0,
        "out_proj.weight": 0.01,
        "out_proj.bias": 0.0,
    }
    assert len(decays) == sum(value.requires_grad for value in adapted.parameters())


@pytest.mark.parametrize("width", [8, 16, 31])
def test_as_many_diagonals_as_the_weights_have_are_taken(width: int, folder: Path) -> None:
    """Whether a method starts from data is asked of the model's weights, not of a small one made up."""
    adapted = moved(get_adapted_model(classifier(folder), "svft-banded", b=width))
    values = sum(value.numel() for value in adapted.factors.values())
    assert values == 2 * 3 * (32 * (2 * width + 1) - width * (width + 1))  # 2 layers, queries, keys and values
    with pytest.raises(BenchError, match="32 diagonals are more than a matrix of 32 has"):
        get_adapted_model(classifier(folder), "svft-banded", b=32)


@pytest.mark.parametrize(
    ("method", "given"), [("lora", {"targets": "querry"}), ("svft-banded", {"b": 32}), ("pissa", {"rank": 33})]
)
def test_a_call_that_is_refused_leaves_the_model_alone(method: str, given: dict[str, Any], folder: Path) -> None:
    plain = classifier(folder)
    with pytest.raises(BenchError):
        get_adapted_model(plain, method, **given)
    assert all(value.requires_grad for value in plain.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in plain.modules())


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("minni", {}, "mini"),
        ("lora", {"a": 3}, "Known: alpha, rank, targets"),
        ("lora", {"rank": 0}, "rank: 0"),
        ("lora", {"targets": "querry"}, "query"),
        ("lora-sb", {}, "gradient of the benchmark's data"),
        ("full", {}, "Train the model as it is"),
    ],
)
def test_wrong_calls_are_told(method: str, given: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(BenchError, match=said):
        get_adapted_model(classifier(folder), method, **given)


def test_a_head_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    get_adapted_model(classifier(folder), "lora", rank=2).save(tmp_path)
    three = hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    with pytest.raises(BenchError, match="does not fit this model"):
        load_adapted_model(three, tmp_path)


def test_the_package_alone_imports_no_torch() -> None:
    probe = "import sys; from lora_bench import methods; assert 'torch' not in sys.modules; methods.get('mini')"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = lora_bench.nothing_such


def test_the_guides_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, on a smaller model and fewer rows."""
    text = (Path(__file__).parent.parent / "docs" / "guide.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python not run: tests/test_adapt.py[^\n]*\n(.*?)```", text, flags=re.DOTALL)
    tiny = make_model(tmp_path / "roberta")
    batch = {"labels": torch.tensor([0, 1, 1]), **INPUTS}
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"batches": [batch] * 3}
    (tmp_path / "example.py").write_text(example.replace('"FacebookAI/roberta-base"', repr(str(tiny))))
    names = runpy.run_path(str(tmp_path / "example.py"), names)
    assert (tmp_path / "my-adapter/adapter.safetensors").is_file()
    assert np.isfinite(names["merged"](**INPUTS).logits.detach().numpy()).all()
